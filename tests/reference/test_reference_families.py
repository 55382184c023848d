"""What other families do: closed forms, properties, and transformers' own modules in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import PLAIN, SIZES, family, keyed, written
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_agrees, few, sites_of, tokens_of, weights_of

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.reference import Architecture, Config, ConfigError, logits, ops, tensor_table
from gpt_verify.reference.activations import erf, gated, gelu_exact, relu, sigmoid, silu
from gpt_verify.reference.architecture import Experts, Norm, Rope, Scaling
from gpt_verify.reference.experts import chosen, mixture, routing
from gpt_verify.reference.positions import alibi, frequencies, rotate, slopes, turns
from gpt_verify.sites import beginnings, readers, sites

RNG = np.random.default_rng


# Other people's implementations


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_computes_the_same_in_float64(tmp_path: Path, name: str) -> None:
    import torch
    import transformers

    from gpt_verify.ports.torch.widening import widening

    source = open_checkpoint(written(tmp_path, name))
    tokens = tokens_of(source.config, SIZES[1])
    expected = logits(dict(source.tensors), source.config, tokens)
    experts = {"experts_implementation": "eager"} if source.config.keys.experts else {}
    for attention in ("eager", "sdpa"):
        options = {"attn_implementation": attention, "dtype": torch.float32, **experts}
        model_class = getattr(transformers, FAMILIES[name].model)
        try:
            model = model_class.from_pretrained(tmp_path, **options)
        except ValueError as error:
            assert attention == "sdpa" and "does not support" in str(error)
            continue
        with torch.no_grad(), widening():
            float64_copy = type(model)(model.config).double().eval()
            weights = {key: value.double() for key, value in model.state_dict().items()}
            float64_copy.load_state_dict(weights)
            got = float64_copy(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        assert got.dtype is torch.float64
        assert_agrees(got.numpy(), expected, f"{name}, {attention}")


# The table of sites


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_sites_lists_what_is_yielded_in_order(name: str) -> None:
    config = family(name)
    found = sites_of(weights_of(config), config, tokens_of(config, 7))
    assert list(found) == list(sites(config))
    assert set(readers(config)) == set(tensor_table(config))
    for site in sites(config).values():
        if site.heads:
            assert found[site.name].shape[-1] == site.heads * config.head_size


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_after_a_beginning_reads_what_was_before_its_input(name: str) -> None:
    config = family(name)
    order = list(sites(config))
    for begins in beginnings(config):
        after = order[order.index(begins) :]
        read = {x for site in after for x in sites(config)[site].inputs} - set(after)
        assert read == set(sites(config)[begins].inputs) and len(read) == 1


def _moved(name: str, **keys: Any) -> float:
    """How far the logits of the family's small model go where it has other keys."""
    config = family(name)
    tokens, weights = tokens_of(config, SIZES[1]), weights_of(config)
    before, after = (logits(weights, c, tokens) for c in (config, keyed(config, **keys)))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def _ropes(name: str, **changes: Any) -> dict[str, Any]:
    ropes = family(name).keys.ropes
    return {"ropes": tuple(rope and replace(rope, **changes) for rope in ropes)}


OTHER_KEYS = [
    ("llama", _ropes("llama", theta=10_000.0)),
    ("llama", _ropes("llama", scaling=None)),
    ("llama", _ropes("llama", pairs=True)),
    ("llama", {"norm": Norm(rms=True, epsilon=1e-3)}),
    ("mistral", {"windows": (None,)}),
    ("mistral", {"windows": (6,)}),
    ("qwen2", {"windows": (5,)}),
    ("smollm3", {"ropes": (family("smollm3").keys.ropes[0],)}),
    ("gemma", {"scale_embed": False}),
    ("gemma", {"norm": Norm(rms=True, epsilon=1e-6)}),
    ("gemma", {"activation": "gelu_exact"}),
    ("gemma2", {"cap": None}),
    ("gemma2", {"cap_logits": None}),
    ("gemma2", {"scale": None}),
    ("gemma3_text", {"ropes": family("gemma3_text").keys.ropes[:1]}),
    ("gemma3_text", {"ropes": family("gemma3_text").keys.ropes[1:2]}),
    ("phi", _ropes("phi", size=4)),
    ("gptj", _ropes("gptj", pairs=False)),
    ("gpt_neo", {"scale": None}),
    ("gpt_neo", {"windows": (None,)}),
    ("bloom", {"alibi": False}),
    ("bloom", {"activation": "gelu"}),
    ("mixtral", {"experts": Experts(5, 3)}),
    ("mixtral", {"experts": Experts(5, 2, renormalised=False)}),
    ("gpt_oss", _ropes("gpt_oss", scaling=None)),
    ("gpt_oss", {"activation": "silu"}),
]


@pytest.mark.parametrize(
    ("name", "keys"),
    OTHER_KEYS,
    ids=[f"{name}-{next(iter(keys))}-{i}" for i, (name, keys) in enumerate(OTHER_KEYS)],
)
def test_each_key_matters_in_the_small_models(name: str, keys: dict[str, Any]) -> None:
    """Or a port that ignores it could not be told from a correct one. BLOOM's √(2/π) is the
    smallest of all: it differs in the ninth digit."""
    least = 1e-11 if keys == {"activation": "gelu"} else 1e-5
    assert _moved(name, **keys) > least


# Properties


def test_three_matrices_are_one_split() -> None:
    """GPT-2 with c_attn cut in three."""
    weights, tokens = weights_of(PLAIN), tokens_of(PLAIN, 9)
    fused = Config(11, 17, 12, 3, 2)
    joined = {n: v for n, v in weights.items() if "/attn/" not in n}
    for layer in range(2):
        at = f"h{layer}/attn"
        for leaf in "wb":
            parts = [weights[f"{at}/{part}/{leaf}"] for part in "qkv"]
            joined[f"{at}/c_attn/{leaf}"] = np.concatenate(parts, axis=-1)
            joined[f"{at}/c_proj/{leaf}"] = weights[f"{at}/o/{leaf}"]
    assert_agrees(logits(weights, PLAIN, tokens), logits(joined, fused, tokens))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a window of all", {"windows": (17,)}),
        ("as many heads of keys as of queries", {"n_kv": 3}),
        ("channels of a head", {"size": 4}),
        ("its scale", {"scale": 0.5}),
        ("the width of the MLP", {"n_inner": 48}),
    ],
)
def test_what_is_nothing_else_in_other_words(name: str, keys: dict[str, Any]) -> None:
    weights, tokens = weights_of(PLAIN), tokens_of(PLAIN, 17)
    assert_agrees(logits(weights, keyed(PLAIN, **keys), tokens), logits(weights, PLAIN, tokens))


@pytest.mark.parametrize("key", ["cap", "cap_logits"])
def test_a_cap_far_away_is_none(key: str) -> None:
    """c tanh(x / c) = x - x³ / 3c² …"""
    weights, tokens = weights_of(PLAIN), tokens_of(PLAIN, 17)
    capped = logits(weights, keyed(PLAIN, **{key: 1e9}), tokens)
    assert_agrees(capped, logits(weights, PLAIN, tokens))


def test_one_expert_is_a_plain_mlp() -> None:
    gate = {"gated": True, "activation": "silu"}
    one = keyed(PLAIN, **gate, experts=Experts(1, 1))
    weights, tokens = weights_of(one), tokens_of(one, 9)
    plain = {name.replace("experts/0/", ""): value for name, value in weights.items()}
    assert_agrees(logits(weights, one, tokens), logits(plain, keyed(PLAIN, **gate), tokens))


def test_grouped_heads_are_heads_with_keys_that_are_alike() -> None:
    """Head h reads ⌊h G / H⌋: neighbours share."""
    grouped = keyed(replace(PLAIN, n_embd=24, n_head=6), n_kv=2)
    weights, tokens = weights_of(grouped), tokens_of(grouped, 9)
    every = dict(weights)
    for name, value in weights.items():
        if "/attn/k/" in name or "/attn/v/" in name:
            heads = value.reshape(*value.shape[:-1], 2, 4)
            every[name] = heads[..., [0, 0, 0, 1, 1, 1], :].reshape(*value.shape[:-1], 24)
    all_heads = keyed(grouped, n_kv=None)
    assert_agrees(logits(weights, grouped, tokens), logits(every, all_heads, tokens))


def test_a_window_sees_itself_and_those_before() -> None:
    seen = ops.sees((6, 6), 3)
    assert [list(np.flatnonzero(row)) for row in seen] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
    ]


def test_a_sink_takes_its_share_and_nothing_else() -> None:
    scores = RNG(0).standard_normal((2, 5, 5))
    sinks = np.array([0.5, -1.0])
    plain, sunk = ops.causal_softmax(scores), ops.causal_softmax(scores, None, sinks)
    left = sunk.sum(axis=-1, keepdims=True)
    assert_agrees(sunk, plain * left)
    exponentials = np.where(ops.sees((5, 5)), np.exp(scores), 0).sum(axis=-1)
    assert_agrees(left[..., 0], exponentials / (exponentials + np.exp(sinks)[:, None]))
    assert_agrees(ops.causal_softmax(scores, None, np.array([-800.0, -900.0])), plain)


def test_rms_norm() -> None:
    x = RNG(0).standard_normal((3, 8))
    normed = ops.rms_norm(x, np.ones(8), 0.0)
    assert_agrees((normed**2).mean(axis=-1), np.ones(3))
    assert_agrees(ops.rms_norm(7.0 * x, np.ones(8), 0.0), normed)
    centred = x - x.mean(axis=-1, keepdims=True)
    assert_agrees(
        ops.rms_norm(centred, np.ones(8), 1e-5), ops.layer_norm(x, np.ones(8), np.zeros(8))
    )


# Positions

ROPES = st.builds(
    Rope,
    st.floats(2.0, 1e6),
    st.sampled_from([2, 4, 6]),
    st.booleans(),
    st.sampled_from(
        [
            None,
            Scaling("linear", 3.0),
            Scaling("llama3", 8.0, 16, 1.0, 4.0),
            Scaling("yarn", 4.0, 16, 1.0, 32.0, 1.2),
            Scaling("yarn", 4.0, 64, 0.5, 2.0, 1.0, whole=False),
        ]
    ),
)


@few
@given(ROPES, st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))
def test_rope_knows_the_distance_alone(rope: Rope, t: int, s: int, by: int) -> None:
    """Su et al. 2021, equation 11: q_t · k_s depends on t - s."""
    q, k = RNG(0).standard_normal((2, 1, 1, 6))

    def score(t: int, s: int) -> float:
        (a, b) = (turns(rope, np.array([p]), np.float64) for p in (t, s))
        return float(rotate(q, *a, rope)[0, 0] @ rotate(k, *b, rope)[0, 0])

    # The angle p f is rounded, to within p f u, and f ≤ 1.
    attention = rope.scaling.attention**2 if rope.scaling else 1.0
    size = attention * float(np.linalg.norm(q) * np.linalg.norm(k))
    apart = abs(score(t + by, s + by) - score(t, s))
    assert apart <= 4 * (8 + t + s + by) * 2.0**-53 * size


@few
@given(ROPES)
def test_rope_turns_and_does_not_stretch(rope: Rope) -> None:
    x = RNG(1).standard_normal((2, 9, 6))
    turned = rotate(x, *turns(rope, np.arange(9), np.float64), rope)
    attention = rope.scaling.attention if rope.scaling else 1.0
    size = slice(0, rope.size)
    assert_agrees(
        np.linalg.norm(turned[..., size], axis=-1),
        attention * np.linalg.norm(x[..., size], axis=-1),
    )
    assert np.array_equal(turned[..., rope.size :], x[..., rope.size :])
    if attention == 1.0:
        assert np.array_equal(turned[:, 0], x[:, 0])


def test_rope_is_a_product_of_complex_numbers() -> None:
    """Su et al. 2021, equation 12, one pair: (a + ib) exp(i p θ_j); and the two orders of pairs are
    a permutation of channels apart."""
    rope = Rope(100.0, 6, pairs=True)
    x = RNG(2).standard_normal((1, 5, 6))
    turned = rotate(x, *turns(rope, np.arange(5), np.float64), rope)
    z = x[..., ::2] + 1j * x[..., 1::2]
    angles = np.arange(5)[:, None] * 100.0 ** (-np.array([0, 2, 4]) / 6)
    expected = z * np.exp(1j * angles)
    assert_agrees(turned[..., ::2], expected.real)
    assert_agrees(turned[..., 1::2], expected.imag)
    halves, order = replace(rope, pairs=False), [0, 2, 4, 1, 3, 5]
    other = rotate(x[..., order], *turns(halves, np.arange(5), np.float64), halves)
    assert_agrees(other, turned[..., order])


def test_scaled_frequencies() -> None:
    """Llama 3: λ = 2π/f above 8192/1 is divided by 8, below 8192/4 kept. YaRN: pairs that turn
    more than 32 times within 4096 positions are kept, those that turn less than once divided."""
    plain = frequencies(Rope(500_000.0, 128))
    llama = frequencies(Rope(500_000.0, 128, scaling=Scaling("llama3", 8.0, 8192, 1.0, 4.0)))
    wavelength = 2 * math.pi / plain
    assert np.array_equal(llama[wavelength < 2048], plain[wavelength < 2048])
    assert_agrees(llama[wavelength > 8192], plain[wavelength > 8192] / 8)
    between = (wavelength > 2048) & (wavelength < 8192)
    assert between.any() and (llama < plain)[between].all() and (llama > plain / 8)[between].all()
    yarn = frequencies(Rope(500_000.0, 128, scaling=Scaling("yarn", 8.0, 4096)))
    often = 4096 * plain / (2 * math.pi)
    assert_agrees(yarn[often > 64], plain[often > 64])
    assert_agrees(yarn[often < 0.5], plain[often < 0.5] / 8)
    assert_agrees(frequencies(Rope(1e4, 8, scaling=Scaling("linear", 4.0))) * 4, _plain(1e4, 8))


def _plain(theta: float, size: int) -> np.ndarray:
    return np.array([theta ** (-2 * i / size) for i in range(size // 2)])


def test_slopes() -> None:
    """Press et al. 2022, section 3: for 8 heads 1/2 … 1/256; for 16 1/√2, 1/2, …"""
    assert_agrees(slopes(8), 0.5 ** np.arange(1, 9))
    assert_agrees(slopes(16), 0.5 ** (np.arange(1, 17) / 2))
    assert_agrees(slopes(12), np.concatenate([slopes(8), slopes(16)[::2][:4]]))
    assert_agrees(slopes(1), [2.0**-8])


def test_alibi_is_a_slope_along_the_sources() -> None:
    """slope · s and slope · (s - t) are the same to a softmax."""
    scores = RNG(3).standard_normal((3, 6, 6))
    along = scores + slopes(3)[:, None, None] * np.arange(6)
    assert_agrees(ops.causal_softmax(alibi(scores, slopes(3))), ops.causal_softmax(along))
    assert np.array_equal(alibi(scores, slopes(3))[:, 0], scores[:, 0])


# Activations


@few
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=50))
def test_erf(x: list[float]) -> None:
    """To within a few units in the last place of ``math.erf``."""
    got, expected = erf(np.array(x)), np.array([math.erf(v) for v in x])
    assert np.all(np.abs(got - expected) <= 4 * np.spacing(np.abs(expected)))


def test_erf_everywhere() -> None:
    x = np.linspace(-7, 7, 20_001)
    expected = np.array([math.erf(v) for v in x])
    assert np.all(np.abs(erf(x) - expected) <= 4 * np.spacing(np.abs(expected)))
    special = erf(np.array([np.inf, -np.inf, np.nan, 0.0, -0.0]))
    assert np.array_equal(special[:2], [1, -1]) and np.isnan(special[2])
    assert np.array_equal(np.signbit(special[3:]), [False, True])
    narrow = erf(x.astype(np.float32))
    assert narrow.dtype == np.float32
    assert np.all(np.abs(narrow - expected) <= 8 * 2.0**-24)


def test_activations() -> None:
    """gelu(x) - gelu(-x) = x, silu(x) - silu(-x) = x; Φ(1) is 0.8413…; at 0 they are 0."""
    x = np.linspace(-9, 9, 181)
    for act in (gelu_exact, silu):
        assert_agrees(act(x) - act(-x), x)
        assert act(np.zeros(1)) == 0
    assert_agrees(gelu_exact(np.ones(1)), [0.841344746068542948])
    assert_agrees(silu(np.ones(1)), [1 / (1 + math.exp(-1))])
    assert np.array_equal(relu(np.array([-2.0, 0.0, 3.0])), [0, 0, 3])
    assert np.array_equal(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_gates() -> None:
    """gpt-oss: nothing above 7 in either, nothing below -7 in the second."""
    gate, up = np.array([9.0, 7.0, -9.0, 1.0]), np.array([8.0, 7.0, 1.0, -9.0])
    got = gated("swish_clamped", gate, up)
    assert_agrees(got[0], got[1])
    assert_agrees(got[1], 8 * 7 / (1 + math.exp(-1.702 * 7)))
    assert_agrees(got[2], 2 * -9 / (1 + math.exp(1.702 * 9)))
    assert_agrees(got[3], -6 / (1 + math.exp(-1.702)))
    assert_agrees(gated("silu", gate, up), silu(gate) * up)


# Experts


@few
@given(st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_routing(count: int, seed: int, renormalised: bool) -> None:
    router = RNG(seed).standard_normal((4, 6))
    weights = routing(router, Experts(6, count, renormalised))
    assert (np.count_nonzero(weights, axis=-1) == count).all()
    whole = ops.softmax(router)
    assert (weights.min(axis=-1) >= 0).all()
    kept = np.where(weights > 0, whole, 0)
    if renormalised:
        kept /= kept.sum(axis=-1, keepdims=True)
    assert_agrees(weights, kept)
    assert np.array_equal(weights > 0, chosen(router, count))
    worst = np.where(weights > 0, router, np.inf).min(axis=-1)
    assert (worst >= np.where(weights > 0, -np.inf, router).max(axis=-1)).all()


def test_of_equal_experts_the_first_is_chosen() -> None:
    assert np.array_equal(chosen(np.zeros((1, 4)), 2), [[True, True, False, False]])


def test_a_mixture_is_a_weighted_sum() -> None:
    x, weights = (
        RNG(5).standard_normal((4, 3)),
        routing(RNG(6).standard_normal((4, 5)), Experts(5, 2)),
    )
    matrices = RNG(7).standard_normal((5, 3, 3))
    got = mixture(x, weights, lambda e, rows: rows @ matrices[e])
    assert_agrees(got, np.einsum("te,ti,eij->tj", weights, x, matrices))


# Keys that cannot be


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"n_kv": 2}, "n_head = 3 is not divisible by n_kv = 2"),
        ({"n_kv": 0}, "n_kv"),
        ({"size": 0}, "size"),
        ({"ropes": (Rope(1e4, 6),)}, "6 rotary channels are not among 4"),
        ({"ropes": (None,) * 3}, "ropes: there are 2 layers"),
        ({"windows": ()}, "windows: there are 2 layers"),
        ({"windows": (0,)}, "a window of 0 shows nothing"),
        ({"scale": 0.0}, "scale = 0.0 is not positive"),
        ({"cap": -1.0}, "cap = -1.0 is not positive"),
        ({"cap_logits": math.nan}, "cap_logits = nan is not positive"),
        ({"qk_norm": "each"}, "qk_norm = 'each'"),
        ({"parallel": 3}, "parallel = 3"),
        ({"parallel": 1, "norm_branch": True}, "parallel branches"),
        ({"parallel": 2, "norm_first": False}, "parallel branches"),
        ({"activation": "tanh"}, "activation = 'tanh'"),
        ({"activation": "swish_clamped"}, "gated"),
        ({"n_inner": 0}, "n_inner"),
        ({"table": False, "table_offset": 2}, "there is no table"),
        ({"table_offset": -1}, "negative"),
        ({"experts": Experts(2, 1)}, "experts are gated"),
        ({"fused": True, "sinks": True}, "sinks: queries, keys and values in one matrix"),
        ({"fused": True, "n_kv": 1}, "n_kv: queries"),
    ],
    ids=str,
)
def test_impossible_keys_are_refused(keys: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        keyed(PLAIN, **keys)


IMPOSSIBLE: dict[str, Callable[[], object]] = {
    "theta": lambda: Rope(0.0, 4),
    "odd": lambda: Rope(1e4, 5),
    "no channels": lambda: Rope(1e4, 0),
    "epsilon": lambda: Norm(epsilon=-1e-5),
    "layer norm with 1 + g": lambda: Norm(plus_one=True),
    "more experts than there are": lambda: Experts(4, 5),
    "no experts": lambda: Experts(0, 0),
    "kind": lambda: Scaling("ntk", 2.0),  # type: ignore[arg-type]
    "factor": lambda: Scaling("linear", 0.0),
    "trained": lambda: Scaling("llama3", 8.0, 0),
    "high below low": lambda: Scaling("yarn", 8.0, 4096, 32.0, 1.0),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_parts_are_refused(what: str) -> None:
    with pytest.raises(ConfigError):
        IMPOSSIBLE[what]()


def test_an_architecture_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="'llama' is none of gpt2, openai-gpt"):
        Config(*SIZES, architecture="llama")
    assert Architecture(norm_first=True, norm_last=True) == Config(*SIZES).keys
