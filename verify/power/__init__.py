"""How well the suite works: every known fault injected, every correct variant judged.

variants.py   correct ports, none of which may be refuted
rewrites.py   steps of the model that they write in other ways
family_variants.py  correct ports of the families
calls.py      other ways in which they are called
injection.py  ports with a fault of the catalogue in them
outcome.py    what came of one of either
alike.py      faults that are one function of a model
trial.py      one of either, judged: what was detected, localised, explained
baselines.py  what the usual comparisons say of the same port on the same inputs
campaign.py   all the trials, in several processes, and their sums
"""
