"""Which numerics a figure was made with: raised when scores or verdicts may come out otherwise.

Written by ``python scripts/figures.py --numerics changed`` (or ``same``, where the source was only
renamed, moved or made faster); do not edit. ``SOURCE`` is a digest of the code that decides
numbers, so that neither is forgotten: ``tests/scripts/test_figures.py`` fails until one of them was
said.
"""

VERSION = 5
SOURCE = "a3946a5ab2e5aeb61c7eb112173c3c8e4a9104c397a036be10e5e41be774bba4"
