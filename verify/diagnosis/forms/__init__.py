"""Forms: what is fitted to an operation that is wrong in a way that the catalogue does not list.

form.py    the record: a name, a sentence, and what is fitted
table.py   all of them, in the order in which they are tried
"""
