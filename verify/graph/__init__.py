"""The model as a table of steps, and every loop over it.

``gpt_verify.sites`` says which operation makes what from what. What an operation is stands in one
record (``operations/``): its value, its rounding budget, its backward rule. The loops ask for no
operation's name.
"""
