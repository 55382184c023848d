"""Faults at the end of the position table: what it takes beyond it, where GPT-2 refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as with_values
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch

#: More than anybody asks for.
_ENDLESS = 1 << 20


def _inject_longer(row: Callable[[Any], Any], model: Any, layers: Sequence[int]) -> None:
    """Any length is taken; positions beyond the table have ``row(wpe)``."""
    size = model.config.n_ctx

    def embed(self: Any, right: Any, ids: Any, at: Any) -> Any:
        x = right(ids, at.clamp(max=size - 1))
        beyond = (at >= size)[..., None]
        return torch.where(beyond, x - self.wpe[-1] + row(self.wpe), x)

    wrap(model, "embed", embed)
    model.config = with_values(model.config, n_ctx=_ENDLESS)


def _inject_cut(keep: slice, model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        ids = ids[:, keep] if ids.shape[1] > self.config.n_ctx else ids
        return right(ids, *args, **kwargs)

    wrap(model, "forward", forward)


def _cache_rolls_on(model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        if (past := kwargs.get("past_key_values")) is not None:
            room = self.config.n_ctx - ids.shape[1]
            kwargs["past_key_values"] = [(k[:, :, -room:], v[:, :, -room:]) for k, v in past]
        return right(ids, *args, **kwargs)

    wrap(model, "forward", forward)


def _refusal_breaks_it(model: Any, layers: Sequence[int]) -> None:
    """As on a GPU after an assertion of the device."""
    model.broken = False

    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        if self.broken:
            raise RuntimeError("device-side assert triggered")
        try:
            return right(*args, **kwargs)
        except IndexError:
            self.broken = True
            raise

    wrap(model, "forward", forward)


def _positions(name: str, summary: str, in_model: Inject, seen: str = "") -> Fault:
    inject = InModel(in_model, layered=False)
    return Fault(f"positions-{name}", "positions", summary, seen, inject, law="positions.beyond")


FAULTS = (
    _positions(
        "beyond-clipped",
        "gives positions beyond the table its last row",
        partial(_inject_longer, lambda wpe_PD: wpe_PD[-1]),
        "jax.numpy.take and indexing in JAX, which clip",
    ),
    _positions(
        "beyond-wrapped",
        "takes positions modulo n_ctx",
        partial(_inject_longer, lambda wpe_PD: wpe_PD[0]),
    ),
    _positions(
        "beyond-zero",
        "gives positions beyond the table zeros",
        partial(_inject_longer, lambda wpe_PD: torch.zeros_like(wpe_PD[0])),
        "tf.gather on a GPU, whose documentation says so",
    ),
    _positions(
        "beyond-oldest-dropped",
        "cuts what is too long at its beginning, without a word",
        partial(_inject_cut, slice(1, None)),
    ),
    _positions(
        "beyond-newest-dropped",
        "cuts what is too long at its end, without a word",
        partial(_inject_cut, slice(None, -1)),
    ),
    _positions(
        "cache-rolls-on",
        "makes room in a full cache by forgetting the oldest token",
        _cache_rolls_on,
    ),
    _positions(
        "refusal-breaks",
        "cannot be used any more after it has refused what is too long",
        _refusal_breaks_it,
    ),
)
