"""Experts, their routing, slopes, and what goes on with a product that is not stored, planted in
torch as their users write them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from recipe_cases import TORCH, ids, shown
from recipe_models import source
from torch.nn import functional

from gpt_verify.recipes.identify import Found
from gpt_verify.reference import positions
from gpt_verify.sites import sites

Tensor = torch.Tensor
HALVES = ("bfloat16", "float16")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(weights: Tensor, index: Tensor, count: int) -> Tensor:
    return torch.zeros(len(weights), count, dtype=weights.dtype).scatter(1, index, weights)


def mixtral(router: Tensor, top: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """``MixtralTopKRouter``: weights that stay in float32."""
    value, index = torch.topk(torch.softmax(router.float(), -1), top, dim=-1)
    return value / value.sum(-1, keepdim=True), index


def mixtral_stored(router: Tensor, top: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    value, index = mixtral(router, top, half)
    return value.to(half), index


def cast_first(router: Tensor, top: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    value, index = torch.topk(torch.softmax(router.float(), -1).to(half), top, dim=-1)
    return value / value.sum(-1, keepdim=True), index


def chosen_first(router: Tensor, top: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """``GptOssTopKRouter``."""
    value, index = torch.topk(router, top, dim=-1)
    return torch.softmax(value, dim=1), index


def stepwise(router: Tensor, top: int, half: torch.dtype) -> tuple[Tensor, Tensor]:
    value, index = torch.topk(router, top, dim=-1)
    e = torch.exp(value - value.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True), index


Router = Callable[[Tensor, int, torch.dtype], tuple[Tensor, Tensor]]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("way", "recipe"),
    [
        (mixtral, "float32"),
        (mixtral_stored, "float32"),
        (cast_first, "stored"),
        (chosen_first, "float32"),
        (stepwise, "steps"),
    ],
)
def test_the_routing(way: Router, recipe: str, dtype: str) -> None:
    found, _ = routed(way, dtype)
    assert found.named == (recipe,), found.tried
    assert found.kept == ("float32" if way is mixtral else dtype)


def routed(way: Router, dtype: str) -> tuple[Found, Tensor]:
    config = source("mixtral").config
    assert config.keys.experts is not None
    router = drawn(config.n_ctx, config.keys.experts.count).to(TORCH[dtype])
    weights, index = way(router, config.keys.experts.chosen, TORCH[dtype])
    made = dense(weights, index, config.keys.experts.count)
    return shown("mixtral", dtype, {"h.0.mlp.router": router, "h.0.mlp.routing": made}), made


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def fused_silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def clamped_gate(gate: Tensor, up: Tensor) -> Tensor:
    """``GptOssExperts._apply_gate``."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def experts(
    name: str,
    dtype: str,
    gate: Callable[[Tensor, Tensor], Tensor],
    how: str,
    bias_after: bool = False,
) -> Found:
    """The loop of ``MixtralExperts``, whose products accumulate in float32."""
    made, half = source(name), TORCH[dtype]
    config, kind = made.config, made.config.keys.experts
    assert kind is not None
    x = drawn(config.n_ctx, config.n_embd, seed=1).to(half)
    weights, index = mixtral_stored(drawn(config.n_ctx, kind.count), kind.chosen, half)
    weights_TE = dense(weights, index, kind.count)

    def tensor(part: str, e: int) -> Tensor:
        return torch.from_numpy(np.array(made.tensors[f"h0/mlp/experts/{e}/{part}"])).to(half)

    def product(y: Tensor, part: str, e: int) -> Tensor:
        result = y.float() @ tensor(f"{part}/w", e).float()
        bias = tensor(f"{part}/b", e).float() if config.keys.bias_mlp else 0
        return ((result.to(half) if bias_after else result) + bias).to(half)

    total = torch.zeros(len(x), config.n_embd, dtype=half if how == "in-turn" else torch.float32)
    for e in range(kind.count):
        rows = weights_TE[:, e].nonzero()[:, 0]
        inner = gate(product(x[rows], "gate", e), product(x[rows], "up", e))
        out, weight = product(inner, "down", e), weights_TE[rows, e, None]
        if how == "in-turn":
            total.index_add_(0, rows, out * weight)
        else:
            total.index_add_(0, rows, out.float() * weight.float())
    values = {"h.0.ln_2": x, "h.0.mlp.routing": weights_TE, "h.0.mlp.out": total.to(half)}
    return shown(name, dtype, values)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("how", ["in-turn", "once"])
def test_the_experts(how: str, dtype: str) -> None:
    assert experts("mixtral", dtype, silu_gate, how).named == (how,)
    assert experts("mixtral", dtype, fused_silu_gate, how).named == (f"fused-{how}",)
    assert experts("gpt_oss", dtype, clamped_gate, how).named == (how,)
    after = experts("gpt_oss", dtype, clamped_gate, how, bias_after=True)
    assert after.named == (f"{how}-bias-after",)


def test_another_gate_is_no_experts() -> None:
    found = experts("mixtral", "bfloat16", lambda gate, up: functional.gelu(gate) * up, "in-turn")
    assert found.named == () and found.best is not None and found.best.agreement.outside > 0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("hidden", [True, False], ids=["one product", "scores shown"])
@pytest.mark.parametrize("how", ["places-stored", "distances", "distances-slopes-stored"])
def test_slopes(how: str, hidden: bool, dtype: str) -> None:
    """``places-stored`` of hidden scores is what BLOOM's ``baddbmm`` does."""
    config, half = source("bloom").config, TORCH[dtype]
    t, h = config.n_ctx, config.n_head
    rows = {part: drawn(t, config.n_embd, seed=i).to(half) for i, part in enumerate("qk")}
    q, k = (x.reshape(t, h, -1).transpose(0, 1).float() for x in rows.values())
    scores = q @ k.mT * (config.n_embd // h) ** -0.5
    slope = torch.from_numpy(positions.slopes(h)).float()[:, None, None]
    slope = slope.to(half).float() if "slopes" in how else slope
    place = torch.arange(t).float()
    added = slope * (place if "places" in how else place - place[:, None])
    added = added.to(half).float() if "stored" in how else added
    values = {f"h.0.attn.{part}": x for part, x in rows.items()}
    if not hidden:
        values["h.0.attn.scores"] = scores = scores.to(half).float()
    values["h.0.attn.sloped"] = (scores + added).to(half)
    found = shown("bloom", dtype, values)
    assert how in found.named, found.tried
    assert all(t.agreement.share > 0.99 for t in found.fitting)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_relu_rounds_nothing(dtype: str) -> None:
    x = drawn(19, 96).to(TORCH[dtype])
    found = shown("opt", dtype, {"h.0.mlp.pre": x, "h.0.mlp.act": torch.relu(x)})
    assert found.exact and found.named == ()
    wrong = shown("opt", dtype, {"h.0.mlp.pre": x, "h.0.mlp.act": functional.gelu(x)})
    assert not wrong.exact and wrong.named == ()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("constants", [False, True], ids=["in float32", "in half precision"])
@pytest.mark.parametrize("stored", [False, True], ids=["product in registers", "product stored"])
def test_a_gelu_goes_on_with_the_product(stored: bool, constants: bool, dtype: str) -> None:
    made, half = source("gpt2"), TORCH[dtype]
    # Far enough from zero for a GELU to bend.
    x = 4 * drawn(made.config.n_ctx, made.config.n_embd).to(half)
    w, b = (torch.from_numpy(np.array(made.tensors[f"h0/mlp/c_fc/{n}"])).to(half) for n in "wb")
    root, cubic = (
        torch.tensor(c, dtype=half).float() if constants else c
        for c in (math.sqrt(2 / math.pi), 0.044715)
    )
    pre = x.float() @ w.float() + b.float()
    read = pre.to(half).float() if stored else pre
    act = 0.5 * read * (1 + torch.tanh(root * (read + cubic * read**3)))
    values = {"h.0.ln_2": x, "h.0.mlp.pre": pre.to(half), "h.0.mlp.act": act.to(half)}
    found = shown("gpt2", dtype, values)
    name = ("float32" if stored else "of-the-product") + ("-constants" if constants else "")
    # A table at every number of float16 is the function itself there.
    table = {"table-float16"} if name == "float32" and dtype == "float16" else set()
    assert set(found.named) == {name} | table, found.tried


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("how", ["float32", "of-the-sum", "statistics"])
@pytest.mark.parametrize(
    ("name", "site"),
    [("gpt2", "h.0.ln_1"), ("gpt2", "h.0.ln_2"), ("llama", "h.0.ln_2"), ("gemma", "h.0.ln_2")],
)
def test_a_norm_goes_on_with_the_sum(name: str, site: str, how: str, dtype: str) -> None:
    model, half = source(name), TORCH[dtype]
    config, place = model.config, sites(model.config)[site]
    length, width = config.n_ctx, config.n_embd
    (summed,) = (sites(config)[i] for i in place.inputs)
    values: dict[str, torch.Tensor] = {}
    if summed.looks_up:
        tables = (torch.from_numpy(np.array(model.tensors[t])).to(half) for t in ("wte", "wpe"))
        wte, wpe = (table.float() for table in tables)
        made = wte[torch.from_numpy(ids(config, length, 0))] + wpe[:length]
    else:
        for at, of in enumerate(summed.inputs):
            values[of] = drawn(length, width, seed=at).to(half)
        made = sum(value.float() for value in values.values())
    stored = made.to(half)
    x = made if how == "of-the-sum" else stored.float()
    of = stored.float() if how == "float32" else made
    g, *b = (torch.from_numpy(np.array(model.tensors[t])).to(half).float() for t in place.weights)
    if place.operation == "layer_norm":
        centred = x - of.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        found = centred * torch.rsqrt(variance + config.keys.norm.epsilon) * g + b[0]
        statistics = "mean-of-the-sum"
    else:
        root = torch.rsqrt(of.pow(2).mean(-1, keepdim=True) + config.keys.norm.epsilon)
        found = x * root * (1 + g if config.keys.norm.plus_one else g)
        statistics = "squares-of-the-sum"
    values |= {summed.name: stored, site: found.to(half)}
    told = shown(name, dtype, values)
    assert told.named == ({"statistics": statistics}.get(how, how),), told.tried
