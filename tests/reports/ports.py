"""Each pair as factories that the command can be told.

gpt-verify run --port tests/reports/ports.py:wrong__qkv-by-head
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reports.cases import LOG


def __getattr__(name):
    which, _, case = name.partition("__")
    if case not in LOG or which not in ("wrong", "right"):
        raise AttributeError(name)
    return getattr(LOG[case], which)
