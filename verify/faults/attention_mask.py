"""Faults of the causal mask: who sees whom, and what hides the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.faults.attention import attention
from gpt_verify.faults.fault import Fault
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.ops import Array, attention_mix, attention_scores, softmax

#: [T, 1] targets and [1, S] sources → which source a target may see.
Allowed = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]

#: Rows or columns of a kernel's tile, and positions in a window: seen in 17 tokens or more.
TILE = 16
LONGER = f"more than {TILE} tokens"


def _places(call: Call) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    t, s = call.x.shape[-2:]
    return np.arange(t)[:, None], np.arange(s)[None, :]


def _causal(call: Call) -> NDArray[np.bool_]:
    t_T1, s_1S = _places(call)
    return s_1S <= t_T1


def _scores(call: Call) -> Array:
    """Scores of every pair: a port may show something else where the causal mask hides them."""
    return np.where(_causal(call), call.x, attention_scores(*call.heads()[:2]))


def _seen(allowed: Allowed, call: Call) -> Array:
    """Where a target sees nobody all are equally far off, and it looks at all alike."""
    visible_TS = allowed(*_places(call))
    return softmax(np.where(visible_TS, _scores(call), np.finfo(call.x.dtype).min))


def _unseen(allowed: Allowed, call: Call) -> Array:
    """The scores as they enter the softmax: what is masked is as low as can be."""
    scores_HTS = right(call)
    t, s = scores_HTS.shape[-2:]
    visible_TS = allowed(np.arange(t)[:, None], np.arange(s)[None, :])
    return np.where(visible_TS, scores_HTS, -np.inf)


def _mask(
    name: str,
    summary: str,
    allowed: Allowed,
    in_torch: Any,
    seen: str = "",
    hides: bool = False,
    **more: Any,
) -> Fault:
    """``in_torch(attention, targets [T], sources [S])``; ``hides``: some that should be seen."""
    operations: dict[str, Override] = {"pattern": partial(_seen, allowed)}
    if hides:
        operations["scores"] = partial(_unseen, allowed)
    return attention(name, summary, operations, {"allowed": in_torch}, seen, **more)


def _hidden(hide: Callable[[Array, NDArray[np.bool_]], Array], call: Call) -> Array:
    return softmax(hide(_scores(call), _causal(call)))


def _hides(
    name: str,
    summary: str,
    hide: Callable[[Array, NDArray[np.bool_]], Array],
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """Scores [H, T, S] and who may be seen → the scores that enter the softmax."""
    return attention(
        name,
        summary,
        {"pattern": partial(_hidden, hide)},
        {"mask": lambda attn, scores, allowed: in_torch(scores, allowed)},
        seen,
        **more,
    )


def _cut_afterwards(call: Call) -> Array:
    return attention_mix(np.where(_causal(call), call.x, 0.0), call.heads()[2])


def _torch_cut_afterwards(attn: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
    return attn.mix(attn.softmax(attn.scores(q, k)) * allowed, v)


FAULTS = (
    _mask(
        "attention-mask-ahead",
        "lets each position see the next one",
        lambda t, s: s <= t + 1,
        lambda attn, targets, sources: sources[None, :] - targets[:, None] < 2,
        "torch.triu(…, diagonal=2) for the mask, or tril(…, diagonal=1)",
    ),
    _mask(
        "attention-mask-strict",
        "lets no position see itself",
        lambda t, s: s < t,
        lambda attn, targets, sources: targets[:, None] - sources[None, :] >= 1,
        "torch.triu(…, diagonal=0) for the mask, or tril(…, diagonal=-1)",
        hides=True,
    ),
    _mask(
        "attention-mask-missing",
        "has no causal mask: every position sees every other",
        lambda t, s: np.ones((t.size, s.size), bool),
        lambda attn, t, s: torch.ones(len(t), len(s), dtype=torch.bool, device=t.device),
        "scaled_dot_product_attention without is_causal",
    ),
    _mask(
        "attention-mask-reversed",
        "lets each position see itself and those after it, not those before it",
        lambda t, s: s >= t,
        lambda attn, targets, sources: targets[:, None] <= sources[None, :],
        "torch.triu for torch.tril",
        hides=True,
    ),
    _mask(
        "attention-mask-window",
        f"lets each position see only the last {TILE}",
        lambda t, s: (s <= t) & (t - s < TILE),
        lambda attn, t, s: torch.where(s > t[:, None], False, s + TILE > t[:, None]),
        "the local attention of every other layer in GPT-Neo",
        hides=True,
        needs=LONGER,
    ),
    _mask(
        "attention-mask-tile-leak",
        f"lets the last position of each tile of {TILE} see the first of the next",
        lambda t, s: s <= t + (t % TILE == TILE - 1),
        lambda attn, t, s: s[None, :] <= torch.where((t + 1) % TILE == 0, t + 1, t)[:, None],
        needs=LONGER,
    ),
    _mask(
        "attention-mask-tile-whole",
        f"lets each position see all of its tile of {TILE}",
        lambda t, s: s // TILE <= t // TILE,
        lambda attn, t, s: s[None, :] < (t - t % TILE + TILE)[:, None],
        "a kernel that masks whole tiles, and leaves out the mask inside the diagonal one",
    ),
    _hides(
        "attention-mask-zero",
        "multiplies the scores by the mask, so that a masked score is 0",
        lambda scores, causal: scores * causal,
        lambda scores, allowed: torch.where(allowed, scores, 0.0),
    ),
    _hides(
        "attention-mask-weak",
        "subtracts 10 from the scores that are masked, not enough to hide them",
        lambda scores, causal: scores - 10.0 * ~causal,
        lambda scores, allowed: torch.where(allowed, scores, scores - 10),
    ),
    _hides(
        "attention-mask-1e4",
        "sets masked scores to -1e4, which changes nothing while the scores are ordinary",
        lambda scores, causal: np.where(causal, scores, -1e4),
        lambda scores, allowed: scores.masked_fill(~allowed, -1e4),
        "masked_bias of transformers' modeling_gpt2.py up to version 4",
        law=None,
        needs="scores below -9,000; otherwise every law must pass",
    ),
    _hides(
        "attention-mask-lowest-added",
        "adds the lowest finite number to masked scores, which changes nothing",
        lambda scores, causal: scores + np.where(causal, 0, np.finfo(scores.dtype).min),
        lambda scores, allowed: (
            scores + torch.finfo(scores.dtype).min * (~allowed).to(scores.dtype)
        ),
        "the additive masks of transformers",
        law=None,
        needs="nothing: every law must pass",
    ),
    attention(
        "attention-mask-after-softmax",
        "takes the softmax over all positions, and then cuts off those that are masked",
        {"pattern": lambda call: softmax(_scores(call)), "mix": _cut_afterwards},
        {"attend": _torch_cut_afterwards},
    ),
)
