"""Which numerics a figure was made with: raised when scores or verdicts may come out otherwise.

Written by ``python scripts/figures.py --numerics changed`` (or ``same``, where the source was only
renamed, moved or made faster); do not edit. ``SOURCE`` is a digest of the code that decides
numbers, so that neither is forgotten: ``tests/scripts/test_figures.py`` fails until one of them was
said.
"""

VERSION = 5
SOURCE = "e2577190d3e53b169fc3d6b0044a78322f09ceec75692ed76d5a3320b2514a46"
