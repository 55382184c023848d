"""Faults that a single sequence does not show: rows of a batch that are mixed up, or that leak.

``gpt_verify.laws.batch.check`` finds them, and makes some of the same mistakes with the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch

_STEPS, _TILE = 256, 8


def _positions_run_on(model: Any, layers: Sequence[int]) -> None:
    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        return (past + torch.arange(ids.numel()).reshape(ids.shape)) % self.config.n_ctx

    wrap(model, "positions", positions)


def _attended_as_one(model: Any, layers: Sequence[int]) -> None:
    def attend(self: Any, right: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
        rows, _, length, _ = q.shape
        q, k, v = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v))
        every = torch.ones(rows * length, rows * length, dtype=torch.bool).tril()
        return right(q, k, v, every)[0].unflatten(1, (rows, length)).transpose(0, 1)

    for block in model.blocks(layers):
        wrap(block.attn, "attend", attend)


def _every_row(model: Any, layers: Sequence[int]) -> None:
    def attend(self: Any, right: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
        rows, _, length, _ = q.shape
        k, v = (x.transpose(0, 1).flatten(1, 2)[None].expand(rows, -1, -1, -1) for x in (k, v))
        return right(q, k, v, torch.ones(length, length, dtype=torch.bool).tril().repeat(1, rows))

    for block in model.blocks(layers):
        wrap(block.attn, "attend", attend)


def _first_row_for_all(model: Any, layers: Sequence[int]) -> None:
    def attend(self: Any, right: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
        return right(q, k[:1].expand_as(k), v[:1].expand_as(v), allowed)

    for block in model.blocks(layers):
        wrap(block.attn, "attend", attend)


def _as_one_sequence(model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        if args or any(value is not None and value is not False for value in kwargs.values()):
            return right(ids, *args, **kwargs)
        packed = ids.reshape(1, -1).split(self.config.n_ctx, dim=1)
        logits = torch.cat([right(tokens)["logits"] for tokens in packed], dim=1)
        return {"logits": logits.reshape(*ids.shape, -1)}

    wrap(model, "forward", forward)


def _norm_over_rows(model: Any, layers: Sequence[int]) -> None:
    def normalise(self: Any, right: Any, x: Any) -> Any:
        centred = x - x.mean((0, -1), keepdim=True)
        variance = centred.pow(2).mean((0, -1), keepdim=True)
        return centred * torch.rsqrt(variance + self.eps)

    for norm in model.norms(layers):
        wrap(norm, "normalise", normalise)


def _rows_reversed(model: Any, layers: Sequence[int]) -> None:
    wrap(model, "head", lambda self, right, x: right(x).flip(0))


def _last_row(model: Any, layers: Sequence[int]) -> None:
    def head(self: Any, right: Any, x: Any) -> Any:
        logits = right(x)
        if len(logits) == 1:
            return logits
        return torch.cat([logits[:-1], torch.zeros_like(logits[-1:])])

    wrap(model, "head", head)


def _single_row(model: Any, layers: Sequence[int]) -> None:
    def head(self: Any, right: Any, x: Any) -> Any:
        return right(x if len(x) > 1 else torch.round(x * _STEPS) / _STEPS)

    wrap(model, "head", head)


def _large(model: Any, layers: Sequence[int]) -> None:
    def head(self: Any, right: Any, x: Any) -> Any:
        return right(x if len(x) <= _TILE else torch.round(x * _STEPS) / _STEPS)

    wrap(model, "head", head)


def _batch(name: str, summary: str, in_model: Inject, seen: str = "", law: str = "batch") -> Fault:
    inject = InModel(in_model, layered=False)
    return Fault(f"batch-{name}", "batch", summary, seen, inject, law=law)


FAULTS = (
    _batch(
        "positions-run-on",
        "counts positions over the flattened batch",
        _positions_run_on,
    ),
    _batch(
        "attended-as-one",
        "packs the rows into one sequence, without a mask between them",
        _attended_as_one,
        "packing for training without a mask between samples (huggingface/trl#784)",
    ),
    _batch(
        "as-one-sequence",
        "packs the rows into sequences as long as the context, and unpacks them after the model",
        _as_one_sequence,
    ),
    _batch(
        "every-row",
        "lets every row see the tokens of all rows up to its own position",
        _every_row,
    ),
    _batch(
        "first-row-for-all",
        "broadcasts keys and values of the first row to the others",
        _first_row_for_all,
    ),
    _batch(
        "norm-over-rows",
        "takes the statistics of a layer norm over the rows as well",
        _norm_over_rows,
    ),
    _batch(
        "rows-reversed",
        "returns the rows in the opposite order, as from a queue that is read from its end",
        _rows_reversed,
    ),
    _batch(
        "last-row",
        "leaves the last row of a batch out, as a kernel does whose grid is one block short",
        _last_row,
    ),
    _batch(
        "single-row",
        f"has a path of its own for a single row, whose head reads in steps of 1/{_STEPS}",
        _single_row,
    ),
    _batch(
        "large",
        f"has a path of its own for more than {_TILE} rows, whose head reads in steps "
        f"of 1/{_STEPS}",
        _large,
        law="batch.sizes",
    ),
)
