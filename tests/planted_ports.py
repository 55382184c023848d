"""Ports in half precision, written in torch, whose every operation rounds as somebody plants it.

Each site is made by torch of what the sites before it are, and shown: GPT-2 and models like Llama.
None of it knows ``gpt_verify.recipes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from planted_recipes import PLANTED, Model, masked

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Dtype, Port, Visit
from gpt_verify.sites import Site, sites

Tensor = torch.Tensor
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}

#: Kind of site → the way that is taken where none is planted, by the end of its name.
PLAIN = {
    "gpt2": {
        "ln": "float32",
        "scores": "scaled-after",
        "pattern": "float32",
        "act": "float32",
    },
    "llama": {"ln": "cast-before-gain", "rot": "tables-stored", "act": "cast-before-up"},
}
#: Kind of site → where ``PLANTED`` has its ways.
_WHERE = {"ln": "h.0.ln_1", "rot": "h.0.attn.q_rot", "act": "h.0.mlp.act"}
_WHERE |= {"scores": "h.0.attn.scores", "pattern": "h.0.attn.pattern", "linear": "h.0.mlp.pre"}


class PlantedPort(Port):
    """Computes every site in torch.

    Args:
        source: the weights, of GPT-2 or Llama.
        dtype: of half precision.
        ways: kind of site → the name of a way of ``PLANTED``.
    """

    def __init__(
        self, source: Checkpoint, dtype: Dtype = "bfloat16", ways: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.dtype = "planted", dtype
        self._config, self._ways, self._half = source.config, ways or {}, HALF[dtype]
        self._full = {
            name: torch.from_numpy(np.array(t, np.float32)) for name, t in source.tensors.items()
        }
        self._tensors = {name: t.to(self._half) for name, t in self._full.items()}
        self._family = "gpt2" if source.config.keys.fused else "llama"

    def activations(self, tokens: Any, visit: Visit) -> Any:
        rows = [self._sites(row) for row in tokens]
        for site in rows[0]:
            visit(site, np.stack([row[site].float().numpy() for row in rows]))
        return np.stack([row["logits"].float().numpy() for row in rows])

    def logits(self, tokens: Any) -> Any:
        return self.activations(tokens, lambda *_: None)

    def _sites(self, tokens_T: Any) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        ids = torch.from_numpy(np.array(tokens_T))
        for site in sites(self._config).values():
            tensors = tuple(self._tensors[name] for name in site.weights)
            read = [made[name] for name in site.inputs]
            made[site.name] = self._made(site, read, tensors, ids)
        return made

    def _made(
        self, site: Site, read: list[Tensor], tensors: tuple[Tensor, ...], ids: Tensor
    ) -> Tensor:
        kind = _class(site)
        planted = self._ways.get(site.kind) or PLAIN[self._family].get(kind)
        if planted is not None:
            full = tuple(self._full[name] for name in site.weights)
            rope = None if site.layer is None else self._config.rope(site.layer)
            model = Model(
                tensors,
                full,
                self._config.keys.norm.epsilon,
                site.heads or self._config.n_head,
                0.0 if rope is None else rope.theta,
                ids,
                self._config.n_embd,
            )
            return PLANTED[self._family, _WHERE[kind], planted](*read, model)
        return _PLAINLY[site.operation](self._config, read, tensors, ids)


def _class(site: Site) -> str:
    """What ``PLAIN`` calls it."""
    if site.operation in ("layer_norm", "rms_norm"):
        return "ln"
    last = site.kind.rpartition(".")[2]
    return "linear" if site.operation == "linear" else last.removeprefix("q_").removeprefix("k_")


def embed(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    rows = tensors[0][ids]
    return rows if len(tensors) == 1 else rows + tensors[1][: len(ids)]


def linear(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    (x,), (w, *b) = read, tensors
    made = x.float() @ w.float()
    return (made + b[0].float() if b else made).to(x.dtype)


def unembed(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    (x,) = read
    return (x.float() @ tensors[0].float().T).to(x.dtype)


def _heads(x: Tensor, heads: int, shared: int = 1) -> Tensor:
    return x.reshape(len(x), heads, -1).transpose(0, 1).repeat_interleave(shared, 0)


def scores(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    """Of queries and keys that are sites of their own."""
    q, k = read
    q, k = _heads(q, config.n_head), _heads(k, config.n_kv, config.n_head // config.n_kv)
    return (q.float() @ k.float().mT).to(q.dtype) * q.shape[-1] ** -0.5


def pattern(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    return torch.softmax(masked(read[0]), -1)


def mix(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    p, v = read
    if config.keys.fused:
        v = _heads(v.chunk(3, -1)[-1], config.n_head)
    else:
        v = _heads(v, config.n_kv, config.n_head // config.n_kv)
    return (p.float() @ v.float()).to(v.dtype).transpose(0, 1).flatten(1)


def add(config: Any, read: Any, tensors: Any, ids: Tensor) -> Tensor:
    x, y = read
    return x + y


_PLAINLY = {f.__name__: f for f in (embed, linear, unembed, scores, pattern, mix, add)}
