"""The lens of a port against the oracle's, at every state; mistakes of lenses are named."""

from __future__ import annotations

from typing import Any

import lens_faults as faults
import numpy as np
import pytest
from models import checkpoint
from plain_ports import plain
from rounding import nats_apart
from subjects import hold, port

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.lens.budgets import Block
from gpt_verify.laws.table import CHECKS
from gpt_verify.lens.engine_numpy import measure_logits
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.port import LENS
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config
from gpt_verify.reference import lens as definitions

EMBED, *_, LAST = SITES = [
    "embed",
    *(f"h.{i}.{half}" for i in range(3) for half in ("resid_mid", "resid_post")),
]
TWICE, LATE = "ln_f is applied twice", "the states are off by one layer"
#: Fault → the state at which it is named, and how.
NAMED = {
    "norm_on_every_state": (LAST, TWICE),
    "handed_out_normed_twice": (LAST, TWICE),
    "no_norm": (EMBED, "ln_f is missing"),
    "norm_without_gain": (EMBED, "ln_f is without its gain and bias"),
    "norm_of_the_last_block": (EMBED, "the layer norm is h.2.ln_2, not ln_f"),
    "norm_of_the_next_block": ("h.0.resid_post", "the layer norm is h.1.ln_1, not ln_f"),
    "one_block_late": (LAST, f"this is the state of h.1.resid_post: {LATE}"),
    "handed_out_late": (EMBED, f"this is the state of h.0.resid_post: {LATE}"),
    "head_of_its_own": (LAST, "the head is not tied: the normed states are multiplied with one"),
    "model_head_of_its_own": (LAST, "the head is not tied: it is lm_head.weight, which is not wte"),
    "embedding_forgotten": (EMBED, "the port's own lens does not read embed"),
    "handed_out_from_first_block": (LAST, f"the port's own lens does not read {LAST}"),
}
#: Those that half precision does not hide.
COARSE = [name for name in NAMED if "head" not in name]


def by_site(found: list[Finding]) -> dict[str | None, Finding]:
    assert {finding.id for finding in found} == {"lens"}
    return {finding.site: finding for finding in found}


def test_it_has_a_finding_at_every_state() -> None:
    (law,) = (law for law in CHECKS if law.id == "lens")
    assert law.sites(checkpoint().config) == SITES
    assert list(by_site(hold("lens", port()))) == SITES


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [port, lambda **k: port(attention="sdpa", **k), plain])
def test_a_correct_port_passes(make: Any, dtype: str) -> None:
    found = by_site(hold("lens", make(dtype=dtype)))
    for site in SITES:
        finding = found[site]
        assert finding.status is Status.PASSED, finding.message
        assert "12 statistics at 19 positions within budget" in finding.message
        assert finding.score is not None and finding.score < 1
        lenses = {"the port's states"}
        if make is not plain and "resid_mid" not in site:
            lenses.add("the port's own lens")
        assert set(finding.details["lenses"]) == lenses


def test_both_conventions_of_the_last_hidden_state_pass() -> None:
    """A model that hands out the last state as it is, before ln_f, is read as such."""
    import torch

    judged = port()
    model = judged.module  # type: ignore[attr-defined]
    before: list[torch.Tensor] = []
    model.transformer.ln_f.register_forward_pre_hook(lambda module, args: before.append(args[0]))

    def raw(module: Any, args: Any, output: Any) -> Any:
        if output.hidden_states is not None:
            output.hidden_states = (*output.hidden_states[:-1], before[-1])
        return output

    model.register_forward_hook(raw)
    assert all(f.status is Status.PASSED for f in hold("lens", judged))


def test_near_ties_are_counted_where_rounding_decides() -> None:
    def ties(dtype: Any) -> int:
        return sum(finding.details["near_ties"] for finding in hold("lens", port(dtype=dtype)))

    assert ties("float64") == 0 < ties("bfloat16")


@pytest.mark.parametrize("name", NAMED)
def test_each_mistake_is_refuted_and_named(name: str) -> None:
    judged = port()
    getattr(faults, name)(judged)
    site, words = NAMED[name]
    finding = by_site(hold("lens", judged))[site]
    assert finding.status is Status.FAILED
    assert words in finding.message
    if "does not read" not in words:
        assert "the port's own lens; RMS error of the logits" in finding.message
        assert finding.score is not None and finding.score > 1e4 * LIMIT_FLOORS


@pytest.mark.parametrize(
    ("change", "site", "says"),
    [
        (lambda read: [*read, read[0]], LAST, "the port's own lens reads embed, twice"),
        (
            lambda read: [("h.7.resid_post", read[0][1]), *read],
            LAST,
            "the port's own lens reads h.7.resid_post, which this model does not have",
        ),
        (
            lambda read: [(EMBED, read[0][1][:, :5]), *read[1:]],
            EMBED,
            "the port's own lens has shape [1, 5, 101], should be [1, 19, 101]",
        ),
    ],
)
def test_a_lens_that_is_none_of_this_model_is_refuted(change: Any, site: str, says: str) -> None:
    """The states that are seen pass beside it."""
    judged = port()
    faults.right(judged)
    right = judged.offers()[LENS]
    judged.offer(LENS, lambda tokens: iter(change(list(right(tokens)))))
    found = hold("lens", judged)
    wrong = [f for f in found if f.status is Status.FAILED]
    assert [(f.site, f.message) for f in wrong] == [(site, says)]
    assert {f.site for f in found if f.status is Status.PASSED} == {*SITES} - {site}


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(name: str, dtype: Any) -> None:
    judged = port(dtype=dtype)
    getattr(faults, name)(judged)
    site, words = NAMED[name]
    finding = by_site(hold("lens", judged))[site]
    assert finding.status is Status.FAILED
    assert words in finding.message


def test_a_lens_of_ones_own_without_a_mistake_passes() -> None:
    judged = port()
    faults.right(judged)
    assert all(f.status is Status.PASSED for f in hold("lens", judged))


def test_only_the_state_that_is_wrong_is_refuted() -> None:
    """KL to final is wrong at every state then, which is no fault of theirs."""
    judged = port()
    faults.norm_on_every_state(judged)
    found = by_site(hold("lens", judged))
    assert [site for site in SITES if found[site].status is Status.FAILED] == [LAST]
    assert "; 7 statistics at 19 positions" in found["h.1.resid_post"].message
    assert "; 12 statistics at 19 positions" in found["h.1.resid_mid"].message


def test_what_is_wrong_inside_the_model_shows_in_its_states() -> None:
    def alter(model: Any) -> None:
        right = model.h[1].mlp.act
        model.h[1].mlp.act = lambda x: 1.001 * right(x)

    found = by_site(hold("lens", plain(alter)))
    wrong = [site for site in SITES if found[site].status is Status.FAILED]
    assert wrong == SITES[SITES.index("h.1.resid_post") :]
    floors = {site: found[site].details["lenses"]["the port's states"]["floors"] for site in SITES}
    assert floors["h.1.resid_mid"] < 1 < LIMIT_FLOORS < floors["h.1.resid_post"]
    assert "the port's states" in found["h.1.resid_post"].message


def test_a_state_that_is_not_shown_is_not_examined() -> None:
    def alter(model: Any) -> None:
        right = model.h[1].mlp.forward
        model.h[1].mlp.forward = lambda x: right(x).clone() * 1.0

    found = by_site(hold("lens", plain(alter)))
    hidden = [site for site in SITES if found[site].status is Status.NOT_EXAMINED]
    assert hidden == ["h.1.resid_post"]
    assert found["h.1.resid_post"].message == "not shown by the port"
    assert found[LAST].status is Status.PASSED


def test_a_port_that_shows_nothing_but_logits_is_not_examined() -> None:
    (finding,) = hold("lens", CallablePort(port().logits, "function", None))
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "no states of the residual stream shown; no lens"


@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=1, n_embd=4, n_head=1, n_layer=2),
        Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
        Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
        Config(n_vocab=101, n_ctx=120, n_embd=2, n_head=2, n_layer=1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    for seed in range(3):
        source = checkpoint(config, seed, scale=1.5)
        found = hold("lens", port(dtype=dtype, source=source), source, seed)
        assert [f.message for f in found if f.status is not Status.PASSED] == []


def test_the_port_is_left_as_it_was() -> None:
    judged = port()
    tokens = np.arange(6)[None]
    before = judged.logits(tokens)
    hold("lens", judged)
    assert judged.logits(tokens).tobytes() == before.tobytes()
    assert judged.training() == []
    assert not judged.module.transformer.ln_f._forward_hooks


# The budgets


def moved(rng: np.random.Generator, spread: float, within: float) -> tuple[Any, Any, Any]:
    """Logits [N, P, V], the tokens, and logits that differ by at most ``within``, worst cases
    among them: every second token up and the others down, and one token alone."""
    y_NPV = spread * rng.standard_normal((4, 6, 30))
    up_V = np.where(np.arange(30) % 2, within, -within)
    alone_V = np.where(np.arange(30) == 7, within, -within)
    random_NPV = rng.uniform(-within, within, y_NPV.shape)
    choice = rng.integers(0, 3, y_NPV.shape[:2])[..., None]
    delta = np.where(choice == 0, up_V, np.where(choice == 1, alone_V, random_NPV))
    return y_NPV, rng.integers(0, 30, 7), y_NPV + delta


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("within", [1e-9, 1e-3, 0.3])
def test_no_move_within_the_budget_is_refuted(spread: float, within: float) -> None:
    rng = np.random.default_rng([int(100 * spread), int(-np.log10(within))])
    for _ in range(10):
        y_NPV, tokens_T, other_NPV = moved(rng, spread, within)
        measured = measure_logits(np.swapaxes(other_NPV, 0, 1), tokens_T[:-1], tokens_T[1:], 5)
        got = {name: np.swapaxes(value, 0, 1) for name, value in measured.items()}
        # What is added to a logit is rounded when it is added.
        rounding = FLOAT64.u * float(np.abs(other_NPV).max())
        within_NP = np.full(y_NPV.shape[:2], within + rounding)
        judged = Block(y_NPV, within_NP, tokens_T[:-1], tokens_T[1:]).judged(got)
        assert len(judged) == 12
        for name, statistic in judged.items():
            assert not statistic.wrong.any(), name


def test_a_move_beyond_the_budget_is_refuted_in_every_statistic() -> None:
    rng = np.random.default_rng(3)
    y_NPV, tokens_T, other_NPV = moved(rng, 2.0, 0.5)
    measured = measure_logits(np.swapaxes(other_NPV, 0, 1), tokens_T[:-1], tokens_T[1:], 5)
    got = {name: np.swapaxes(value, 0, 1) for name, value in measured.items()}
    within_NP = np.full(y_NPV.shape[:2], 1e-6)  # a budget far below the move of 0.5
    judged = Block(y_NPV, within_NP, tokens_T[:-1], tokens_T[1:]).judged(got)
    assert {name for name, statistic in judged.items() if statistic.wrong.any()} == set(judged)


def test_the_exact_values_are_the_oracles_definitions() -> None:
    rng = np.random.default_rng(4)
    y_NPV, tokens_T, _ = moved(rng, 2.0, 0.0)
    exact = definitions.statistics(y_NPV, tokens_T[:-1], 5)
    judged = Block(y_NPV, np.zeros(y_NPV.shape[:2]), tokens_T[:-1], tokens_T[1:]).judged(exact)
    for name, statistic in judged.items():
        got, known = statistic.got[:, :-1], statistic.exact[:, :-1]
        if got.dtype.kind == "i":
            np.testing.assert_array_equal(got, known, name)
        else:
            apart = nats_apart(y_NPV, y_NPV.shape[-1])
            within = np.sqrt(apart) if name == "js_distance" else apart  # a root of such a sum
            np.testing.assert_allclose(got, known, rtol=0, atol=within, err_msg=name)
