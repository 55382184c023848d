"""The lens for programs (docs/lens-pictures.md)."""

from __future__ import annotations

import json
from typing import Any

from gpt_verify.judging.lens import Floats, LensReport, Reading
from gpt_verify.report.json import plain

#: ``major.minor``: a key that is added raises the minor number, any other change the major one.
SCHEMA_VERSION = "1.1"


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "name": plain(reading.name),
        "dtype": reading.dtype,
        "device": reading.device,
        "weights_from": plain(reading.weights_from),
        "error": plain(reading.error),
        "lens": None if reading.lens is None else reading.lens.as_dict(),
        "attributions": {name: a.as_dict() for name, a in reading.attributions.items()},
        "patterns": {str(layer): _pattern(p) for layer, p in reading.patterns.items()},
    }


def _pattern(pattern_HTS: Floats) -> list[Any]:
    """[H][T][S], each target with the sources that it may see."""
    return [
        [plain(row[: t + 1]) for t, row in enumerate(head)] for head in pattern_HTS.astype(float)
    ]


def as_dict(report: LensReport) -> dict[str, Any]:
    """The report in JSON's own types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "repeat": plain(report.repeat),
        "checkpoint": plain(report.checkpoint),
        "text": plain(report.text),
        "names": {str(token): plain(name) for token, name in sorted(report.names.items())},
        "readings": [_reading(reading) for reading in report.readings],
    }


def render(report: LensReport) -> str:
    return json.dumps(as_dict(report), ensure_ascii=False, allow_nan=False) + "\n"
