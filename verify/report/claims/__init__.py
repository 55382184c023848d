"""How the ledger is shown: in a terminal, as JSON, as a page, and in the documentation."""
