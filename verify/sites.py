"""The sites of the model: each with what goes into it and which operation makes it.

This is the one place that knows the wiring. The mathematics of each operation is the oracle's
(``reference.ops``); its error budget and its backward rule are in ``gpt_verify.graph``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table


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
        width: of its last axis; 0 of scores and patterns, [H, T, S].
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
    width: int = 0

    # What a port has to know of an operation that it looks for; all else is its record's.

    @property
    def looks_up(self) -> bool:
        """It is read from tables, by tokens and positions."""
        return not self.inputs

    @property
    def is_product(self) -> bool:
        """It is another site times a matrix of the checkpoint."""
        return self.operation in ("linear", "unembed")

    @property
    def is_logits(self) -> bool:
        return self.operation == "unembed"

    @property
    def centres(self) -> bool:
        """It is blind to a constant in what it reads: a layer norm."""
        return self.operation == "layer_norm"

    @property
    def is_sum(self) -> bool:
        """It is the sum of what it reads."""
        return self.operation == "add"


@cache
def sites(config: Config) -> dict[str, Site]:
    """Every site of a model of this size and architecture, in the order of computation."""
    table: dict[str, Site] = {}
    tensors_of = tensor_table(config)

    def site(
        layer: int | None,
        kind: str,
        operation: str,
        *inputs: str,
        weights: tuple[str, ...] = (),
        heads: int = 0,
        width: int | None = None,
    ) -> str:
        name = kind if layer is None else f"h.{layer}.{kind}"
        if width is None:
            width = heads * config.head_size if heads else table[inputs[0]].width
        table[name] = Site(name, kind, layer, operation, inputs, weights, heads, width)
        return name

    keys, h, g = config.keys, config.n_head, config.n_kv

    def linear(
        layer: int, kind: str, x: str, tensors: str, heads: int = 0, bias: bool = True
    ) -> str:
        weights = product(f"h{layer}/{tensors}", bias)
        width = tensors_of[weights[0]].shape[-1]
        return site(layer, kind, "linear", x, weights=weights, heads=heads, width=width)

    def norm(layer: int | None, kind: str, x: str, heads: int = 0) -> str:
        scope = kind.replace(".", "/") if layer is None else f"h{layer}/{kind.replace('.', '/')}"
        if not keys.norm.rms:
            weights = (f"{scope}/g", f"{scope}/b")
            return site(layer, kind, "layer_norm", x, weights=weights, heads=heads)
        return site(layer, kind, "rms_norm", x, weights=(f"{scope}/g",), heads=heads)

    def separate(layer: int, x: str) -> tuple[str, str, str]:
        made = {
            part: linear(layer, f"attn.{part}", x, f"attn/{part}", heads, keys.bias_qkv)
            for part, heads in (("q", h), ("k", g), ("v", g))
        }
        if keys.qk_norm is not None:
            for part, heads in (("q", h), ("k", g)):
                made[part] = norm(layer, f"attn.{part}_norm", made[part], heads)
        if config.rope(layer) is not None:
            for part, heads in (("q", h), ("k", g)):
                made[part] = site(layer, f"attn.{part}_rot", "rope", made[part], heads=heads)
        return made["q"], made["k"], made["v"]

    def attention(layer: int, x: str) -> str:
        if keys.fused:
            qkv = linear(layer, "attn.qkv", x, "attn/c_attn", 3 * h)
            read, values = [qkv], qkv
        else:
            *read, values = separate(layer, x)
        scores = site(layer, "attn.scores", "scores", *read, width=0)
        if keys.cap is not None:
            scores = site(layer, "attn.capped", "soft_cap", scores)
        if keys.alibi:
            scores = site(layer, "attn.sloped", "alibi", scores)
        sinks = (f"h{layer}/attn/sinks",) if keys.sinks else ()
        pattern = site(layer, "attn.pattern", "pattern", scores, weights=sinks)
        mix = site(layer, "attn.mix", "mix", pattern, values, heads=h)
        return linear(
            layer,
            "attn.out",
            mix,
            "attn/c_proj" if keys.fused else "attn/o",
            bias=keys.bias_out,
        )

    def mlp(layer: int, x: str) -> str:
        if keys.experts is not None:
            router = linear(layer, "mlp.router", x, "mlp/router", bias=keys.experts.bias)
            routing = site(layer, "mlp.routing", "routing", router)
            weights = tuple(
                tensor
                for e in range(keys.experts.count)
                for part in ("gate", "up", "down")
                for tensor in product(f"h{layer}/mlp/experts/{e}/{part}", keys.bias_mlp)
            )
            return site(layer, "mlp.out", "experts", x, routing, weights=weights)
        if keys.gated:
            gate, up = (
                linear(layer, f"mlp.{part}", x, f"mlp/{part}", bias=keys.bias_mlp)
                for part in ("gate", "up")
            )
            act = site(layer, "mlp.act", "glu", gate, up)
            return linear(layer, "mlp.out", act, "mlp/down", bias=keys.bias_mlp)
        pre = linear(layer, "mlp.pre", x, "mlp/c_fc", bias=keys.bias_mlp)
        act = site(layer, "mlp.act", _ACTIVATIONS[keys.activation], pre)
        return linear(layer, "mlp.out", act, "mlp/c_proj", bias=keys.bias_mlp)

    def in_turn(layer: int, x: str) -> str:
        for branch, ln, total in ((attention, "ln_1", "resid_mid"), (mlp, "ln_2", "resid_post")):
            read = norm(layer, ln, x) if keys.norm_first else x
            made = branch(layer, read)
            if keys.norm_branch:
                made = norm(layer, f"{ln}_after", made)
            x = site(layer, total, "add", x, made)
            if keys.norm_sum:
                x = norm(layer, ln, x)
        return x

    def in_parallel(layer: int, x: str) -> str:
        read = norm(layer, "ln_1", x)
        attended = attention(layer, read)
        if keys.parallel == 2:
            read = norm(layer, "ln_2", x)
        return site(layer, "resid_post", "add", x, attended, mlp(layer, read))

    tables = ("wte", "wpe") if keys.table else ("wte",)
    x = site(None, "embed", "embed", weights=tables, width=config.n_embd)
    if keys.norm_embed:
        x = norm(None, "ln_embed", x)
    for layer in range(config.n_layer):
        x = (in_parallel if keys.parallel else in_turn)(layer, x)
    if keys.norm_last:
        x = norm(None, "ln_f", x)
    head = (config.head, "lm_head/b") if keys.bias_head else (config.head,)
    site(None, "logits", "unembed", x, weights=head, width=config.n_vocab)
    return table


#: The operation of an activation that is not GPT-2's, where there is no gate.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_bloom": "gelu",
    "gelu_exact": "gelu_exact",
    "silu": "silu",
    "relu": "relu",
}


def product(scope: str, bias: bool) -> tuple[str, ...]:
    """The tensors of a product with a matrix."""
    return (f"{scope}/w", f"{scope}/b") if bias else (f"{scope}/w",)


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
