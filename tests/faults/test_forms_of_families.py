"""Operations of the families that are wrong in a way that no catalogue lists: what was done to them
is read off, wherever it shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import SIZES, family, in_memory, keyed, read, stated
from hypothesis import given
from hypothesis import strategies as st

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.diagnosis.sites import SiteDiagnosis
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right, run
from gpt_verify.laws.catalogue import faults_of
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference import ops
from gpt_verify.reference.positions import frequencies
from gpt_verify.sites import sites

N_CTX = SIZES[1]
#: Kinds of sites that a port may not show.
TURNED = frozenset({"attn.q_rot", "attn.k_rot"})
PATTERN_ALONE = TURNED | {"attn.scores"}


def explained(
    source: Checkpoint,
    overrides: Mapping[str, Override],
    site: str,
    hidden: Collection[str] = (),
) -> tuple[str, str]:
    """The name and the words of what is said of this site, of a port that computes with these in
    float32 and shows everything but what is hidden."""
    config, table = source.config, sites(source.config)
    tokens_T = np.random.default_rng(1).integers(0, config.n_vocab, config.n_ctx)
    diagnosis = SiteDiagnosis(
        config,
        DeclaredWeights(source.tensors, FLOAT32),
        FLOAT32,
        tokens_T,
        0,
        {site},
        faults_of(config).values(),
    )

    def stored(act: Override) -> Override:
        return lambda call: np.asarray(act(call), np.float32)

    acts = {name: stored(overrides.get(name, right)) for name in table}
    lookup = source.tensors.__getitem__
    for name, value in run(lookup, config, tokens_T, acts, dtype=np.float32, keep=None):
        if table[name].kind not in hidden:
            diagnosis(name, np.asarray(value)[None])
    found = diagnosis.explanations[site]
    assert found.accepted, found
    return found.accepted[0].fault, found.accepted[0].note


# Angles


def turned(angles_R: Any, neighbours: bool = False, factor: float = 1.0) -> Override:
    """By these angles from one position to the next, in complex numbers."""
    pairs = len(angles_R)

    def act(call: Call) -> Any:
        x = ops.heads_of(call.x, call.site.heads).astype(np.float64)
        angle_TR = np.arange(x.shape[1])[:, None] * np.asarray(angles_R)
        if neighbours:
            a, b = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        else:
            a, b = slice(0, pairs), slice(pairs, 2 * pairs)
        made, z = x.copy(), factor * (x[..., a] + 1j * x[..., b]) * np.exp(1j * angle_TR)
        made[..., a], made[..., b] = z.real, z.imag
        return ops.side_by_side(made)

    return act


def both(act: Override, layer: int = 1) -> dict[str, Override]:
    return {f"h.{layer}.{kind}": act for kind in TURNED}


@given(
    st.data(),
    st.sampled_from(["llama", "gpt_neox", "gptj", "phi", "olmo2", "gemma"]),
    st.sampled_from([("q_rot", frozenset()), ("scores", TURNED), ("pattern", PATTERN_ALONE)]),
)
def test_any_angles_are_read_off(
    data: st.DataObject, name: str, shown: tuple[str, frozenset[str]]
) -> None:
    source, (site, hidden) = in_memory(name), shown
    rope = source.config.rope(1)
    assert rope is not None
    pairs = rope.size // 2
    each = st.floats(0.01, 3.0)
    angles = data.draw(st.lists(each, min_size=pairs, max_size=pairs))
    if max(abs(angles - frequencies(rope))) < 0.01:
        angles[0] = 0.5
    fault, words = explained(source, both(turned(angles, rope.pairs)), f"h.1.attn.{site}", hidden)
    assert fault == "angles-used"
    read = words.split("turn by ")[1].split(" (")[0].split(" from ")[0].split()
    for one, angle in zip(read, angles, strict=False):
        if one != "…":
            assert float(one) == pytest.approx(angle, rel=1e-4)


@pytest.mark.parametrize("hidden", [frozenset(), TURNED])
def test_a_base_and_a_number_of_channels_are_said(hidden: frozenset[str]) -> None:
    config = read(stated("gpt_neox", rotary_pct=0.7))
    rope = config.rope(1)
    assert rope is not None and 4 <= rope.size < config.head_size
    angles = 777.0 ** (-np.arange(0, rope.size, 2) / config.head_size)
    site = "h.1.attn.scores" if hidden else "h.1.attn.q_rot"
    fault, words = explained(in_memory("gpt_neox", config), both(turned(angles)), site, hidden)
    assert fault == "angles-used"
    assert f"777^(-2i/{config.head_size})" in words


def test_other_channels_and_another_factor_are_said() -> None:
    source = in_memory("llama")
    rope = source.config.rope(1)
    assert rope is not None
    act = turned(frequencies(rope) ** 2, neighbours=True, factor=1.25)
    fault, words = explained(source, both(act), "h.1.attn.q_rot")
    assert fault == "angles-used"
    assert "neighbours together" in words
    assert "multiplied by 1.25, should be 1" in words


# What is hidden


def test_values_that_are_turned() -> None:
    source = in_memory("llama")
    rope = source.config.rope(1)
    assert rope is not None
    for neighbours in (False, True):
        turn = turned(frequencies(rope), neighbours)

        def mixed(call: Call, turn: Override = turn) -> Any:
            v = call.at("attn.v")
            # Turned as keys are, of which there are as many heads.
            site = sites(call.config)["h.1.attn.k_rot"]
            of_v = turn(replace(call, site=site, values={site.inputs[0]: v}))
            return ops.attention_mix(
                call.x, ops.shared(ops.heads_of(of_v, call.config.n_kv), call.config.n_head)
            )

        fault, words = explained(source, {"h.1.attn.mix": mixed}, "h.1.attn.mix")
        assert fault == "values-changed"
        assert "values are turned by their positions" in words
        assert ("other pairs of channels" in words) == neighbours


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_gains_of_hidden_norms(name: str) -> None:
    source, kinds = in_memory(name), {"attn.q_norm", "attn.k_norm"}

    def with_gain(gain: str | None) -> Override:
        def act(call: Call) -> Any:
            def lookup(asked: str) -> Any:
                if asked != call.site.weights[0]:
                    return call.lookup(asked)
                own = call.lookup(asked)
                return np.ones_like(own) if gain is None else call.lookup(gain)

            return right(replace(call, lookup=lookup))

        return act

    of = {part: f"h1/attn/{part}_norm/g" for part in "qk"}
    for gains, said in (
        (("k", "q"), "q_norm has h1/attn/k_norm/g and h.1.attn.k_norm has h1/attn/q_norm/g"),
        (("q", "q"), "k_norm has h1/attn/q_norm/g"),
        (("q", None), "k_norm has no gain"),
    ):
        acts = {
            f"h.1.attn.{part}_norm": with_gain(of.get(str(gain)))
            for part, gain in zip("qk", gains, strict=True)
        }
        fault, words = explained(source, acts, "h.1.attn.scores", kinds | TURNED)
        assert fault == "gain-elsewhere"
        assert said in words


def norm_of(norm: str, x_of: Callable[[Call], Any]) -> Callable[[Call], Any]:
    def made(call: Call) -> Any:
        site = sites(call.config)[norm]
        return right(replace(call, site=site, values={site.inputs[0]: x_of(call)}))

    return made


@pytest.mark.parametrize(("name", "norm"), [("olmo2", "ln_1_after"), ("gemma2", "ln_1_after")])
def test_a_norm_that_stands_elsewhere_in_a_sum(name: str, norm: str) -> None:
    source = in_memory(name)
    stream, normed = sites(source.config)["h.1.resid_mid"].inputs
    (term, *_) = sites(source.config)[normed].inputs
    of_sum = norm_of(normed, lambda call: call.values[stream] + call.values[term])
    of_stream = norm_of(normed, lambda call: call.values[stream])
    for act, said in (
        (of_sum, f"norm({stream} + {term})"),
        (lambda call: of_stream(call) + call.values[term], f"norm({stream}) + {term}"),
        (lambda call: of_stream(call) + call.values[normed], f"norm({stream}) + norm({term})"),
    ):
        fault, words = explained(source, {"h.1.resid_mid": act}, "h.1.resid_mid", {norm})
        assert fault == "norm-elsewhere"
        assert words.startswith(said)


# Experts


def weighted(weigh: Callable[[Any], Any], bias: Callable[[Any], Any] | None = None) -> Override:
    """Experts with other weights, and biases with others than the products."""

    def act(call: Call) -> Any:
        weights = call.values[call.site.inputs[1]]
        zero = np.zeros_like
        one = {b: zero(call.lookup(b)) for b in call.site.weights if b.endswith("down/b")}

        def alone(e: int, without: Mapping[str, Any]) -> Any:
            only = np.zeros_like(weights)
            only[:, e] = 1.0
            values = {call.site.inputs[0]: call.x, call.site.inputs[1]: only}

            def lookup(name: str) -> Any:
                return without[name] if name in without else call.lookup(name)

            return right(replace(call, values=values, lookup=lookup))

        made, used = np.zeros_like(call.x), weigh(weights)
        of_bias = used if bias is None else bias(weights)
        for e in range(weights.shape[1]):
            product = alone(e, one)
            made += used[:, [e]] * product + of_bias[:, [e]] * (alone(e, {}) - product)
        return made

    return act


def smallest_first(weights: Any) -> Any:
    made = np.zeros_like(weights)
    for row, out in zip(weights, made, strict=True):
        chosen = np.flatnonzero(row)
        order = chosen[np.argsort(row[chosen])]
        out[order] = row[order[::-1]]
    return made


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_weighed_otherwise(name: str) -> None:
    source = in_memory(name)
    site = "h.1.mlp.out"
    assert sites(source.config)[site].operation == "experts"
    for act, said in (
        (weighted(lambda w: np.roll(w, 1, axis=1)), "is run for expert 0 1 2 3"),
        (weighted(smallest_first), "the weights of the chosen experts are exchanged"),
        (weighted(lambda w: w * w), "the experts count as "),
    ):
        fault, words = explained(source, {site: act}, site)
        assert (fault, said in words) == ("experts-weighted", True), words


def test_biases_of_experts() -> None:
    source, site = in_memory("gpt_oss"), "h.1.mlp.out"
    assert source.config.keys.bias_mlp
    for bias, said in (
        (lambda w: (w != 0).astype(w.dtype), "of the chosen experts are added without"),
        (np.zeros_like, "of the experts are left out"),
        (np.ones_like, "of all experts are added"),
    ):
        fault, words = explained(source, {site: weighted(lambda w: w, bias)}, site)
        assert fault == "experts-weighted"
        assert said in words


def test_too_many_experts_for_the_channels_are_not_read_off() -> None:
    """A number for each of them would explain anything."""
    config = family("mixtral")
    kind = config.keys.experts
    assert kind is not None
    many = keyed(config, experts=replace(kind, count=config.n_embd))
    source = in_memory("mixtral", many)
    act = weighted(lambda w: w * w)
    with pytest.raises(AssertionError, match=r"accepted=\(\)"):
        explained(source, {"h.1.mlp.out": act}, "h.1.mlp.out")


@pytest.mark.parametrize("hidden", [frozenset(), PATTERN_ALONE])
def test_other_sinks(hidden: frozenset[str]) -> None:
    source = in_memory("gpt_oss")
    name = "h1/attn/sinks"

    def with_sinks(change: Callable[[Any], Any]) -> Override:
        def act(call: Call) -> Any:
            def lookup(asked: str) -> Any:
                value = call.lookup(asked)
                return change(value) if asked == name else value

            return right(replace(call, lookup=lookup))

        return act

    def read(change: Callable[[Any], Any]) -> str:
        acts = {"h.1.attn.pattern": with_sinks(change)}
        fault, words = explained(source, acts, "h.1.attn.pattern", hidden)
        assert fault == "sinks-used", words
        return words

    factor = read(lambda sinks: 0.25 * sinks).removeprefix("sinks × ")
    assert float(factor) == pytest.approx(0.25, rel=1e-4)  # float32, and 1 less a sum
    own = source.tensors[name]
    should = ", should be " + " ".join(f"{sink:.6g}" for sink in own[:4])
    assert should in read(lambda sinks: sinks[::-1] + np.float32(0.5))
