"""Ports that are right for one sequence and wrong for several. Each alters ``verify.faults.model``
except the last ones, which alter what is around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def positions_run_on(model: Any) -> None:
    """Positions are counted over the flattened batch."""

    def positions(ids: Tensor, past: int, real: Any) -> Tensor:
        return torch.arange(ids.numel()).reshape(ids.shape) % model.config.n_ctx

    model.positions = positions


def batch_attended_as_one(model: Any) -> None:
    """The rows are packed into one sequence, without a mask between them."""
    for block in model.h:
        right = block.attn.attend

        def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, right: Any = right) -> Tensor:
            rows, _, length, _ = q.shape
            q, k, v = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v))
            every = torch.ones(rows * length, rows * length, dtype=torch.bool).tril()
            mixed = right(q, k, v, every)
            return mixed[0].unflatten(1, (rows, length)).transpose(0, 1)

        block.attn.attend = attend


def batch_is_one_sequence(model: Any) -> None:
    """Both: the batch is flattened before the model and folded up after it."""
    right = model.forward

    def forward(ids: Tensor) -> Any:
        output = right(ids.reshape(1, -1))
        return {"logits": output["logits"].reshape(*ids.shape, -1)}

    model.forward = forward


def norm_over_the_batch(model: Any) -> None:
    """The statistics of a layer norm are taken over the rows as well."""
    norm = model.h[1].ln_1

    def normalise(x: Tensor) -> Tensor:
        centred = x - x.mean((0, -1), keepdim=True)
        variance = centred.pow(2).mean((0, -1), keepdim=True)
        return centred * torch.rsqrt(variance + norm.eps)

    norm.normalise = normalise


def rows_are_averaged(model: Any) -> None:
    """A thousandth of the mean over the batch leaks into every row."""
    right = model.embed

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        x = right(ids, positions)
        return torch.lerp(x, x.mean(0, keepdim=True), 1e-3)

    model.embed = embed


def first_row_for_all(model: Any) -> None:
    """Keys and values of the first row are broadcast to the others."""
    for block in model.h:
        right = block.attn.attend

        def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, right: Any = right) -> Tensor:
            return right(q, k[:1].expand_as(k), v[:1].expand_as(v), allowed)

        block.attn.attend = attend


def rows_reversed(model: Any) -> None:
    """The logits come back in the opposite order, as from a queue that was read from its end."""
    right = model.head
    model.head = lambda x: right(x).flip(0)


def last_row_dropped(model: Any) -> None:
    """The last row of a batch is computed as zeros: a kernel's grid is one block short."""
    right = model.head

    def head(x: Tensor) -> Tensor:
        logits = right(x)
        if len(logits) > 1:
            logits = logits.clone()
            logits[-1] = 0
        return logits

    model.head = head


def single_row_in_bfloat16(model: Any) -> None:
    """One sequence takes a fast path, in half precision."""
    right = model.head
    model.head = lambda x: right(x if len(x) > 1 else x.bfloat16().to(x.dtype))
