"""The sites of the model: each with what goes into it and which operation makes it.

This is the one place that knows the wiring. The mathematics of each operation is the oracle's
(``reference.ops``); its error budget and its backward rule are in ``gpt_verify.graph``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from gpt_verify.reference.config import Config


@dataclass(frozen=True)
class Site:
    """One intermediate tensor.

    Attributes:
        name: ``h.3.attn.out``.
        kind: what it is in whatever layer: ``attn.out``.
        layer: the block that it belongs to; None before the first and after the last.
        operation: name of the operation that makes it, a file of ``gpt_verify.graph.operations``.
        inputs: the sites that the operation reads (none for ``embed``, which reads the tokens).
        weights: the checkpoint tensors that the operation reads.
        heads: how many heads lie side by side in the last axis (0: none do; the second axis of
            scores and pattern is the head).
    """

    name: str
    kind: str
    layer: int | None
    operation: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    heads: int = 0


@cache
def sites(config: Config) -> dict[str, Site]:
    """Every site of a model of this size and architecture, in the order of computation."""
    table: dict[str, Site] = {}

    def site(
        layer: int | None,
        kind: str,
        operation: str,
        *inputs: str,
        weights: tuple[str, ...] = (),
        heads: int = 0,
    ) -> str:
        name = kind if layer is None else f"h.{layer}.{kind}"
        table[name] = Site(name, kind, layer, operation, inputs, weights, heads)
        return name

    def linear(layer: int, kind: str, x: str, tensors: str, heads: int = 0) -> str:
        scope = f"h{layer}/{tensors}"
        return site(layer, kind, "linear", x, weights=(f"{scope}/w", f"{scope}/b"), heads=heads)

    def norm(layer: int | None, kind: str, x: str) -> str:
        scope = kind if layer is None else f"h{layer}/{kind}"
        return site(layer, kind, "layer_norm", x, weights=(f"{scope}/g", f"{scope}/b"))

    def attention(layer: int, x: str) -> str:
        qkv = linear(layer, "attn.qkv", x, "attn/c_attn", 3 * config.n_head)
        scores = site(layer, "attn.scores", "scores", qkv)
        pattern = site(layer, "attn.pattern", "pattern", scores)
        mix = site(layer, "attn.mix", "mix", pattern, qkv, heads=config.n_head)
        return linear(layer, "attn.out", mix, "attn/c_proj")

    def mlp(layer: int, x: str) -> str:
        pre = linear(layer, "mlp.pre", x, "mlp/c_fc")
        return linear(layer, "mlp.out", site(layer, "mlp.act", "gelu", pre), "mlp/c_proj")

    x = site(None, "embed", "embed", weights=("wte", "wpe"))
    for layer in range(config.n_layer):
        for branch, ln, total in ((attention, "ln_1", "resid_mid"), (mlp, "ln_2", "resid_post")):
            read = norm(layer, ln, x) if config.norm_first else x
            x = site(layer, total, "add", x, branch(layer, read))
            if not config.norm_first:
                x = norm(layer, ln, x)
    if config.norm_last:
        x = norm(None, "ln_f", x)
    site(None, "logits", "unembed", x, weights=(config.head,))
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
