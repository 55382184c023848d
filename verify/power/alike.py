"""Faults that are one function of a model, so that no port can show which of them it has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.diagnosis.deviations import BLIND
from gpt_verify.faults.fault import Fault
from gpt_verify.findings import PortReport
from gpt_verify.graph.run import run
from gpt_verify.inputs import Input
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.power.injection import Injection

Floats = NDArray[np.floating]


def same_function(
    checkpoint: Checkpoint, inputs: Sequence[Input], injection: Injection, report: PortReport
) -> tuple[str, ...]:
    """The faults that a report names beside the one that was injected, or in its place, and that
    make the same of this model: in the same layers, from the tokens to the logits of these inputs,
    in float64."""
    fault = CATALOGUE[injection.fault]
    named = {*report.explained_by, *(name for cause in report.causes for name in cause.instead)}
    others = [CATALOGUE[name] for name in sorted(named - {fault.name}) if name in CATALOGUE]
    if not fault.predicted or not others:
        return ()
    own = _logits(checkpoint, inputs, fault, injection.layers)
    return tuple(
        other.name
        for other in others
        if other.predicted and _equal(own, _logits(checkpoint, inputs, other, injection.layers))
    )


def _logits(
    checkpoint: Checkpoint, inputs: Sequence[Input], fault: Fault, layers: Sequence[int]
) -> list[Floats] | None:
    """Those of each row with a fault, float64[T, V]; None where these sizes do not have it."""
    config, lookup = checkpoint.config, checkpoint.tensors.__getitem__
    overrides, found = fault.overrides(config, layers), []
    try:
        with np.errstate(all="ignore"):
            for tokens_T in (row for item in inputs for row in item.tokens):
                *_, (_, logits_TV) = run(lookup, config, tokens_T, overrides)
                found.append(logits_TV)
    except (KeyError, ValueError, IndexError):
        return None
    return found


def _equal(one: list[Floats] | None, other: list[Floats] | None) -> bool:
    """But for what rounding in float64 leaves: any fault moves logits much further."""
    if one is None or other is None:
        return False
    pairs = zip(one, other, strict=True)
    return all(bool(np.max(np.abs(a - b)) <= BLIND * np.max(np.abs(a))) for a, b in pairs)
