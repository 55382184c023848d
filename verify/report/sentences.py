"""What a port that has a fault does wrong, in a sentence for each cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.findings import Cause
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.text import one_line


def sentences(causes: Iterable[Cause]) -> Iterator[str]:
    """``gelu-erf: the port computes the exact GELU``; of a form, with what was read off."""
    said = set()
    for cause in causes:
        if cause.fault in CATALOGUE and cause.fault not in said:
            yield f"{cause.fault}: the port {CATALOGUE[cause.fault].summary}"
        elif cause.fault in FORMS:
            yield f"{cause.fault}: the port {FORMS[cause.fault]}: {one_line(cause.note)}"
        said.add(cause.fault)
