"""The sites of the model: each with what goes into it and which operation makes it.

This is the one place that knows the wiring. The mathematics of each operation is the oracle's
(``reference.ops``); its error budget is in ``verify.numerics.budgets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from reference.config import Config


@dataclass(frozen=True)
class Site:
    """One intermediate tensor.

    Attributes:
        name: ``h.3.attn.out``.
        operation: name of the operation that makes it, a key of ``budgets.OPERATIONS``.
        inputs: the sites that the operation reads (none for ``embed``, which reads the tokens).
        weights: the checkpoint tensors that the operation reads.
        heads: how many heads lie side by side in the last axis (0: none do; the second axis of
            scores and pattern is the head).
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    heads: int = 0

    @property
    def layer(self) -> int | None:
        """The block that it belongs to; None before the first and after the last."""
        return int(self.name.split(".")[1]) if self.name.startswith("h.") else None


@cache
def sites(config: Config) -> dict[str, Site]:
    """Every site of a GPT-2 of this size, in the order of computation."""
    table: dict[str, Site] = {}

    def site(
        name: str, operation: str, *inputs: str, weights: tuple[str, ...] = (), heads: int = 0
    ) -> str:
        table[name] = Site(name, operation, inputs, weights, heads)
        return name

    def affine(scope: str, first: str) -> tuple[str, str]:
        return f"{scope}/{first}", f"{scope}/b"

    x = site("embed", "embed", weights=("wte", "wpe"))
    for layer in range(config.n_layer):
        at, scope, n_head = f"h.{layer}", f"h{layer}", config.n_head
        ln = site(f"{at}.ln_1", "layer_norm", x, weights=affine(f"{scope}/ln_1", "g"))
        qkv = site(
            f"{at}.attn.qkv",
            "linear",
            ln,
            weights=affine(f"{scope}/attn/c_attn", "w"),
            heads=3 * n_head,
        )
        scores = site(f"{at}.attn.scores", "scores", qkv)
        pattern = site(f"{at}.attn.pattern", "pattern", scores)
        mix = site(f"{at}.attn.mix", "mix", pattern, qkv, heads=n_head)
        out = site(f"{at}.attn.out", "linear", mix, weights=affine(f"{scope}/attn/c_proj", "w"))
        x = site(f"{at}.resid_mid", "add", x, out)
        ln = site(f"{at}.ln_2", "layer_norm", x, weights=affine(f"{scope}/ln_2", "g"))
        pre = site(f"{at}.mlp.pre", "linear", ln, weights=affine(f"{scope}/mlp/c_fc", "w"))
        act = site(f"{at}.mlp.act", "gelu", pre)
        out = site(f"{at}.mlp.out", "linear", act, weights=affine(f"{scope}/mlp/c_proj", "w"))
        x = site(f"{at}.resid_post", "add", x, out)
    ln = site("ln_f", "layer_norm", x, weights=affine("ln_f", "g"))
    site("logits", "unembed", ln, weights=("wte",))
    return table
