"""Faults of the cache of keys and values: a plain pass is correct, and decoding in pieces is not.

The oracle makes the same mistakes in ``gpt_verify.laws.cache.hypotheses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch

#: Tokens that a cache has room for, where it has too little.
ROOM = 12


def _inject_positions(
    place: Callable[[Any, int, int], Any], model: Any, layers: Sequence[int]
) -> None:
    """``place(right positions, past, n_ctx)`` where a cache is handed in."""

    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        asked = right(ids, past, real)
        return place(asked, past, self.config.n_ctx) if past else asked

    wrap(model, "positions", positions)


def _inject_stuck(model: Any, layers: Sequence[int]) -> None:
    """The length of the prompt stays the length of the cache."""

    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        if past == 0:
            self.prompt = ids.shape[1]
        return right(ids, self.prompt if past else 0, real)

    wrap(model, "positions", positions)


def _inject_calls(model: Any, layers: Sequence[int]) -> None:
    """The number of calls is taken for that of tokens."""

    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        self.calls = self.calls + 1 if past else 0
        return right(ids, self.calls, real)

    wrap(model, "positions", positions)


def _inject_sources(seen: Callable[[Any, Any], Any], model: Any, layers: Sequence[int]) -> None:
    """``seen(targets, sources)`` where a cache is handed in."""

    def allowed(self: Any, right: Any, targets: Any, sources: Any) -> Any:
        if len(targets) == len(sources):
            return right(targets, sources)
        return seen(targets, sources)

    for block in model.blocks(layers):
        wrap(block.attn, "allowed", allowed)


def _inject_loss_of_entries(keep: slice, model: Any, layers: Sequence[int]) -> None:
    """What is left of the cache when a call adds to it."""

    def extend(self: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
        return right(None if past is None else tuple(x[:, :, keep] for x in past), k, v)

    for block in model.blocks(layers):
        wrap(block.attn, "extend", extend)


def _inject_caches(
    change: Callable[[list[Any]], list[Any]], model: Any, layers: Sequence[int]
) -> None:
    """``change(keys and values of all blocks)`` on its way out."""

    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        output = right(*args, **kwargs)
        if "past_key_values" in output:
            output["past_key_values"] = change(output["past_key_values"])
        return output

    wrap(model, "forward", forward)


def _each(change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda caches: [(change(k), change(v)) for k, v in caches]


def _all_of_one(layer: int) -> Callable[[list[Any]], list[Any]]:
    return lambda caches: [caches[layer]] * len(caches)


def _triangle(targets: Any, sources: Any) -> Any:
    return sources[None, :] <= targets[:, None]


def _cache(
    name: str,
    summary: str,
    in_model: Inject,
    seen: str = "",
    needs: str = "",
    entails: tuple[str, ...] = (),
) -> Fault:
    return Fault(
        f"cache-{name}",
        "cache",
        summary,
        seen,
        InModel(in_model, layered=False),
        law="cache",
        needs=needs,
        entails=entails,
    )


FAULTS = (
    _cache(
        "positions-restart",
        "counts the positions of every call from zero",
        partial(_inject_positions, lambda asked, past, n_ctx: asked - past),
    ),
    _cache(
        "positions-stuck",
        "takes the length of the prompt for that of the cache, however many tokens followed",
        _inject_stuck,
    ),
    _cache(
        "positions-of-calls",
        "counts calls, not tokens, for the position at which a call begins",
        _inject_calls,
    ),
    _cache(
        "position-of-call",
        "gives all tokens of a call the position of the first",
        partial(_inject_positions, lambda asked, past, n_ctx: torch.full_like(asked, past)),
        # Of one token that is the cache's length, whatever of it is padding.
        entails=("padding-cache-positions",),
    ),
    _cache(
        "positions-ahead",
        "counts the tokens in the cache one too high",
        partial(_inject_positions, lambda asked, past, n_ctx: (asked + 1) % n_ctx),
    ),
    _cache(
        "positions-behind",
        "takes the index of the last cached token for the number of them",
        partial(_inject_positions, lambda asked, past, n_ctx: asked - 1),
    ),
    _cache(
        "last-position-clipped",
        "decodes the last position of the context at the one before it",
        partial(_inject_positions, lambda asked, past, n_ctx: asked.clamp(max=n_ctx - 2)),
    ),
    _cache(
        "not-read",
        "attends to the tokens of the call only",
        partial(
            _inject_sources,
            lambda t, s: _triangle(t, s) & (s[None, :] >= t[0]),
        ),
    ),
    _cache(
        "first-token-lost",
        "cuts the first token off the cache",
        partial(_inject_sources, lambda t, s: _triangle(t, s) & (s[None, :] > 0)),
    ),
    _cache(
        "oldest-lost",
        "makes room for every call although there is room",
        partial(_inject_loss_of_entries, slice(1, None)),
    ),
    _cache(
        "newest-lost",
        "overwrites the last entry of the call before with the first of this one",
        partial(_inject_loss_of_entries, slice(None, -1)),
    ),
    _cache(
        "no-mask",
        "has no mask where there is a cache, because one token at a time needs none",
        partial(_inject_sources, lambda t, s: torch.ones(len(t), len(s), dtype=torch.bool)),
    ),
    _cache(
        "mask-upper-left",
        "aligns the mask with the oldest cached token (is_causal with a cache)",
        partial(
            _inject_sources,
            lambda t, s: torch.ones(len(t), len(s), dtype=torch.bool).tril(),
        ),
    ),
    _cache(
        "window",
        f"sees only the last {ROOM} tokens where there is a cache",
        partial(
            _inject_sources,
            lambda t, s: _triangle(t, s) & (t[:, None] - s[None, :] < ROOM),
        ),
    ),
    _cache(
        "of-last-block",
        "has one cache for all blocks, which each overwrites",
        partial(_inject_caches, _all_of_one(-1)),
        needs="a model of one block has one cache",
    ),
    _cache(
        "of-first-block",
        "reads the cache of the first block in every block",
        partial(_inject_caches, _all_of_one(0)),
        needs="a model of one block has one cache",
    ),
    _cache(
        "keys-as-values",
        "hands out values and keys in the wrong order",
        partial(_inject_caches, lambda caches: [(v, k) for k, v in caches]),
    ),
    _cache(
        "bfloat16",
        "keeps keys and values of a float32 model in bfloat16",
        partial(_inject_caches, _each(lambda x: x.bfloat16().to(x.dtype))),
        needs="a model in half precision keeps them so anyway",
    ),
    _cache(
        "float16",
        "keeps keys and values of a float32 model in float16",
        partial(_inject_caches, _each(lambda x: x.half().to(x.dtype))),
        needs="a model in half precision keeps them so anyway",
    ),
    _cache(
        "rows-exchanged",
        "gives the cache back with its rows in another order",
        partial(_inject_caches, _each(lambda x: x.flip(0))),
    ),
)
