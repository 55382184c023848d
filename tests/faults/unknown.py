"""Ten faults that are not in the catalogue, of all kinds and subtle, to see what becomes of those
that nobody has thought of. Some have a form that can be read off their numbers. Each is a port
factory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.model import build
from gpt_verify.ports.torch.module import TorchModule


@dataclass(frozen=True)
class Unknown:
    """One fault.

    Attributes:
        inject: puts it into a ``gpt_verify.faults.model.Model``.
        law: what must refute it.
        site: where it must be found; None where it is not in a plain pass.
        form: the name of what can be read off its numbers; None where that is nothing.
        words: what is said of it then.
    """

    inject: Callable[[Any], None]
    law: str
    site: str | None = None
    form: str | None = None
    words: str = ""


def act_clipped(model: Any) -> None:
    """GELU never returns less than -0.15."""
    wrap(model.h[1].mlp, "act", lambda mlp, right, x: right(x).clamp(min=-0.15))


def norm_without_last_channel(model: Any) -> None:
    """The variance is taken over all channels but the last."""

    def normalise(norm: Any, right: Any, x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred[..., :-1].pow(2).mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + norm.eps)

    wrap(model.h[2].ln_1, "normalise", normalise)


def one_head_cooler(model: Any) -> None:
    """The scores of one head of one layer are 1 % too small."""

    def scores(attn: Any, right: Any, q: Any, k: Any) -> Any:
        factor = torch.ones(q.shape[1], 1, 1, dtype=q.dtype)
        factor[2] = 0.99
        return right(q, k) * factor

    wrap(model.h[1].attn, "scores", scores)


def heads_mixed(model: Any) -> None:
    """A hundredth of head 0 leaks into head 1."""

    def mix(attn: Any, right: Any, pattern: Any, v: Any) -> Any:
        mixed = right(pattern, v)
        first, second, *others = mixed.split(1, dim=1)
        return torch.cat([first, second + 0.01 * first, *others], dim=1)

    wrap(model.h[0].attn, "mix", mix)


def stream_clamped(model: Any) -> None:
    """The residual stream is held within ±2.5, against overflow in half precision."""

    def wire(block: Any, right: Any, x: Any, attend: Any) -> Any:
        x = (x + attend(block.ln_1(x))).clamp(-2.5, 2.5)
        return x + block.mlp(block.ln_2(x))

    wrap(model.h[1], "wire", wire)


def positions_smoothed(model: Any) -> None:
    """Each position is mixed with the next, as by interpolation to another length."""

    def embed(self: Any, right: Any, ids: Any, positions: Any) -> Any:
        after = (positions + 1).clamp(max=self.config.n_ctx - 1)
        return self.wte[ids] + (0.99 * self.wpe[positions] + 0.01 * self.wpe[after])

    wrap(model, "embed", embed)


def logits_grow(model: Any) -> None:
    """The logits grow by a ten-thousandth from position to position."""

    def head(self: Any, right: Any, x: Any) -> Any:
        return right(x) * (1 + 1e-4 * torch.arange(x.shape[1], dtype=x.dtype))[:, None]

    wrap(model, "head", head)


def adapter_merged(model: Any) -> None:
    """A matrix with an adapter of rank 1 added to it."""
    weight = model.h[2].mlp.c_fc.weight
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=generator) for n in weight.shape)
    with torch.no_grad():
        weight += 1e-4 * torch.outer(a, b)


def keys_of_one_head_coarse(model: Any) -> None:
    """The first head's keys are kept in steps of 1/64."""

    def extend(attn: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
        if past is not None:
            kept = past[0].clone()
            kept[:, 0] = torch.round(kept[:, 0] * 64) / 64
            past = kept, past[1]
        return right(past, k, v)

    wrap(model.h[1].attn, "extend", extend)


def loss_tempered(model: Any) -> None:
    """The loss is computed at a temperature of 1.01."""
    wrap(model, "loss", lambda self, right, logits, labels: right(logits / 1.01, labels))


UNKNOWN = {
    "act_clipped": Unknown(
        act_clipped, "architecture", "h.1.mlp.act", "output-clamped", "no less than -0.15"
    ),
    "norm_without_last_channel": Unknown(
        norm_without_last_channel,
        "architecture",
        "h.2.ln_1",
        "norm-form",
        "centred, and each position is divided by another number than its deviation",
    ),
    "one_head_cooler": Unknown(
        one_head_cooler,
        "architecture",
        "h.1.attn.scores",
        "scores-scaled",
        "head 2: scores × 0.99",
    ),
    "heads_mixed": Unknown(heads_mixed, "architecture", "h.0.attn.mix"),
    # The sum is correct; what the next norm and the next sum read is not.
    "stream_clamped": Unknown(
        stream_clamped,
        "architecture",
        "h.1.ln_2",
        "output-clamped",
        "resid_mid before it is added: no less than -2.5 and no more than 2.5",
    ),
    "positions_smoothed": Unknown(positions_smoothed, "architecture", "embed"),
    "logits_grow": Unknown(
        logits_grow,
        "architecture",
        "logits",
        "output-scaled",
        "× a number of each position: 1 1.0001 1.0002 1.0003 …",
    ),
    "adapter_merged": Unknown(
        adapter_merged,
        "weights.values",
        "h.2.mlp.pre",
        "weight-low-rank",
        "differs by rank 1 (an adapter that was added to it?)",
    ),
    "keys_of_one_head_coarse": Unknown(keys_of_one_head_coarse, "cache"),
    "loss_tempered": Unknown(loss_tempered, "loss.value"),
}


def _port(name: str, source: Checkpoint) -> TorchModule:
    model = build(source)
    UNKNOWN[name].inject(model)
    return TorchModule(model, source, name)


def __getattr__(name: str) -> Callable[[Checkpoint], Any]:
    """``port_NAME`` and ``logits_NAME``."""
    kind, _, fault = name.partition("_")
    if fault not in UNKNOWN:
        raise AttributeError(name)
    if kind == "logits":
        return lambda source: _port(fault, source).logits
    return lambda source: _port(fault, source)
