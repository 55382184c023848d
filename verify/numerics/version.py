"""Which numerics a figure was made with: raised when scores or verdicts may come out otherwise.

Written by ``python scripts/figures.py --numerics changed`` (or ``same``, where the source was only
renamed, moved or made faster); do not edit. ``SOURCE`` is a digest of the code that decides
numbers, so that neither is forgotten: ``tests/scripts/test_figures.py`` fails until one of them was
said.
"""

VERSION = 6
SOURCE = "bcb0c48673e3bbc00349f8e0039f68367c5f59a4a5c6f6aee1f0e39bcb372af9"
