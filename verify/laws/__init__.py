"""The laws: a folder for each, with its check, the hypotheses by which its faults are named, and
the faults that it must refute.

Checks do not know which port they judge, and import no adapter. ``table.py`` is what is checked
for every port; what several laws share lies beside it.
"""
