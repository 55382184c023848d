"""The ledger: what people say of GPT-2, each claim with a verdict and with evidence that runs.

claim.py      what a claim is
ledger.py     all of them; one file for each topic holds the claims and what decides them
case.py       what evidence is handed
run.py        one run
"""
