"""Whose queries, keys and values each head of attention takes.

Fitted is one choice for each head and each of the three: of another part (keys for queries), the
same in all heads, or of another head; or the order in which the channels of all are cut. Of N heads
each has N² scores to be told apart by, or N³ mixes where scores and pattern are hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np

from gpt_verify.diagnosis.forms.attended import by_head
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form
from gpt_verify.graph.call import Call
from gpt_verify.reference import ops
from gpt_verify.reference.weights import QKV

#: Heads that are named, and heads of which all three may come from three others.
MOST, FREE = 3, 6
#: Parts in the place of q, k and v.
Parts = tuple[int, ...]


def fits(e: Evidence) -> Iterator[Fitted]:
    pattern = e.beside("attn.pattern")
    if not np.isfinite(e.got[..., :1]).all() or pattern is None:
        return
    if e.site.kind == "attn.scores":
        yield from _other_parts(e, 2)
        yield from _cut_otherwise(e, 2)
        yield from _of_scores(e)
    elif e.site.kind == "attn.mix" and pattern in e.shown:
        yield from _cut_otherwise(e, 1)
        yield from _of_values(e)
    elif e.site.kind == "attn.mix" and e.beside("attn.scores") not in e.shown:
        yield from _other_parts(e, 3)
        yield from _cut_otherwise(e, 3)
        yield from _of_mix(e)


def _three(call: Call) -> tuple[Array, Array, Array]:
    """[H, T, K] each, of a model that has them in one site."""
    return call.heads()


def _attended(call: Call, q: Array, k: Array, v: Array | None = None) -> Array:
    """The scores; the mix where there are values. As much of each as has heads."""
    scores = ops.attention_scores(q, k, call.config.keys.scale)
    if v is None:
        return scores
    pattern = ops.causal_softmax(scores, call.config.window(call.layer))
    return ops.side_by_side(pattern @ v)


def _other_parts(e: Evidence, n: int) -> Iterator[Fitted]:
    """Keys for queries and the like, in all heads."""
    if not e.config.keys.fused:
        return

    def made(call: Call, parts: Parts) -> Array:
        three = _three(call)
        return _attended(call, *(three[part] for part in parts))

    tried = product(range(3), repeat=n)
    best = min(tried, key=lambda parts: _apart(e, made(e.call, parts)))
    words = [f"takes {QKV[part]} for {QKV[i]}" for i, part in enumerate(best) if part != i]
    yield e.alone(lambda call: made(call, best), ", ".join(words))


def _cut_otherwise(e: Evidence, n: int) -> Iterator[Fitted]:
    """What c_attn makes, cut into parts, heads and channels in another order.

    Args:
        n: 3 where queries, keys and values are all to be found, 2 without values, 1 for those.
    """
    if not e.config.keys.fused:
        return

    def made(call: Call, cut: tuple[int, ...], parts: Parts) -> Array:
        found = _cut(call, cut)
        if n == 1:
            return ops.side_by_side(call.x @ found[parts[2]])
        return _attended(call, *(found[part] for part in parts[:n]))

    tried = product(list(permutations(range(3)))[1:], permutations(range(3)))
    cut, parts = min(tried, key=lambda one: _apart(e, made(e.call, *one)))
    sizes = ", ".join(("part", "head", "channel")[axis] for axis in cut)
    order = "" if parts == (0, 1, 2) else f", the parts in the order {' '.join(map(str, parts))}"
    words = f"c_attn's output is cut as [{sizes}], not as [part, head, channel]{order}"
    yield e.alone(lambda call: made(call, cut, parts), words)


def _cut(call: Call, cut: tuple[int, ...]) -> Array:
    """[part, head, T, channel], of channels that lie in another order."""
    qkv = call.at("attn.qkv")
    sizes = (len(QKV), call.config.n_head, call.config.head_size)
    split = qkv.reshape(len(qkv), *(sizes[axis] for axis in cut))
    return split.transpose(cut.index(0) + 1, cut.index(1) + 1, 0, cut.index(2) + 1)


def _apart(e: Evidence, predicted: Array) -> float:
    difference = predicted - e.got
    if e.got.ndim == 3:
        difference = np.where(np.tri(*e.got.shape[-2:], dtype=np.bool_), difference, 0.0)
    power = float(np.sum(difference * difference))
    return power if np.isfinite(power) else np.inf


def _of_scores(e: Evidence) -> Iterator[Fitted]:
    q, k = e.call.part("q"), e.call.part("k")
    below = np.tri(q.shape[1], k.shape[1], dtype=np.bool_)
    chosen: list[tuple[int, ...]] = []
    for got in e.got:
        every = np.stack([_attended(e.call, q_TK[None], k) for q_TK in q])
        left = np.sum(np.where(below, every - got, 0.0) ** 2, axis=(2, 3))
        i, j = np.unravel_index(np.argmin(np.nan_to_num(left, nan=np.inf)), left.shape)
        chosen.append((int(i), int(j)))
    i_H, j_H = (list(some) for some in zip(*chosen, strict=True))
    yield e.alone(
        lambda call: _attended(call, call.part("q")[i_H], call.part("k")[j_H]),
        _words(chosen, ("queries", "keys")),
    )


def _of_values(e: Evidence) -> Iterator[Fitted]:
    v, pattern = e.call.part("v"), e.call.x
    got = by_head(e.got, len(v))
    chosen = [
        int(np.argmin(np.sum((pattern[h] @ v - got[h]) ** 2, axis=(1, 2)))) for h in range(len(v))
    ]
    yield e.alone(
        lambda call: ops.side_by_side(call.x @ call.part("v")[chosen]),
        _words([(j,) for j in chosen], ("values",)),
    )


def _of_mix(e: Evidence) -> Iterator[Fitted]:
    if not e.config.keys.fused:
        return
    q, k, v = _three(e.call)
    n, got = len(q), by_head(e.got, len(q))
    chosen: list[tuple[int, ...]] = []
    for h in range(n):
        some = (
            list(product(range(n), repeat=3))
            if n <= FREE
            else [(i, g, g) for g in range(n) for i in (h, g)] + [(h, h, g) for g in range(n)]
        )
        left = [
            np.sum((_attended(e.call, q[[i]], k[[j]], v[[g]]) - got[h]) ** 2) for i, j, g in some
        ]
        chosen.append(some[int(np.argmin(left))])
    i_H, j_H, g_H = (list(one) for one in zip(*chosen, strict=True))

    def act(call: Call) -> Array:
        q, k, v = _three(call)
        return _attended(call, q[i_H], k[j_H], v[g_H])

    yield e.alone(act, _words(chosen, ("queries", "keys", "values")))


def _words(chosen: Sequence[tuple[int, ...]], whose: Sequence[str]) -> str:
    words = []
    for h, some in enumerate(chosen):
        other = [f"the {what} of {i}" for i, what in zip(some, whose, strict=True) if i != h]
        if other:
            words.append(f"head {h} takes {' and '.join(other)}")
    more = f", and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more


FORM = Form("heads-elsewhere", "takes other queries, keys or values", fits)
