"""Prove or refute that an implementation of GPT-2 is the model that OpenAI released.

The names below are what ports, tests and notebooks import; everything else is the tool's own.
Nothing is loaded before it is used: this import takes no framework, not even NumPy.

    import gpt_verify as gv

    report = gv.run(model, "models/124M", lengths=[128])
    assert report.verdict is gv.Verdict.VERIFIED
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint, open_checkpoint
    from gpt_verify.claims.claim import Claim, Decided, Measured
    from gpt_verify.claims.face import claims
    from gpt_verify.claims.run import ClaimsReport
    from gpt_verify.errors import (
        CheckpointError,
        GptVerifyError,
        MissingDependency,
        PortError,
        UsageError,
    )
    from gpt_verify.findings import Cause, Finding, PortReport, Report, Status, Verdict
    from gpt_verify.judging.face import lens, run
    from gpt_verify.judging.lens import LensReport, Reading
    from gpt_verify.lens.statistics import Lens
    from gpt_verify.port import (
        IGNORED,
        LOSS,
        MASKED,
        PADDED,
        PADDED_AT,
        STEP,
        STEP_PADDED,
        STEP_PADDED_AT,
        Capability,
        NotExamined,
        Parameter,
        Port,
    )
    from gpt_verify.ports.remote.http import HttpPort
    from gpt_verify.ports.remote.process import ProcessPort
    from gpt_verify.report.compare.comparison import Comparison, Pair, PortComparison
    from gpt_verify.report.compare.face import compare
    from gpt_verify.report.face import html, json
    from gpt_verify.report.face import words as words
    from gpt_verify.report.json import schema

__version__ = "0.1.0"

#: Where each name lies.
_AT = {
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "claims.claim": ("Claim", "Decided", "Measured"),
    "claims.face": ("claims",),
    "claims.run": ("ClaimsReport",),
    "errors": (
        "CheckpointError",
        "GptVerifyError",
        "MissingDependency",
        "PortError",
        "UsageError",
    ),
    "findings": ("Cause", "Finding", "PortReport", "Report", "Status", "Verdict"),
    "judging.face": ("lens", "run"),
    "judging.lens": ("LensReport", "Reading"),
    "lens.statistics": ("Lens",),
    "port": (
        "IGNORED",
        "LOSS",
        "MASKED",
        "PADDED",
        "PADDED_AT",
        "STEP",
        "STEP_PADDED",
        "STEP_PADDED_AT",
        "Capability",
        "NotExamined",
        "Parameter",
        "Port",
    ),
    "ports.remote.http": ("HttpPort",),
    "ports.remote.process": ("ProcessPort",),
    "report.compare.comparison": ("Comparison", "Pair", "PortComparison"),
    "report.compare.face": ("compare",),
    "report.face": ("html", "json", "words"),
    "report.json": ("schema",),
}
_WHERE = {name: module for module, names in _AT.items() for name in names}

__all__ = [
    "IGNORED",
    "LOSS",
    "MASKED",
    "PADDED",
    "PADDED_AT",
    "STEP",
    "STEP_PADDED",
    "STEP_PADDED_AT",
    "Capability",
    "Cause",
    "Checkpoint",
    "CheckpointError",
    "Claim",
    "ClaimsReport",
    "Comparison",
    "Decided",
    "Finding",
    "GptVerifyError",
    "HttpPort",
    "Lens",
    "LensReport",
    "Measured",
    "MissingDependency",
    "NotExamined",
    "Pair",
    "Parameter",
    "Port",
    "PortComparison",
    "PortError",
    "PortReport",
    "ProcessPort",
    "Reading",
    "Report",
    "Status",
    "UsageError",
    "Verdict",
    "claims",
    "compare",
    "html",
    "json",
    "lens",
    "open_checkpoint",
    "run",
    "schema",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """Two rooms of the package, ``lens`` and ``claims``, have the name of a function of its face.

    Python binds a room to the package once it is imported, whenever that is, and would hide the
    function. ``from gpt_verify.lens import …`` finds the room without that binding.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _WHERE):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
