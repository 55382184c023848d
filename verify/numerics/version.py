"""Which numerics a figure was made with: raised when scores or verdicts may come out otherwise.

Written by ``python scripts/figures.py --numerics changed`` (or ``same``, where the source was only
renamed, moved or made faster); do not edit. ``SOURCE`` is a digest of the code that decides
numbers, so that neither is forgotten: ``tests/scripts/test_figures.py`` fails until one of them was
said.
"""

VERSION = 5
SOURCE = "21d07cc947ba5585df9c686b34950822ae3fbfc602fe3a81dab9ac9d39adca6e"
