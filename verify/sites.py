"""The sites of the model: each with what goes into it and which operation makes it.

This is the one place that knows the wiring. The mathematics of each operation is the oracle's
(``reference.ops``); its error budget is in ``verify.numerics.budgets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

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
    """Every site of a model of this size and architecture, in the order of computation."""
    table: dict[str, Site] = {}

    def site(
        name: str, operation: str, *inputs: str, weights: tuple[str, ...] = (), heads: int = 0
    ) -> str:
        table[name] = Site(name, operation, inputs, weights, heads)
        return name

    def linear(name: str, x: str, scope: str, heads: int = 0) -> str:
        return site(name, "linear", x, weights=(f"{scope}/w", f"{scope}/b"), heads=heads)

    def norm(name: str, x: str, scope: str) -> str:
        return site(name, "layer_norm", x, weights=(f"{scope}/g", f"{scope}/b"))

    def attention(x: str, at: str, scope: str) -> str:
        qkv = linear(f"{at}.attn.qkv", x, f"{scope}/attn/c_attn", 3 * config.n_head)
        scores = site(f"{at}.attn.scores", "scores", qkv)
        pattern = site(f"{at}.attn.pattern", "pattern", scores)
        mix = site(f"{at}.attn.mix", "mix", pattern, qkv, heads=config.n_head)
        return linear(f"{at}.attn.out", mix, f"{scope}/attn/c_proj")

    def mlp(x: str, at: str, scope: str) -> str:
        pre = linear(f"{at}.mlp.pre", x, f"{scope}/mlp/c_fc")
        return linear(f"{at}.mlp.out", site(f"{at}.mlp.act", "gelu", pre), f"{scope}/mlp/c_proj")

    x = site("embed", "embed", weights=("wte", "wpe"))
    for layer in range(config.n_layer):
        at, scope = f"h.{layer}", f"h{layer}"
        for branch, ln, total in ((attention, "ln_1", "resid_mid"), (mlp, "ln_2", "resid_post")):
            read = norm(f"{at}.{ln}", x, f"{scope}/{ln}") if config.norm_first else x
            x = site(f"{at}.{total}", "add", x, branch(read, at, scope))
            if not config.norm_first:
                x = norm(f"{at}.{ln}", x, f"{scope}/{ln}")
    if config.norm_last:
        x = norm("ln_f", x, "ln_f")
    site("logits", "unembed", x, weights=(config.head,))
    return table


@cache
def readers(config: Config) -> dict[str, tuple[Site, ...]]:
    """Tensor of the checkpoint → the sites whose operations read it: two for a tied ``wte``."""
    found: dict[str, tuple[Site, ...]] = {}
    for site in sites(config).values():
        for tensor in site.weights:
            found[tensor] = (*found.get(tensor, ()), site)
    return found


def beginnings(config: Config) -> list[str]:
    """The first site of each block, and of what follows the last: each has one input, the residual
    stream, and nothing after it reads what was before that."""
    table = list(sites(config).values())
    return [site.name for old, site in pairwise(table) if old.layer != site.layer]


def before_head(config: Config) -> str:
    """The site that is multiplied with the head: ``ln_f``, or without one the last block's end."""
    return sites(config)["logits"].inputs[0]
