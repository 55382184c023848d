"""Ways of rounding, written in torch as their users write them: what is to be told from the bits.

Each takes what the operation reads, in half precision, and a ``Model`` of what else it needs. None
of it knows ``gpt_verify.recipes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

Tensor = torch.Tensor


@dataclass(frozen=True)
class Model:
    """What an operation needs beside what it reads.

    Attributes:
        tensors: those of the site, in half precision.
        full: the same in float32.
        epsilon: of a norm.
        heads: H.
        theta: of rotary positions.
        ids: the tokens.
        width: D.
    """

    tensors: tuple[Tensor, ...]
    full: tuple[Tensor, ...]
    epsilon: float
    heads: int
    theta: float
    ids: Tensor
    width: int


Way = Callable[..., Tensor]


def rsqrt(x: Tensor) -> Tensor:
    """One rounding; ``torch.rsqrt`` has two at the end of a tensor, where no vector is full."""
    return torch.rsqrt(x.float()).to(x.dtype)


def normed(x: Tensor, m: Model) -> Tensor:
    return functional.layer_norm(x.float(), (x.shape[-1],), eps=m.epsilon)


def statistics(x: Tensor, m: Model) -> tuple[Tensor, Tensor]:
    wide = x.float()
    variance = wide.var(-1, keepdim=True, unbiased=False)
    return wide.mean(-1, keepdim=True).to(x.dtype), torch.rsqrt(variance + m.epsilon).to(x.dtype)


def stored_statistics(x: Tensor, m: Model) -> Tensor:
    (mean, root), (g, b) = statistics(x, m), m.tensors
    return ((x.float() - mean.float()) * root.float() * g.float() + b.float()).to(x.dtype)


def steps(x: Tensor, m: Model) -> Tensor:
    """As OpenAI's code reads, in half precision."""
    g, b = m.tensors
    u = x.mean(-1, keepdim=True)
    s = ((x - u) * (x - u)).mean(-1, keepdim=True)
    return (x - u) * rsqrt(s + m.epsilon) * g + b


def steps_variance(x: Tensor, m: Model, divided: bool) -> Tensor:
    g, b = m.tensors
    u, s = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    n = (x - u) / torch.sqrt(s + m.epsilon) if divided else (x - u) * rsqrt(s + m.epsilon)
    return n * g + b


def rms(x: Tensor, m: Model) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + m.epsilon)


def rms_statistics(x: Tensor, m: Model) -> Tensor:
    square = x.float().pow(2).mean(-1, keepdim=True).to(x.dtype)
    root = rsqrt(square + m.epsilon)
    return (x.float() * root.float() * m.tensors[0].float()).to(x.dtype)


def rms_root(x: Tensor, m: Model) -> Tensor:
    root = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + m.epsilon).to(x.dtype)
    return (x.float() * root.float() * m.tensors[0].float()).to(x.dtype)


def rms_steps(x: Tensor, m: Model) -> Tensor:
    return x * rsqrt((x * x).mean(-1, keepdim=True) + m.epsilon) * m.tensors[0]


def masked(x: Tensor) -> Tensor:
    t, s = x.shape[-2:]
    return x.masked_fill(~torch.ones(t, s, dtype=torch.bool).tril(), -math.inf)


def exponentials(x: Tensor) -> Tensor:
    x = masked(x.float())
    return torch.exp(x - x.max(-1, keepdim=True).values)


def softmax_steps(x: Tensor, m: Model) -> Tensor:
    x = masked(x)
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


def softmax_reciprocal(x: Tensor, m: Model) -> Tensor:
    x = masked(x)
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    return e * (1 / e.sum(-1, keepdim=True))


def softmax_stored(x: Tensor, m: Model) -> Tensor:
    e = exponentials(x).to(x.dtype).float()
    return (e / e.sum(-1, keepdim=True)).to(x.dtype)


def softmax_sum_stored(x: Tensor, m: Model) -> Tensor:
    e = exponentials(x)
    return e.to(x.dtype) / e.sum(-1, keepdim=True).to(x.dtype)


def softmax_shift_stored(x: Tensor, m: Model) -> Tensor:
    x = masked(x)
    return torch.softmax((x - x.max(-1, keepdim=True).values).float(), -1).to(x.dtype)


def cube(x: Tensor) -> Tensor:
    """One rounding; ``torch.pow(x, 3.0)`` has two in bfloat16, and one in float16."""
    return (x.float() ** 3).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * cube(x))
    return 0.5 * x * (1.0 + torch.tanh(inner))


def gelu_squares(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def gelu_constants(x: Tensor) -> Tensor:
    """As a framework does that makes every constant of the format of the array."""
    root, cubic = (torch.tensor(c, dtype=x.dtype) for c in (math.sqrt(2 / math.pi), 0.044715))
    return 0.5 * x * (1 + torch.tanh(root * (x + cubic * cube(x))))


def gelu_tanh_stored(x: Tensor) -> Tensor:
    wide = x.float()
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + torch.tanh(inner).to(x.dtype).float())).to(x.dtype)


def gelu_table(x: Tensor) -> Tensor:
    at = x.to(torch.float16).float()
    return functional.gelu(at, approximate="tanh").to(torch.float16).to(x.dtype)


def in_parts(x: Tensor, w: Tensor, b: Tensor, parts: int) -> Tensor:
    size = -(-len(w) // parts)
    made = torch.zeros(())
    for i in range(0, len(w), size):
        part = (x[:, i : i + size].float() @ w[i : i + size].float()).to(x.dtype)
        made = part if i == 0 else made + part
    return made + b


def split(x: Tensor, m: Model) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = x.reshape(len(x), 3, m.heads, -1).permute(1, 2, 0, 3)
    return q, k, v


def scores(x: Tensor, m: Model, how: str) -> Tensor:
    (q, k, _), half = split(x, m), x.dtype
    scale = q.shape[-1] ** -0.5
    if how == "float32":
        return (q.float() @ k.float().mT * scale).to(half)
    if how == "query":
        return ((q * scale).float() @ k.float().mT).to(half)
    if how == "truncated":
        q = q * torch.tensor(scale, dtype=half)
        return truncated(q.float() @ k.float().mT, x)
    if how == "both":
        q, k = q * math.sqrt(scale), k * math.sqrt(scale)
        return (q.float() @ k.float().mT).to(half)
    return (q.float() @ k.float().mT).to(half) * scale


def mixed(pattern: Tensor, x: Tensor, m: Model) -> Tensor:
    """[T, D], in half precision."""
    v = split(x, m)[2].float()
    return (pattern.float() @ v).to(x.dtype).permute(1, 0, 2).flatten(1)


def fused(x: Tensor, m: Model, stored: bool) -> Tensor:
    (q, k, v), half = split(x, m), x.dtype
    e = exponentials(q.float() @ k.float().mT * q.shape[-1] ** -0.5)
    kept = e.to(half).float() if stored else e
    return (kept @ v.float() / e.sum(-1, keepdim=True)).to(half).permute(1, 0, 2).flatten(1)


def fused_pattern(x: Tensor, m: Model, how: str, scores_stored: bool) -> Tensor:
    made = scores(x.float() if not scores_stored else x, m, how)
    return mixed(torch.softmax(masked(made.float()), -1).to(x.dtype), x, m)


def embedded(m: Model, full: bool) -> Tensor:
    wte, wpe = m.full if full else m.tensors
    return (wte[m.ids].float() + wpe[: len(m.ids)].float()).to(m.tensors[0].dtype)


def scaled(m: Model, stored: bool) -> Tensor:
    rows = m.tensors[0][m.ids]
    return rows * (
        torch.tensor(math.sqrt(m.width), dtype=rows.dtype) if stored else math.sqrt(m.width)
    )


def tables(x: Tensor, m: Model, **kept: bool) -> tuple[Tensor, Tensor]:
    size = x.shape[-1] // m.heads
    f = 1.0 / m.theta ** (torch.arange(0, size, 2).float() / size)
    if kept.get("frequencies"):
        f = f.to(x.dtype).float()
    angle = torch.arange(len(x)).float()[:, None] * f[None]
    if kept.get("angles"):
        angle = angle.to(x.dtype).float()
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def turned(x: Tensor, m: Model, tables_stored: bool, stepwise: bool, **kept: bool) -> Tensor:
    cos, sin = tables(x, m, **kept)
    half = x.dtype
    if tables_stored:
        cos, sin = cos.to(half), sin.to(half)
    y = x.reshape(len(x), m.heads, -1).transpose(0, 1)
    if not stepwise:
        y, cos, sin = y.float(), cos.float(), sin.float()
    a, b = y.chunk(2, -1)
    other = torch.cat([-b, a], -1)
    if stepwise and not tables_stored:
        made = (y.float() * cos).to(half) + (other.float() * sin).to(half)
    else:
        made = y * cos + other * sin
    return made.to(half).transpose(0, 1).flatten(1)


def silu_gate(gate: Tensor, up: Tensor, m: Model, how: str) -> Tensor:
    if how == "float32":
        return (functional.silu(gate.float()) * up.float()).to(gate.dtype)
    return functional.silu(gate) * up if how == "act" else gate * torch.sigmoid(gate) * up


def of(x: Tensor, made: Tensor) -> Tensor:
    return made.to(x.dtype)


#: Model, what is made, the recipe's name → the way. ``gpt2`` is GPT-2's own architecture.
PLANTED: dict[tuple[str, str, str], Way] = {
    ("gpt2", "h.0.ln_1", "float32"): lambda x, m: functional.layer_norm(
        x, (x.shape[-1],), *m.tensors, m.epsilon
    ),
    ("gpt2", "h.0.ln_1", "cast-before-gain"): lambda x, m: (
        of(x, normed(x, m)) * m.tensors[0] + m.tensors[1]
    ),
    ("gpt2", "h.0.ln_1", "cast-before-gain-once"): lambda x, m: of(
        x, of(x, normed(x, m)).float() * m.tensors[0].float() + m.tensors[1].float()
    ),
    ("gpt2", "h.0.ln_1", "cast-before-bias"): lambda x, m: (
        of(x, normed(x, m) * m.tensors[0].float()) + m.tensors[1]
    ),
    ("gpt2", "h.0.ln_1", "statistics-stored"): stored_statistics,
    ("gpt2", "h.0.ln_1", "steps"): steps,
    ("gpt2", "h.0.ln_1", "steps-variance"): lambda x, m: steps_variance(x, m, False),
    ("gpt2", "h.0.ln_1", "steps-variance-divided"): lambda x, m: steps_variance(x, m, True),
    ("gpt2", "h.0.attn.scores", "scaled-after"): lambda x, m: scores(x, m, "after"),
    ("gpt2", "h.0.attn.scores", "float32"): lambda x, m: scores(x, m, "float32"),
    ("gpt2", "h.0.attn.scores", "query-scaled"): lambda x, m: scores(x, m, "query"),
    ("gpt2", "h.0.attn.scores", "query-scaled-truncated"): lambda x, m: scores(x, m, "truncated"),
    ("gpt2", "h.0.attn.scores", "both-scaled"): lambda x, m: scores(x, m, "both"),
    ("gpt2", "h.0.attn.pattern", "float32"): lambda x, m: torch.softmax(masked(x), -1),
    ("gpt2", "h.0.attn.pattern", "exponentials-stored"): softmax_stored,
    ("gpt2", "h.0.attn.pattern", "sum-stored"): softmax_sum_stored,
    ("gpt2", "h.0.attn.pattern", "shift-stored"): softmax_shift_stored,
    ("gpt2", "h.0.attn.pattern", "steps"): softmax_steps,
    ("gpt2", "h.0.attn.pattern", "steps-reciprocal"): softmax_reciprocal,
    ("gpt2", "h.0.mlp.act", "float32"): lambda x, m: functional.gelu(x, approximate="tanh"),
    ("gpt2", "h.0.mlp.act", "steps"): lambda x, m: gelu(x),
    ("gpt2", "h.0.mlp.act", "steps-squares"): lambda x, m: gelu_squares(x),
    ("gpt2", "h.0.mlp.act", "steps-constants"): lambda x, m: gelu_constants(x),
    ("gpt2", "h.0.mlp.act", "tanh-stored"): lambda x, m: gelu_tanh_stored(x),
    ("gpt2", "h.0.mlp.act", "table-float16"): lambda x, m: gelu_table(x),
    ("gpt2", "h.0.mlp.pre", "float32"): lambda x, m: of(
        x, x.float() @ m.tensors[0].float() + m.tensors[1].float()
    ),
    ("gpt2", "h.0.mlp.pre", "bias-after"): lambda x, m: (
        of(x, x.float() @ m.tensors[0].float()) + m.tensors[1]
    ),
    ("gpt2", "h.0.mlp.pre", "truncated"): lambda x, m: (
        truncated(x.float() @ m.tensors[0].float(), x) + m.tensors[1]
    ),
    ("gpt2", "h.0.mlp.pre", "halves"): lambda x, m: in_parts(x, *m.tensors, parts=2),
    ("gpt2", "h.0.mlp.pre", "quarters"): lambda x, m: in_parts(x, *m.tensors, parts=4),
    ("gpt2", "h.0.attn.mix", "fused"): lambda x, m: fused(x, m, False),
    ("gpt2", "h.0.attn.mix", "fused-stored"): lambda x, m: fused(x, m, True),
    ("gpt2", "h.0.attn.mix", "fused-both-scaled"): lambda x, m: fused_pattern(x, m, "both", True),
    ("gpt2", "h.0.attn.mix", "fused-scores-stored"): lambda x, m: fused_pattern(
        x, m, "float32", True
    ),
    ("gpt2", "h.0.attn.mix", "fused-eager"): lambda x, m: fused_pattern(x, m, "after", True),
    ("gpt2", "h.0.resid_mid", "once"): lambda x, y, m: x + y,
    ("gpt2", "embed", "once"): lambda m: embedded(m, False),
    ("gpt2", "embed", "full-tables"): lambda m: embedded(m, True),
    ("llama", "h.0.ln_1", "float32"): lambda x, m: of(x, rms(x, m) * m.tensors[0].float()),
    ("llama", "h.0.ln_1", "cast-before-gain"): lambda x, m: m.tensors[0] * of(x, rms(x, m)),
    ("llama", "h.0.ln_1", "root-stored"): rms_root,
    ("llama", "h.0.ln_1", "statistics-stored"): rms_statistics,
    ("llama", "h.0.ln_1", "steps"): rms_steps,
    ("gemma", "h.0.ln_1", "float32"): lambda x, m: of(x, rms(x, m) * (1 + m.tensors[0].float())),
    ("gemma", "h.0.ln_1", "gain-stored"): lambda x, m: of(
        x, rms(x, m) * (1 + m.tensors[0]).float()
    ),
    ("gemma", "h.0.ln_1", "cast-before-gain-stored"): lambda x, m: (
        of(x, rms(x, m)) * (1 + m.tensors[0])
    ),
    ("gemma", "h.0.ln_1", "cast-before-gain"): lambda x, m: of(
        x, of(x, rms(x, m)).float() * (1 + m.tensors[0].float())
    ),
    ("gemma", "embed", "once"): lambda m: scaled(m, False),
    ("gemma", "embed", "scale-stored"): lambda m: scaled(m, True),
    ("llama", "h.0.attn.q_rot", "float32"): lambda x, m: turned(x, m, False, False),
    ("llama", "h.0.attn.q_rot", "tables-stored"): lambda x, m: turned(x, m, True, True),
    ("llama", "h.0.attn.q_rot", "tables-stored-once"): lambda x, m: turned(x, m, True, False),
    ("llama", "h.0.attn.q_rot", "steps"): lambda x, m: turned(x, m, False, True),
    ("llama", "h.0.attn.q_rot", "angles-stored"): lambda x, m: turned(
        x, m, True, True, angles=True
    ),
    ("llama", "h.0.attn.q_rot", "frequencies-stored"): lambda x, m: turned(
        x, m, True, True, frequencies=True
    ),
    ("llama", "h.0.mlp.act", "float32"): lambda g, u, m: silu_gate(g, u, m, "float32"),
    ("llama", "h.0.mlp.act", "cast-before-up"): lambda g, u, m: silu_gate(g, u, m, "act"),
    ("llama", "h.0.mlp.act", "steps"): lambda g, u, m: silu_gate(g, u, m, "steps"),
}


def truncated(made: Tensor, like: Tensor) -> Tensor:
    """Towards zero, where everybody rounds to nearest."""
    near = made.to(like.dtype)
    too_far = near.float().abs() > made.abs()
    return torch.where(too_far, (near.view(torch.int16) - 1).view(near.dtype), near)


#: Of which no recipe says so: other functions, and ways that nobody is known to have.
NONE: dict[tuple[str, str], Way] = {
    ("h.0.ln_1", "epsilon"): lambda x, m: functional.layer_norm(x, (x.shape[-1],), *m.tensors, 0.1),
    ("h.0.ln_1", "8 bits"): lambda x, m: of(
        x, ((normed(x, m) * 16).round() / 16) * m.tensors[0].float() + m.tensors[1].float()
    ),
    ("h.0.mlp.act", "erf"): lambda x, m: functional.gelu(x),
    ("h.0.mlp.act", "digits"): lambda x, m: of(x, x.float() * torch.sigmoid(1.702 * x.float())),
    ("h.0.attn.pattern", "truncated"): lambda x, m: truncated(
        torch.softmax(masked(x.float()), -1), x
    ),
    ("h.0.mlp.pre", "truncated"): lambda x, m: truncated(
        x.float() @ m.tensors[0].float() + m.tensors[1].float(), x
    ),
    ("h.0.resid_mid", "truncated"): lambda x, y, m: truncated(x.float() + y.float(), x),
}
