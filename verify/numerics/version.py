"""Which numerics a figure was made with: raised when scores or verdicts may come out otherwise.

Written by ``python scripts/figures.py --numerics changed`` (or ``same``, where the source was only
renamed, moved or made faster); do not edit. ``SOURCE`` is a digest of the code that decides
numbers, so that neither is forgotten: ``tests/scripts/test_figures.py`` fails until one of them was
said.
"""

VERSION = 5
SOURCE = "1b57e64153484eb786edac995a79a31ea81ce9b38cb3e05c9d741cd4feabdca1"
