"""Every recipe is told from every other one, and the difference of two ports is accounted for:
without any engine, on numbers that the recipes make themselves."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, checkpoint
from recipe_models import source

from gpt_verify.graph.local import NotShown
from gpt_verify.graph.run import run
from gpt_verify.numerics.precision import FLOAT32, PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.recipes.agreement import spacing
from gpt_verify.recipes.attribution import attribute
from gpt_verify.recipes.identify import Identification, grouped
from gpt_verify.recipes.recipe import Read
from gpt_verify.recipes.summary import line
from gpt_verify.recipes.table import recipes_of
from gpt_verify.reference.experts import routing
from gpt_verify.sites import sites

HALVES = ("bfloat16", "float16")
EVERY = [
    *(("gpt2", site) for site in ("embed", "h.0.ln_1", "h.0.attn.scores", "h.0.attn.pattern")),
    *(("gpt2", site) for site in ("h.0.attn.mix", "h.0.resid_mid", "h.0.mlp.pre", "h.0.mlp.act")),
    *(("llama", site) for site in ("h.0.ln_1", "h.0.attn.q_rot", "h.0.mlp.act")),
    *(("gemma", site) for site in ("embed", "h.0.ln_1", "h.0.mlp.act")),
    ("gemma2", "h.0.attn.capped"),
    ("gemma2", "logits"),
    ("gpt2", "logits"),
    ("bloom", "h.0.attn.sloped"),
    ("mixtral", "h.0.mlp.routing"),
    ("qwen3_moe", "h.0.mlp.routing"),
    ("mixtral", "h.0.mlp.out"),
    ("gpt_oss", "h.0.mlp.out"),
]
#: Recipes that are one function of what is read here: a cast of what is in that format already, a
#: table at every number of float16, vectors of 8 or 16 where a row is as many.
SAME = ({"float32", "table-float16"}, {"fused-stored-short-8", "fused-stored-short-16"})


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("name", "site"), EVERY, ids=lambda part: str(part))
def test_every_recipe_is_told_from_the_others(name: str, site: str, dtype: str) -> None:
    made, p = source(name), PRECISIONS[dtype]
    config, place = made.config, sites(made.config)[site]
    weights = DeclaredWeights(made.tensors, p)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.n_vocab, config.n_ctx)
    values = {}
    for of in [sites(config)[i] for i in place.inputs[site.endswith("attn.mix") :]]:
        shape = (len(tokens), of.width) if of.width else (config.n_head, *2 * (len(tokens),))
        x = rng.normal(size=shape) * 2
        if config.keys.experts and of.operation == "routing":
            x = routing(x, config.keys.experts)
        if of.is_sum or of.looks_up:
            x *= np.linspace(0.2, 5, shape[-1])
        values[of.name] = np.asarray(p.round(x), np.float64)
    tried, plain = 0, dict[str, np.ndarray]()
    for recipe in recipes_of(config, place):
        read = Read(config, place, tokens, dict(values), weights, p)
        try:
            with np.errstate(all="ignore"):
                shown = np.broadcast_to(recipe.make(read).store(p).mid, read.right().shape)
        except NotShown:
            continue
        found = Identification(config, weights, p)
        found.begin(tokens[None])
        for where, value in {**values, site: np.nan_to_num(shown)}.items():
            found(where, np.array(value[None], np.float32))
        last = found.found()[-1]
        tried += 1
        if recipe.by_distances:
            assert recipe.name in {t.recipe.name for t in last.alike} and not last.named
            continue
        named = set(last.named)
        assert (
            named == {recipe.name}
            or (recipe.name in named and named in SAME)
            or (named == {recipe.plain} and np.array_equal(shown, plain[recipe.plain]))
        )
        plain[recipe.name] = shown
    assert tried


@pytest.mark.parametrize("kept", [True, False], ids=["pattern stored", "pattern in float32"])
@pytest.mark.parametrize("dtype", HALVES)
def test_scores_in_float32_may_be_cast_first(dtype: str, kept: bool) -> None:
    made, p = source("gpt2"), PRECISIONS[dtype]
    config, weights = made.config, DeclaredWeights(made.tensors, p)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(config.n_head, 40, 40)).astype(np.float32).astype(np.float64)
    tokens = rng.integers(0, config.n_vocab, 40)
    read = Read(
        config, sites(config)["h.0.attn.pattern"], tokens, {"h.0.attn.scores": x}, weights, p
    )
    for recipe in recipes_of(config, read.site):
        if recipe.name.removeprefix("cast-") not in ("float32", "steps"):
            continue
        shown = recipe.make(read).store(p if kept else FLOAT32).mid
        found = Identification(config, weights, p)
        found.begin(tokens[None])
        for site, value in (("h.0.attn.scores", x), ("h.0.attn.pattern", shown)):
            found(site, value[None].astype(np.float32))
        assert found.found()[-1].named == (recipe.name,)
        assert found.found()[-1].kept == (dtype if kept else "float32")


def port(dtype: str, **recipes: str) -> tuple[DeclaredWeights, dict[str, np.ndarray]]:
    """What a port shows that follows these recipes, by operation; the first ones otherwise."""
    source, p = checkpoint(), PRECISIONS[dtype]
    weights = DeclaredWeights(source.tensors, p)

    def follow(call, value):  # type: ignore[no-untyped-def]
        read = Read(CONFIG, call.site, TOKENS, call.values, weights, p)
        known = {recipe.name: recipe for recipe in recipes_of(CONFIG, call.site)}
        name = recipes.get(call.site.operation, next(iter(known)))
        with np.errstate(all="ignore"):
            return known[name].make(read).store(p).mid

    lookup = Widened(weights).__getitem__
    return weights, dict(run(lookup, CONFIG, TOKENS, {}, alter=follow, keep=None))


TOKENS = np.random.default_rng(0).integers(0, CONFIG.n_vocab, CONFIG.n_ctx)
OTHER = {"layer_norm": "cast-before-gain", "gelu": "steps", "linear": "bias-after"}


@pytest.mark.parametrize("dtype", HALVES)
def test_the_recipe_of_a_port_is_one_line(dtype: str) -> None:
    weights, shown = port(dtype, **OTHER)
    found = Identification(CONFIG, weights, PRECISIONS[dtype])
    found.begin(TOKENS[None])
    for site, value in shown.items():
        found(site, value[None].astype(np.float32))
    said = line(grouped(found.found(), CONFIG), dtype).split("; ")
    assert "norms in float32, cast before the gain" in said
    assert "products accumulate in float32, cast before the bias" in said
    assert f"GELU with every step stored in {dtype}" in said
    assert "softmax in float32" in said
    assert f"residual sum is rounded once, kept in {dtype}" in said


@pytest.mark.parametrize("dtype", HALVES)
def test_the_roundings_of_two_ports_are_their_difference(dtype: str) -> None:
    weights, a = port(dtype)
    _, b = port(dtype, **OTHER)
    made = attribute(CONFIG, weights, TOKENS, a, b)
    assert made.first == "h.0.ln_1"
    assert made.parts[0].kind == "embed" and (made.parts[0].share, made.parts[0].left) == (0, 1)
    # To within what float64 says of a difference that float32 would not show.
    assert made.parts[-1].left < 2.0**-48
    assert abs(sum(part.share for part in made.parts) - 1) < 2.0**-24
    assert min(made.kl_nats, *made.kl_exact_nats) > 0
    same = attribute(CONFIG, weights, TOKENS, a, a)
    assert (same.first, same.rms_nats, same.kl_nats) == (None, 0, 0)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_spacing_is_that_of_the_format(dtype: str) -> None:
    p = PRECISIONS[dtype]
    x = np.asarray(p.round(np.random.default_rng(0).normal(size=500)), np.float64)
    step = spacing(x, p)
    for by, equal in ((0.49, True), (0.51, False)):
        assert np.array_equal(p.round(np.abs(x) + by * step), np.abs(x)) is equal
    assert np.array_equal(p.round(np.abs(x) + step), np.abs(x) + step)
