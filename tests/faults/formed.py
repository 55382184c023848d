"""Ports with mistakes that no catalogue lists, each of a form that can be read off its numbers.

Each is a ``gpt_verify.faults.model.Model`` with one method replaced in some layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gpt_verify.faults.inject import wrap
from gpt_verify.faults.model import Options

Inject = Callable[[Any], None]
ALL = (0, 1, 2)


@dataclass(frozen=True)
class Formed:
    """One mistake.

    Attributes:
        inject: puts it into a model.
        form: the name that it must get.
        words: what must be said of it.
        options: how the model is written that it is put into.
    """

    inject: Inject
    form: str
    words: str
    options: Options | None = None


FUSED = Options(fused=True)


# Sums


def wired(sums: Callable[..., Any], layers: Sequence[int] = ALL) -> Inject:
    """``sums(x, attn, mlp)`` makes the two sums of a block."""

    def inject(model: Any) -> None:
        first = {}

        def wire(block: Any, right: Any, x: Any, attend: Any) -> Any:
            first[block] = x
            return sums(
                block, x, lambda y: attend(block.ln_1(y)), lambda y: block.mlp(block.ln_2(y))
            )

        for block in model.blocks(layers):
            wrap(block, "wire", wire)

    return inject


def _attention_scaled(factor: float) -> Inject:
    def sums(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
        x = x + factor * attend(x)
        return x + mlp(x)

    return wired(sums)


def _stream_scaled(factor: float) -> Inject:
    def sums(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
        x = x + attend(x)
        return factor * x + mlp(x)

    return wired(sums, [1])


def _both_scaled(a: float, b: float) -> Inject:
    def sums(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
        x = a * x + b * attend(x)
        return x + mlp(x)

    return wired(sums, [0, 2])


def _skip_added(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
    """The stream that entered the block once more after the MLP."""
    middle = x + attend(x)
    return middle + mlp(middle) + x


def _norm_in_sum(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
    middle = x + attend(x)
    return block.ln_1(x) + mlp(middle)


def _by_channel(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
    scale = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
    x = x + scale * attend(x)
    return x + mlp(x)


def _by_position(block: Any, x: Any, attend: Any, mlp: Any) -> Any:
    scale = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)[:, None]
    x = x + attend(x)
    return x + scale * mlp(x)


def _branch_of_another_layer(model: Any) -> None:
    """The second layer adds the MLP's output of the first."""
    kept = {}

    def mlp(block: Any, right: Any, x: Any) -> Any:
        kept["out"] = right(x)
        return kept["out"]

    wrap(model.h[0].mlp, "forward", mlp)

    def wire(block: Any, right: Any, x: Any, attend: Any) -> Any:
        x = x + attend(block.ln_1(x))
        block.mlp(block.ln_2(x))
        return x + kept["out"]

    wrap(model.h[1], "wire", wire)


# Embeddings


def looked_up(change: Callable[..., Any]) -> Inject:
    """``change(model, ids, positions)`` → ids and positions."""

    def embed(model: Any, right: Any, ids: Any, positions: Any) -> Any:
        return right(*change(model, ids, positions))

    return lambda model: wrap(model, "embed", embed)


def rows(change: Callable[[Any], Any]) -> Inject:
    return looked_up(lambda model, ids, at: (ids, change(at).clamp(0, model.config.n_ctx - 1)))


def _embedded(a: float, b: float) -> Inject:
    def embed(model: Any, right: Any, ids: Any, positions: Any) -> Any:
        return a * F.embedding(ids, model.wte) + b * F.embedding(positions, model.wpe)

    return lambda model: wrap(model, "embed", embed)


def _hidden_rows(model: Any) -> None:
    """The token's row is multiplied by one, after which nobody knows it for one."""

    def embed(model: Any, right: Any, ids: Any, positions: Any) -> Any:
        return F.embedding(ids, model.wte) * 1.0 + F.embedding(positions // 2, model.wpe)

    wrap(model, "embed", embed)


# Attention


def attending(method: str, function: Callable[..., Any], layers: Sequence[int] = ALL) -> Inject:
    def inject(model: Any) -> None:
        for block in model.blocks(layers):
            wrap(block.attn, method, function)

    return inject


def seeing(allowed: Callable[[Any, Any], Any], layers: Sequence[int] = ALL) -> Inject:
    def changed(attn: Any, right: Any, targets: Any, sources: Any) -> Any:
        return allowed(targets[:, None], sources[None, :])

    return attending("allowed", changed, layers)


def _unmasked_when_long(targets: Any, sources: Any) -> Any:
    return (sources[None, :] <= targets[:, None]) | (len(targets) > 11)


def _exact_when(told: Callable[[int], bool]) -> Inject:
    """A kernel of its own for inputs of some sizes, in which GELU is exact."""

    def inject(model: Any) -> None:
        for block in model.blocks(ALL):
            wrap(
                block.mlp,
                "act",
                lambda mlp, right, x: F.gelu(x) if told(x.shape[-2]) else right(x),
            )

    return inject


def scoring(change: Callable[[Any], Any], layers: Sequence[int] = ALL) -> Inject:
    return attending("scores", lambda attn, right, q, k: change(right(q, k)), layers)


def _scaled(factor: float) -> Inject:
    """In any way in which attention is written."""
    return attending("scale", lambda attn, right, q: right(q) * factor, [1])


def _head_scaled(scores: Any) -> Any:
    factor = torch.ones(scores.shape[1], 1, 1, dtype=scores.dtype)
    factor[2] = 0.75
    return scores * factor


def _sloped(scores: Any) -> Any:
    t, s = (torch.arange(n, dtype=scores.dtype) for n in scores.shape[-2:])
    return scores - 0.03 * (t[:, None] - s[None, :])


def _added_by_distance(scores: Any) -> Any:
    t, s = (torch.arange(n) for n in scores.shape[-2:])
    table = torch.sin(torch.arange(64, dtype=scores.dtype) ** 2)
    return scores + table[(t[:, None] - s[None, :]).abs()]


def _tempered(attn: Any, right: Any, scores: Any) -> Any:
    return right(scores * 0.7)


def split_changed(change: Callable[..., Any], layers: Sequence[int] = ALL) -> Inject:
    def heads(attn: Any, right: Any, qkv: Any) -> Any:
        return change(*right(qkv))

    return attending("heads", heads, layers)


def _values_of_head_1(attn: Any, right: Any, pattern: Any, v: Any) -> Any:
    return right(pattern, v[:, [1, 1, 2, 3]])


def _keys_grouped(attn: Any, right: Any, q: Any, k: Any) -> Any:
    return right(q, k[:, [0, 0, 2, 2]])


def cut(order: Sequence[int]) -> Inject:
    """Part, head and channel in another order."""

    def heads(attn: Any, right: Any, qkv: Any) -> Any:
        sizes = [(3, 4, 6)[axis] for axis in order]
        parts = qkv.unflatten(-1, sizes)
        axes = [2 + order.index(axis) for axis in range(3)]
        return tuple(parts.permute(axes[0], 0, axes[1], 1, axes[2]))

    return attending("heads", heads)


# Products


def mapping(
    part: str, name: str, change: Callable[..., Any], layers: Sequence[int] = ALL
) -> Inject:
    """``change(linear, right, x)`` in the place of a linear map."""

    def inject(model: Any) -> None:
        for block in model.blocks(layers):
            wrap(getattr(getattr(block, part), name), "forward", change)

    return inject


def _strided(linear: Any, right: Any, x: Any) -> Any:
    """[in, out] in memory, read as [out, in]."""
    w = linear.weight
    return F.linear(x, w.contiguous().view(w.shape[1], w.shape[0]), linear.bias)


def _heads_of_rows_last(linear: Any, right: Any, x: Any) -> Any:
    w = linear.weight
    return x @ w.view(4, 6, -1).transpose(0, 1).reshape(w.shape) + linear.bias


def _biases(order: Sequence[int]) -> Callable[..., Any]:
    def forward(linear: Any, right: Any, x: Any) -> Any:
        parts = linear.bias.chunk(3)
        return x @ linear.weight + torch.cat([parts[i] for i in order])

    return forward


def _parts(order: Sequence[int]) -> Callable[..., Any]:
    def forward(linear: Any, right: Any, x: Any) -> Any:
        made = right(x).chunk(3, dim=-1)
        return torch.cat([made[i] for i in order], dim=-1)

    return forward


def _head_repeated(linear: Any, right: Any, x: Any) -> Any:
    made = right(x).clone()
    made[..., 24 + 6 : 24 + 12] = made[..., 24 : 24 + 6]
    return made


def _in_8_bits(axis: int | None, levels: int = 127) -> Callable[..., Any]:
    def forward(linear: Any, right: Any, x: Any) -> Any:
        largest = x.abs().amax(axis, keepdim=True) if axis is not None else x.abs().max()
        step = largest / levels
        return right(torch.round(x / step) * step)

    return forward


def _in_unsigned_bytes(linear: Any, right: Any, x: Any) -> Any:
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = (high - low) / 255
    zero = torch.round(-low / step)
    return right((torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step)


def _with_bias_of_layer_0(model: Any) -> None:
    first = model.h[0].mlp.c_fc

    def forward(linear: Any, right: Any, x: Any) -> Any:
        return x @ linear.weight + first.bias

    for block in model.blocks([1, 2]):
        wrap(block.mlp.c_fc, "forward", forward)


def _norms_of_the_next_layer(model: Any) -> None:
    for block, other in ((model.h[0], model.h[1]), (model.h[1], model.h[2])):
        wrap(
            block.ln_2,
            "forward",
            lambda norm, right, x, other=other.ln_2: other.weight * norm.normalise(x) + other.bias,
        )


def _attention_reads_ln_2(model: Any) -> None:
    """The second layer's attention reads what the first one's MLP has read."""
    kept = {}

    def ln_2(norm: Any, right: Any, x: Any) -> Any:
        kept["x"] = right(x)
        return kept["x"]

    wrap(model.h[0].ln_2, "forward", ln_2)
    wrap(model.h[1].attn.c_attn, "forward", lambda linear, right, x: right(kept["x"] + 0 * x))


# Outputs


def after(
    part: str, method: str, change: Callable[[Any], Any], layers: Sequence[int] = ALL
) -> Inject:
    """``change`` of what a method makes."""

    def inject(model: Any) -> None:
        for block in model.blocks(layers):
            wrap(getattr(block, part), method, lambda own, right, *x: change(right(*x)))

    return inject


def acting(function: Callable[[Any], Any]) -> Inject:
    def inject(model: Any) -> None:
        for block in model.h:
            wrap(block.mlp, "act", lambda mlp, right, x: function(x))

    return inject


def norming(function: Callable[[Any], Any]) -> Inject:
    def inject(model: Any) -> None:
        for block in model.h:
            wrap(block.ln_2, "normalise", lambda norm, right, x: function(x))

    return inject


def heading(change: Callable[[Any], Any]) -> Inject:
    return lambda model: wrap(model, "head", lambda own, right, x: change(right(x)))


FORMED = {
    "attention-1.5": Formed(
        _attention_scaled(1.5), "sum-coefficients", "x + 1.5 · attn.out + mlp.out, not x + attn.out"
    ),
    "attention-0.999": Formed(_attention_scaled(0.999), "sum-coefficients", "x + 0.999 · attn.out"),
    "attention-subtracted": Formed(_attention_scaled(-1), "sum-coefficients", "x + -1 · attn.out"),
    "stream-0.9": Formed(_stream_scaled(0.9), "sum-coefficients", "0.9 · x + f(x), not x + f(x)"),
    "both-scaled": Formed(
        _both_scaled(0.5, 0.25), "sum-coefficients", "0.5 · x + 0.25 · attn.out + mlp.out, not x"
    ),
    "skip-added": Formed(wired(_skip_added, [1]), "sum-coefficients", "x + f(x) + "),
    "norm-in-sum": Formed(wired(_norm_in_sum, [0]), "sum-coefficients", "ln_1 + f(x)"),
    "by-channel": Formed(
        wired(_by_channel),
        "output-scaled",
        "attn.out before it is added: × a number of each channel",
    ),
    "by-position": Formed(
        wired(_by_position),
        "output-scaled",
        "mlp.out before it is added: × a number of each position",
    ),
    "branch-elsewhere": Formed(_branch_of_another_layer, "sum-coefficients", "h.0.mlp.out"),
    "embedded-half": Formed(_embedded(1.0, 0.5), "sum-coefficients", "wte[id] + 0.5 · wpe["),
    "embedded-scaled": Formed(_embedded(1.25, 1.0), "sum-coefficients", "1.25 · wte[id] + wpe["),
    "positions-halved": Formed(
        rows(lambda at: at // 2), "positions-used", "positions used: 0 0 1 1 2 2 3 3 …"
    ),
    "positions-halved-unseen": Formed(
        _hidden_rows, "positions-used", "positions used: 0 0 1 1 2 2 3 3 …"
    ),
    "positions-usize": Formed(
        rows(lambda at: torch.where(at % 2 == 0, at // 2, 0)), "positions-used", "0 0 1 0 2 0 3 0"
    ),
    "positions-all-0": Formed(rows(lambda at: at * 0), "positions-used", "0 0 0 0 0 0 0 0 …"),
    "positions-from-5": Formed(rows(lambda at: at + 5), "positions-used", "5 6 7 8 9 10 11 12 …"),
    "positions-last-two": Formed(
        rows(lambda at: torch.where(at == 7, 6, at)), "positions-used", "0 1 2 3 4 5 6 6 …"
    ),
    "tokens-moved": Formed(
        looked_up(lambda model, ids, at: ((ids + 1) % model.config.n_vocab, at)),
        "tokens-used",
        "tokens used: ids +1",
    ),
    "tokens-in-six-bits": Formed(
        looked_up(lambda model, ids, at: (ids % 64, at)),
        "tokens-used",
        "the last 6 bits of each id",
    ),
    "tokens-clamped": Formed(
        looked_up(lambda model, ids, at: (ids.clamp(max=70), at)),
        "tokens-used",
        ": no id above 70",
    ),
    "unmasked-when-long": Formed(
        attending("allowed", lambda attn, right, *at: _unmasked_when_long(*at)),
        "on-some-inputs",
        "attention-mask-missing on longer inputs: of 19 tokens, and not of 11",
    ),
    "exact-when-long": Formed(
        _exact_when(lambda length: length > 11),
        "on-some-inputs",
        "gelu-erf on longer inputs: of 19 tokens, and not of 11",
    ),
    "exact-when-short": Formed(
        _exact_when(lambda length: length < 19),
        "on-some-inputs",
        "gelu-erf on shorter inputs: of 11 tokens, and not of 19",
    ),
    "sees-past-alone": Formed(
        seeing(lambda t, s: (s < t) | (t + s == 0)),
        "pattern-support",
        "target t sees sources 0 … t-1 (itself hidden); the first sees itself",
    ),
    "window-5": Formed(
        seeing(lambda t, s: (s <= t) & (t - s < 5)),
        "pattern-support",
        "target t sees sources t-4 … t",
    ),
    "window-5-fused": Formed(
        seeing(lambda t, s: (s <= t) & (t - s < 5)),
        "pattern-support",
        "target t sees sources t-4 … t",
        FUSED,
    ),
    "strided": Formed(
        seeing(lambda t, s: (s <= t) & ((t - s) % 2 == 0)), "pattern-support", "t, t-2, t-4, t-6 …"
    ),
    "strided-fused": Formed(
        seeing(lambda t, s: (s <= t) & ((t - s) % 2 == 0)),
        "pattern-support",
        "t, t-2, t-4, t-6 …",
        FUSED,
    ),
    "one-leaks": Formed(
        seeing(lambda t, s: (s <= t) | ((t == 4) & (s == 5))), "pattern-support", "target 4 sees 5"
    ),
    "one-leaks-fused": Formed(
        seeing(lambda t, s: (s <= t) | ((t == 4) & (s == 5))),
        "pattern-support",
        "target 4 sees 5",
        FUSED,
    ),
    "chunks-fused": Formed(
        seeing(lambda t, s: (s <= t) & (s // 6 == t // 6)), "pattern-support", "chunk of 6", FUSED
    ),
    "first-hidden": Formed(
        seeing(lambda t, s: (s <= t) & ((s > 0) | (t == 0))),
        "pattern-support",
        "source 0 is seen by nobody; the first sees itself",
        FUSED,
    ),
    "prefix-of-3": Formed(
        seeing(lambda t, s: (s <= t) | (s < 3)),
        "pattern-support",
        "sources 0 … 2 are seen by all, the future too",
    ),
    "three-ahead": Formed(
        seeing(lambda t, s: s <= t + 3), "pattern-support", "target t sees sources 0 … t+3", FUSED
    ),
    "scores-0.25": Formed(_scaled(0.25), "scores-scaled", "scores × 0.25"),
    "scores-0.25-fused": Formed(_scaled(0.25), "scores-scaled", "scores × 0.25", FUSED),
    "scores-1.01-fused": Formed(_scaled(1.01), "scores-scaled", "scores × 1.01", FUSED),
    "scores-negative": Formed(_scaled(-1.0), "scores-scaled", "scores × -1"),
    "one-head-scaled": Formed(scoring(_head_scaled), "scores-scaled", "head 2: scores × 0.75"),
    "sloped": Formed(scoring(_sloped), "scores-sloped", "less 0.03 for each step back"),
    "tempered": Formed(attending("softmax", _tempered), "scores-scaled", "scores × 0.7"),
    "values-of-head-1": Formed(
        attending("mix", _values_of_head_1), "heads-elsewhere", "head 0 takes the values of 1"
    ),
    "keys-grouped": Formed(
        attending("scores", _keys_grouped),
        "heads-elsewhere",
        "head 1 takes the keys of 0",
    ),
    "cut-by-channel-first": Formed(
        cut((2, 0, 1)), "heads-elsewhere", "c_attn's output is cut as [channel, part, head], not"
    ),
    "cut-by-channel-first-fused": Formed(
        cut((2, 0, 1)), "heads-elsewhere", "cut as [channel, part, head], not", FUSED
    ),
    "cut-by-channel": Formed(
        cut((2, 1, 0)), "heads-elsewhere", "c_attn's output is cut as [channel, head, part], not"
    ),
    "strided-weight": Formed(
        mapping("mlp", "c_fc", _strided), "weight-rearranged", "weight read as if contiguous"
    ),
    "rows-by-channel": Formed(
        mapping("attn", "c_proj", _heads_of_rows_last), "weight-rearranged", "channel of in"
    ),
    "bias-of-v-is-q": Formed(
        mapping("attn", "c_attn", _biases((0, 1, 0))), "part-equal", "the bias of v is that of q"
    ),
    "biases-turned": Formed(
        mapping("attn", "c_attn", _biases((1, 2, 0))), "part-equal", "the bias of q is that of k"
    ),
    "k-is-q": Formed(
        mapping("attn", "c_attn", _parts((0, 0, 2))), "heads-elsewhere", "takes q for k"
    ),
    "head-repeated": Formed(
        mapping("attn", "c_attn", _head_repeated), "heads-elsewhere", "head 1 takes the keys of 0"
    ),
    "bias-of-layer-0": Formed(
        _with_bias_of_layer_0, "tensor-elsewhere", "h0/mlp/c_fc/b in place of h1/mlp/c_fc/b"
    ),
    "norm-of-next": Formed(
        _norms_of_the_next_layer, "tensor-elsewhere", "h1/ln_2/g in place of h0/ln_2/g"
    ),
    "attention-reads-ln_2": Formed(
        _attention_reads_ln_2, "input-elsewhere", "is h.0.ln_2 over again"
    ),
    "8-bits": Formed(mapping("mlp", "c_fc", _in_8_bits(None)), "values-on-a-grid", "in 8 bits"),
    "8-bits-by-position": Formed(
        mapping("mlp", "c_proj", _in_8_bits(-1)),
        "values-on-a-grid",
        "in 8 bits, one scale for each position",
    ),
    "4-bits": Formed(
        mapping("attn", "c_attn", _in_8_bits(None, 7)), "values-on-a-grid", "in 4 bits"
    ),
    "unsigned-bytes": Formed(
        mapping("attn", "c_proj", _in_unsigned_bytes),
        "values-on-a-grid",
        "in 8 bits from the least to the largest",
    ),
    "channels-rolled": Formed(
        after("mlp", "act", lambda x: x.roll(1, -1)), "output-permuted", "channels moved on by 1"
    ),
    "positions-rolled": Formed(
        after("mlp", "forward", lambda x: x.roll(1, 1), [1]),
        "output-permuted",
        "positions moved on",
    ),
    "heads-exchanged": Formed(
        after("attn", "merge", lambda x: x.unflatten(-1, (4, 6))[..., [1, 0, 2, 3], :].flatten(-2)),
        "output-permuted",
        "blocks of 6 channels in the order 1 0 2 3",
    ),
    "act-clamped": Formed(
        after("mlp", "act", lambda x: x.clamp(min=-0.1)), "output-clamped", "no less than -0.1"
    ),
    "act-other": Formed(
        acting(lambda x: x * torch.sigmoid(1.5 * x)), "activation-form", "silu(1.5 · x)"
    ),
    "act-leaks": Formed(
        acting(lambda x: F.relu(x) + 0.02 * x), "activation-form", "relu(x) + 0.02 · x"
    ),
    "norm-by-sigma": Formed(
        norming(lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.01)),
        "norm-form",
        "centred, and divided by √(variance of a sample (n - 1)) + 0.01",
    ),
    "norm-by-sigma-of-all": Formed(
        norming(
            lambda x: (
                (x - x.mean(-1, keepdim=True))
                / (1.5 * x.std(-1, keepdim=True, correction=0) + 0.01)
            )
        ),
        "norm-form",
        "centred, and divided by √(variance) · 1.5 + 0.01",
    ),
    "norm-half-centred": Formed(
        norming(
            lambda x: (
                (x - 0.5 * x.mean(-1, keepdim=True))
                * (x.var(-1, keepdim=True, correction=0) + 1e-5) ** -0.5
            )
        ),
        "norm-form",
        "less 0.5 · mean, and divided by √(variance + ",
    ),
    "token-suppressed": Formed(
        heading(lambda x: x.index_fill(-1, torch.tensor([7]), -1e4)),
        "output-fixed",
        "the logit of token 7 is always -10000",
    ),
    "logits-capped": Formed(
        heading(lambda x: 2.5 * torch.tanh(x / 2.5)), "output-capped", "capped at ±2.5 by a tanh"
    ),
    "scores-by-distance": Formed(
        scoring(_added_by_distance), "scores-biased", "added at distance 0, 1, 2 …: head 0: "
    ),
    "act-scaled": Formed(
        after("mlp", "act", lambda x: x * 1.02), "activation-form", "1.02 · gelu(x)"
    ),
    "logits-scaled": Formed(heading(lambda x: x * 0.9), "output-scaled", "× 0.9"),
    "mix-shifted": Formed(
        after("attn", "merge", lambda x: x + 0.5), "constant-added", "0.5 is added to every element"
    ),
}
