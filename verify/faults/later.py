"""Libraries that are imported when they are first used: a fault is defined where they need not be
installed."""

from __future__ import annotations

import importlib
from typing import Any


class _Later:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


torch: Any = _Later("torch")
F: Any = _Later("torch.nn.functional")
tokenizers: Any = _Later("tokenizers")
