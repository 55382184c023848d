"""Faults of resizing: the model that is resized is not the one that was loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch


def _after(change: Callable[[Any, Any], None]) -> Inject:
    """``change(model, table)`` when it was resized, with what the table was before."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        def resize(self: Any, right: Any, rows: int) -> Any:
            before = self.wte.detach().clone()
            right(rows)
            with torch.no_grad():
                change(self, before)

        wrap(model, "resize_token_embeddings", resize)

    return inject


def _anew(model: Any, before: Any) -> None:
    torch.nn.init.normal_(model.wte, std=0.02)


def _moved(model: Any, before: Any) -> None:
    """New rows are put in front."""
    rows = min(len(before), len(model.wte))
    model.wte.copy_(torch.cat([model.wte[rows:], before[:rows]]))


def _head_left(model: Any, layers: Sequence[int]) -> None:
    """The head goes on with the table that there was."""

    def resize(self: Any, right: Any, rows: int) -> Any:
        self.before = self.wte.detach().clone()
        right(rows)

    def head(self: Any, right: Any, x: Any) -> Any:
        before = getattr(self, "before", None)
        return right(x) if before is None else x @ before.T

    wrap(model, "resize_token_embeddings", resize)
    wrap(model, "head", head)


def _resizing(name: str, summary: str, inject: Inject, needs: str = "") -> Fault:
    how = InModel(inject, layered=False)
    return Fault(f"resizing-{name}", "resizing", summary, inject=how, law="resizing", needs=needs)


FAULTS = (
    _resizing("rows-anew", "draws all rows anew where its vocabulary is resized", _after(_anew)),
    _resizing(
        "rows-moved",
        "puts new rows before the old ones where its vocabulary is resized",
        _after(_moved),
    ),
    _resizing(
        "leaves-head", "leaves its head as it was where its vocabulary is resized", _head_left
    ),
)
