"""Prove or refute that an implementation of GPT-2 is the model that OpenAI released.

The names below are what ports and their tests import; everything else is the tool's own. Nothing is
loaded before it is used: this import takes no framework, not even NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint, open_checkpoint
    from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict
    from gpt_verify.judging.face import run
    from gpt_verify.port import (
        IGNORED,
        LOSS,
        PADDED,
        PADDED_AT,
        STEP,
        Capability,
        NotExamined,
        Parameter,
        Port,
    )
    from gpt_verify.report.compare.face import compare

__version__ = "0.1.0"

_AT = {
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "findings": ("Finding", "PortReport", "Report", "Status", "Verdict"),
    "judging.face": ("run",),
    "port": (
        "IGNORED",
        "LOSS",
        "PADDED",
        "PADDED_AT",
        "STEP",
        "Capability",
        "NotExamined",
        "Parameter",
        "Port",
    ),
    "report.compare.face": ("compare",),
}
_WHERE = {name: module for module, names in _AT.items() for name in names}

__all__ = [
    "IGNORED",
    "LOSS",
    "PADDED",
    "PADDED_AT",
    "STEP",
    "Capability",
    "Checkpoint",
    "Finding",
    "NotExamined",
    "Parameter",
    "Port",
    "PortReport",
    "Report",
    "Status",
    "Verdict",
    "compare",
    "open_checkpoint",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
