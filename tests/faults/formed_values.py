"""More ports with mistakes that no catalogue lists: of attention's scores and pattern, of what an
operation reads, and of narrower formats. As ``formed.py``, whose means they use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from formed import Formed, Inject, acting, attending, mapping, scoring, wired
from torch.nn import functional as F

from gpt_verify.faults.inject import wrap

# What attention meets, and what becomes of its pattern


def _squares_added(scores: Any) -> Any:
    """What is added depends on the source alone."""
    return scores + 0.01 * torch.arange(scores.shape[-1], dtype=scores.dtype) ** 2


def meeting(q_of: Callable[[Any], Any], k_of: Callable[[Any], Any]) -> Inject:
    return attending("scores", lambda attn, right, q, k: right(q_of(q), k_of(k)))


def _same(x: Any) -> Any:
    return x


def _mean_square_one(x: Any) -> Any:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def in_half(dtype: Any) -> Callable[[Any], Any]:
    return lambda x: x.to(dtype).to(x.dtype)


def patterned(change: Callable[[Any], Any]) -> Inject:
    """Where the port shows it."""
    return attending("softmax", lambda attn, right, scores: change(right(scores)))


def mixing(p_of: Callable[[Any], Any], v_of: Callable[[Any], Any]) -> Inject:
    """After the port has shown it."""
    return attending("mix", lambda attn, right, pattern, v: right(p_of(pattern), v_of(v)))


def _above_a_tenth(pattern: Any) -> Any:
    kept = pattern * (pattern >= 0.1)
    return kept / kept.sum(-1, keepdim=True).clamp(min=1e-30)


def _three_largest(pattern: Any) -> Any:
    if pattern.shape[-1] <= 3:
        return pattern
    least = pattern.topk(3, dim=-1).values[..., -1:]
    return pattern * (pattern >= least)


def _half_more_below(attn: Any, right: Any, scores: Any) -> Any:
    powers = scores.exp()
    return powers / (powers.sum(-1, keepdim=True) + 0.5)


def _waves(model: Any) -> None:
    def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
        half = self.wpe.shape[1] // 2
        rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = (positions + 1)[..., None] * rates
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        return F.embedding(ids, self.wte) + 0.5 * waves.to(self.wte.dtype)

    wrap(model, "embed", embed)


def _rows_no_longer_than(most: float) -> Inject:
    """As ``F.embedding`` with ``max_norm`` would, were it not to write to its table."""

    def inject(model: Any) -> None:
        def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
            rows = F.embedding(ids, self.wte)
            length = rows.norm(dim=-1, keepdim=True)
            rows = torch.where(length > most, rows * (most / (length + 1e-7)), rows)
            return rows + F.embedding(positions, self.wpe)

        wrap(model, "embed", embed)

    return inject


def _second_row(row_of: Callable[[Any, int], Any]) -> Inject:
    """As of two shards of a vocabulary, of which neither hides what it does not have."""

    def inject(model: Any) -> None:
        def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
            more = F.embedding(row_of(ids, len(self.wte)), self.wte)
            return right(ids, positions) + more

        wrap(model, "embed", embed)

    return inject


def _norms_in_half(model: Any) -> None:
    for block in model.h:
        wrap(
            block.ln_2,
            "forward",
            lambda norm, right, x: right(x.half().to(x.dtype)).half().to(x.dtype),
        )


def _through_silu(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
    x = x + attend(x)
    return x + F.silu(mlp(x))


def _in_tiles(size: int, running: bool, attn: Any, right: Any, scores: Any) -> Any:
    """A softmax tile by tile: each with the maximum so far, and none scaled anew; or each divided
    by its own sum, and the parts added up with equal weights."""
    tiles = scores.split(size, -1)
    tops = torch.stack([tile.amax(-1) for tile in tiles])
    if not running:
        each = [
            tile.softmax(-1) * (top > -1e3)[..., None]
            for tile, top in zip(tiles, tops, strict=True)
        ]
        return torch.cat(each, -1) / len(tiles)
    tops = tops.cummax(0).values
    found = [(tile - top[..., None]).exp() for tile, top in zip(tiles, tops, strict=True)]
    return torch.cat(found, -1) / (scores - tops[-1][..., None]).exp().sum(-1, keepdim=True)


def _first_eight_doubled(pattern: Any) -> Any:
    at = torch.arange(pattern.shape[-1])
    return torch.where((at < 8) & (at.max() >= 8), 2 * pattern, pattern)


def _last_block_for_the_last_token(model: Any) -> None:
    def wire(own: Any, right: Any, x: Any, attend: Any) -> Any:
        return torch.cat([x[:, :-1], right(x, attend)[:, -1:]], 1)

    wrap(model.h[2], "wire", wire)


def _statistics_of_the_first_stream(model: Any) -> None:
    """Of the second norm of block 1: mean and deviation before attention was added."""
    block = model.h[1]

    def forward(norm: Any, right: Any, x: Any) -> Any:
        before = block.stream
        root = (before.var(-1, keepdim=True, correction=0) + 1e-5).rsqrt()
        return (x - before.mean(-1, keepdim=True)) * root * norm.weight + norm.bias

    def wire(own: Any, right: Any, x: Any, attend: Any) -> Any:
        block.stream = x
        return right(x, attend)

    wrap(block, "wire", wire)
    wrap(block.ln_2, "forward", forward)


def _last_norm_before(layer: int) -> Inject:
    def inject(model: Any) -> None:
        wrap(
            model.h[layer],
            "wire",
            lambda own, right, x, attend: right(model.ln_f(x), attend),
        )

    return inject


def _last_block_twice(model: Any) -> None:
    wrap(model.h[2], "wire", lambda own, right, x, attend: right(right(x, attend), attend))


def _by_fractions(x: Any) -> Any:
    """tanh z by its continued fraction, two terms further than 3 z / (3 + z²)."""
    z = 0.7978845608028654 * (x + 0.044715 * x**3)
    squared = z * z
    tanh = z * (945 + 105 * squared + squared**2) / (945 + 420 * squared + 15 * squared**2)
    return 0.5 * x * (1 + tanh.clamp(-1, 1))


def _product_in_bfloat16(linear: Any, right: Any, x: Any) -> Any:
    """As under an autocast: input, tensors and output, but for the sums within."""
    w, b = (t.bfloat16().to(x.dtype) for t in (linear.weight, linear.bias))
    return (x.bfloat16().to(x.dtype) @ w + b).bfloat16().to(x.dtype)


def _without_bias_of_values(model: Any) -> None:
    for block in model.h:
        bias = block.attn.c_attn.bias[2 * model.wpe.shape[1] :]

        def mix(attn: Any, right: Any, pattern: Any, v: Any, bias: Any = bias) -> Any:
            return right(pattern, v - bias.view(v.shape[1], 1, -1))

        wrap(block.attn, "mix", mix)


def _another_bias(model: Any) -> None:
    """What is added to a projection is a vector, and no stream."""
    for block in model.h:

        def wire(own: Any, right: Any, x: Any, attend: Any) -> Any:
            return right(x, lambda y: attend(y) + own.ln_2.bias)

        wrap(block, "wire", wire)


def _gain_added(model: Any) -> None:
    for block in model.h:
        wrap(block.ln_2, "forward", lambda norm, right, x: right(x) + norm.weight)


FORMED = {
    "scores-at-most": Formed(
        scoring(lambda s: s.clamp(-0.25, 0.25)),
        "scores-clamped",
        "scores no less than -0.25 and no more than 0.25",
    ),
    "scores-at-least": Formed(
        scoring(lambda s: s.clamp(min=-0.125), [1]), "scores-clamped", "scores no less than -0.125"
    ),
    "scores-by-tanh": Formed(
        scoring(lambda s: 0.75 * torch.tanh(s / 0.75)),
        "scores-capped",
        "scores capped at ±0.75 by a tanh",
    ),
    "scores-by-source": Formed(
        scoring(_squares_added),
        "scores-biased",
        "added at source 0, 1, 2 …: head 0: 0 0.01 0.04 0.09",
    ),
    "scores-by-source-straight": Formed(
        scoring(lambda s: s + 0.25 * torch.arange(s.shape[-1], dtype=s.dtype)),
        "scores-biased",
        "a slope times the source is added, by head: 0.25 0.25 0.25 0.25",
    ),
    "keys-of-length-1": Formed(
        meeting(_same, lambda k: F.normalize(k, dim=-1)),
        "queries-normed",
        "keys are brought to length 1 before they meet",
    ),
    "queries-by-rms": Formed(
        meeting(_mean_square_one, _mean_square_one),
        "queries-normed",
        "queries and keys are brought to a mean square of 1",
    ),
    "queries-in-bfloat16": Formed(
        meeting(in_half(torch.bfloat16), in_half(torch.bfloat16)),
        "heads-rounded",
        "queries and keys rounded to bfloat16",
    ),
    "values-in-bfloat16": Formed(
        mixing(_same, in_half(torch.bfloat16)), "heads-rounded", "values rounded to bfloat16"
    ),
    "pattern-and-values-in-half": Formed(
        mixing(in_half(torch.float16), in_half(torch.float16)),
        "heads-rounded",
        "values and the pattern rounded to float16",
    ),
    "weights-above-a-tenth": Formed(
        patterned(_above_a_tenth),
        "pattern-cut",
        "weights below 0.1 are zero, and the others are normalised again",
    ),
    "three-largest-weights": Formed(
        mixing(_three_largest, _same),
        "pattern-cut",
        "all but the 3 largest weights of a target are zero, and the others are not normalised",
    ),
    "half-more-below": Formed(
        attending("softmax", _half_more_below),
        "pattern-divided",
        "0.5 is added to the sum of the softmax",
    ),
    "tiles-of-8-not-rescaled": Formed(
        attending("softmax", partial(_in_tiles, 8, True)), "pattern-tiles", "tiles of 8 sources"
    ),
    "tiles-of-8-each-divided": Formed(
        attending("softmax", partial(_in_tiles, 8, False)), "pattern-tiles", "tiles of 8 sources"
    ),
    "tiles-after-they-are-shown": Formed(
        mixing(_first_eight_doubled, _same),
        "pattern-tiles",
        "sources 0 … 7 × 2, sources 8 … 15 × 1, sources 16 … 18 × 1",
    ),
    "last-block-for-the-last-token": Formed(
        _last_block_for_the_last_token,
        "input-elsewhere",
        "at all tokens but the last, reads h.1.resid_post in place of h.2.resid_post, as if block "
        "2 were left out",
    ),
    "statistics-before-the-sum": Formed(
        _statistics_of_the_first_stream,
        "norm-of-another",
        "with the mean and deviation of h.0.resid_post",
    ),
    "last-norm-between-blocks": Formed(
        _last_norm_before(2), "norm-added", "reads h.1.resid_post after it has passed ln_f"
    ),
    "pattern-in-4-bits": Formed(
        patterned(lambda p: torch.round(p * 15) / 15), "values-on-a-grid", "in 5 bits"
    ),
    "waves": Formed(
        _waves, "positions-waves", "sines first, 10000^(-2i/D), positions from 1, times 0.5"
    ),
    "row-of-the-other-half": Formed(
        _second_row(lambda ids, v: (ids + v // 2) % v),
        "row-added",
        "beside each row of wte another one is added: that of the id",
    ),
    "row-of-the-first": Formed(
        _second_row(lambda ids, v: ids * 0 + 3),
        "row-added",
        "beside each row of wte another one is added: that of token 3 3 3 3",
    ),
    "rows-no-longer-than-0.75": Formed(
        _rows_no_longer_than(0.75),
        "rows-shortened",
        "rows of wte that are longer than 0.75 are shortened to it",
    ),
    "branch-through-silu": Formed(
        wired(_through_silu), "function-added", "mlp.out before it is added: put through silu"
    ),
    "last-block-twice": Formed(
        _last_block_twice, "block-again", "block 2 is run once more on h.2.resid_post before it is"
    ),
    "hard-swish-of-4": Formed(
        acting(lambda x: x * (x / 4 + 0.5).clamp(0, 1)),
        "activation-gate",
        "x · (0.25 · x + 0.5), the gate held between 0 and 1",
    ),
    "gelu-by-fractions": Formed(
        acting(_by_fractions), "activation-gate", "the tanh within GELU is z (1 + 0.111111 · z^2"
    ),
    "gelu-of-half-a-coefficient": Formed(
        acting(lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.0223575 * x**3)))),
        "activation-gate",
        "GELU's tanh is of 0.797885 (x + 0.0223575 x³), not of 0.797885 (x + 0.044715 x³)",
    ),
    "gelu-of-another-root": Formed(
        acting(lambda x: 0.5 * x * (1 + torch.tanh(0.9 * (x + 0.044715 * x**3)))),
        "activation-gate",
        "GELU's tanh is of 0.9 (x + 0.044715 x³)",
    ),
    "values-without-their-bias": Formed(
        _without_bias_of_values,
        "constant-added",
        "the bias h0/attn/c_attn/b (v) is left out at every position",
    ),
    "bias-of-a-norm-on-attention": Formed(
        _another_bias,
        "constant-added",
        "the bias h0/ln_2/b is added at every position",
    ),
    "norm-with-the-gain-added": Formed(
        _gain_added, "constant-added", "the gain h0/ln_2/g is added at every position"
    ),
    "norms-in-half": Formed(
        _norms_in_half, "values-on-a-grid", "input and output rounded to float16"
    ),
    "product-in-bfloat16": Formed(
        mapping("mlp", "c_proj", _product_in_bfloat16),
        "values-on-a-grid",
        "input and tensors rounded to bfloat16",
    ),
}
