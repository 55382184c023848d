"""Faults of what is handed out: the logits are correct, and what is shown beside them is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt_verify.faults.fault import Fault, InModel
from gpt_verify.faults.inject import wrap


def _outputs(name: str, law: str, summary: str, method: str, change: Callable[..., Any]) -> Fault:
    """``change(right(...))`` in place of what ``method`` hands out."""

    def inject(model: Any, layers: Any) -> None:
        wrap(model, method, lambda self, right, *given: change(right, *given))

    return Fault(
        f"outputs-{name}", "outputs", summary, inject=InModel(inject, layered=False), law=law
    )


_STATES, _PATTERNS = "outputs.states", "outputs.patterns"
FAULTS = (
    _outputs(
        "states-off-by-one",
        _STATES,
        "hands out the streams before its blocks twice, and so each state one place late",
        "states",
        lambda right, streams, normed: [streams[0], *right(streams, normed)[:-1]],
    ),
    _outputs(
        "patterns-before-softmax",
        _PATTERNS,
        "hands out the scores as attentions, as they are before the softmax",
        "patterns",
        lambda right, scores, patterns: scores,
    ),
    _outputs(
        "patterns-transposed",
        _PATTERNS,
        "hands out attentions with targets and sources exchanged",
        "patterns",
        lambda right, scores, patterns: [p.transpose(-1, -2) for p in right(scores, patterns)],
    ),
    _outputs(
        "patterns-averaged",
        _PATTERNS,
        "hands out the mean over the heads, as torch's MultiheadAttention does",
        "patterns",
        lambda right, scores, patterns: [p.mean(1) for p in right(scores, patterns)],
    ),
    _outputs(
        "patterns-of-another-layer",
        _PATTERNS,
        "hands out the attentions of its layers in the wrong order",
        "patterns",
        lambda right, scores, patterns: right(scores, patterns)[::-1],
    ),
)
