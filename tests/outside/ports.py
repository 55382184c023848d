"""Each fault as a factory that the command can be told: ``outside.ports:StepLags`` by its name.

gpt-verify run --port tests/outside/ports.py:step-lags
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from outside import gpt2, picogpt  # after the path
from outside.record import every  # after the path


def __getattr__(name):
    if name == "right":
        return gpt2.right
    if name == "logits-right":
        return picogpt.right
    faults = every()
    if name not in faults:
        raise AttributeError(name)
    return faults[name][1].build
