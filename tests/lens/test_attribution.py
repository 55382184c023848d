"""Direct logit attribution: terms that add up to a logit, and say who wrote them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from command import PORTS
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONFIG, few, tokens_of, weights_of

from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.lens import UNDEFINED, Attribution, attribute, is_state
from gpt_verify.lens.attribution import part_names
from gpt_verify.lens.states import oracle_shown, state_sites
from gpt_verify.reference import Config, forward

Sites = dict[str, np.ndarray]


def told(
    config: Config = CONFIG, seed: int = 0, length: int | None = None
) -> tuple[Any, Sites, Attribution]:
    """A model's weights, all of its sites, and the attribution of its own top-1."""
    weights, tokens_T = weights_of(config, seed), tokens_of(config, length or config.n_ctx, seed)
    values = dict(forward(weights, config, tokens_T))
    states = [(site, value) for site, value in values.items() if is_state(site)]
    return weights, values, attribute(states, weights, values["logits"].argmax(-1))


def off(found: Attribution, logits_TV: np.ndarray) -> np.ndarray:
    """How far each sum is from the model's own logit, in budgets."""
    own_T = np.take_along_axis(logits_TV, found.tokens_T[:, None], -1)[:, 0]
    return np.abs(found.terms_ST.sum(0) - own_T) / found.budget_T


@few
@given(
    layers=st.integers(1, 5),
    heads=st.integers(1, 3),
    size=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_the_terms_add_up_to_the_logit(layers: int, heads: int, size: int, seed: int) -> None:
    config = dataclasses.replace(CONFIG, n_layer=layers, n_head=heads, n_embd=heads * size)
    _, values, found = told(config, seed)
    assert found.terms_ST.shape == (2 * layers + 2, config.n_ctx)
    assert (off(found, values["logits"]) <= 1).all()


def test_each_term_is_of_what_that_sub_block_wrote() -> None:
    """From the outputs themselves, not from differences of states."""
    weights, values, found = told()
    last = values[f"h.{CONFIG.n_layer - 1}.resid_post"]
    centred = last - last.mean(-1, keepdims=True)
    r_T1 = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    rows = weights["wte"][found.tokens_T]
    for part, got in zip(found.parts, found.terms_ST, strict=True):
        wrote = weights["ln_f/b"] if part == "ln_f/b" else values[part]
        scale = 1 if part == "ln_f/b" else weights["ln_f/g"] * r_T1
        middle = 0 if part == "ln_f/b" else wrote.mean(-1, keepdims=True)
        expected = ((wrote - middle) * scale * rows).sum(-1)
        assert (np.abs(got - expected) <= found.budget_T).all(), part


@pytest.mark.parametrize("change", ["a part", "epsilon", "the gain", "the bias", "the token"])
def test_what_is_left_out_or_wrong_is_beyond_the_budget(change: str) -> None:
    weights, values, found = told()
    states = [(site, value) for site, value in values.items() if is_state(site)]
    logits = values["logits"]
    if change == "a part":
        found = dataclasses.replace(found, terms_ST=np.delete(found.terms_ST, 3, axis=0))
    elif change == "epsilon":
        found = attribute(states, weights, found.tokens_T, 1.0001e-5)
    elif change == "the token":
        other = (found.tokens_T + 1) % CONFIG.n_vocab
        found = dataclasses.replace(attribute(states, weights, other), tokens_T=found.tokens_T)
    else:
        name = "ln_f/g" if change == "the gain" else "ln_f/b"
        wrong = {**weights, name: weights[name] + 2.0**-20}
        found = attribute(states, wrong, found.tokens_T)
    assert (off(found, logits) > 1).any()


def test_a_port_that_hides_the_states_between_has_whole_blocks() -> None:
    weights, values, whole = told()
    shown = [s for s in state_sites(CONFIG) if not s.endswith(".resid_mid")]
    found = attribute([(s, values[s]) for s in shown], weights, whole.tokens_T)
    assert found.parts == ("embed", *(f"h.{i}" for i in range(CONFIG.n_layer)), "ln_f/b")
    blocks = whole.terms_ST[1:-1].reshape(CONFIG.n_layer, 2, -1).sum(1)
    assert (np.abs(found.terms_ST[1:-1] - blocks) <= whole.budget_T).all()


def test_names_in_order() -> None:
    assert part_names(state_sites(dataclasses.replace(CONFIG, n_layer=2))) == (
        *("embed", "h.0.attn.out", "h.0.mlp.out", "h.1.attn.out", "h.1.mlp.out", "ln_f/b"),
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_where_there_is_no_logit_there_are_no_terms(wrong: float) -> None:
    weights, values, whole = told()
    states = [(site, value.copy()) for site, value in values.items() if is_state(site)]
    states[-1][1][2, 1] = wrong
    tokens_T = whole.tokens_T.copy()
    tokens_T[4] = UNDEFINED
    found = attribute(states, weights, tokens_T)
    undefined = np.isnan(found.terms_ST).all(0)
    assert undefined.nonzero()[0].tolist() == [2, 4]
    assert (np.isnan(found.logits_T) == undefined).all()
    assert found.as_dict()["terms"][0][4] is None and found.as_dict()["tokens"][4] is None


def test_attention_is_kept_where_it_is_asked_for() -> None:
    weights, tokens_T = weights_of(CONFIG), tokens_of(CONFIG, 5)
    assert oracle_shown(weights, CONFIG, tokens_T, attention=False).patterns == {}
    seen = oracle_shown(weights, CONFIG, tokens_T, attention=True)
    assert list(seen.patterns) == list(range(CONFIG.n_layer))
    values = dict(forward(weights, CONFIG, tokens_T))
    for layer, pattern in seen.patterns.items():
        np.testing.assert_array_equal(pattern, values[f"h.{layer}.attn.pattern"])


class TestCommand:
    TEXT = "And Zorbukel said"

    def read(self, capfd: Any, *words: str) -> dict[str, Any]:
        assert main(["lens", self.TEXT, *words, "--json", "-", "--quiet"]) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    def test_the_json_has_terms_that_add_up(self, capfd: Any) -> None:
        (reading,) = self.read(capfd)["readings"]
        assert reading["patterns"] == {}
        for name, found in reading["attributions"].items():
            terms = np.array(found["terms"], float)
            logits, budget = (np.array(found[key], float) for key in ("logits", "budget"))
            known = ~np.isnan(logits)
            assert known.tolist() == [True] * (len(known) - 1) + [name == "top1"]
            assert (np.abs(terms.sum(0) - logits)[known] <= budget[known]).all()
        top1 = [ids[0] for ids in reading["lens"]["top_ids"][-1]]
        assert reading["attributions"]["top1"]["tokens"] == top1

    def test_a_port_has_its_own_states_and_patterns(self, capfd: Any) -> None:
        pytest.importorskip("torch")
        made = self.read(capfd, "--port", "huggingface-eager", "--attention")
        reference, port = made["readings"]
        config = open_checkpoint(default_checkpoint()).config
        length = len(reference["lens"]["tokens"])
        for reading in (reference, port):
            assert list(reading["patterns"]) == [str(n) for n in range(config.n_layer)]
            for head in reading["patterns"]["1"]:
                assert [len(row) for row in head] == list(range(1, length + 1))
        assert reference["patterns"] != port["patterns"]
        ours, theirs = (reading["attributions"]["top1"] for reading in (reference, port))
        assert ours["tokens"] == theirs["tokens"] and ours["terms"] != theirs["terms"]

    def test_the_table_of_the_terminal(self, capfd: Any) -> None:
        assert main(["lens", self.TEXT, "--attribution", "next"]) == 0
        lines = capfd.readouterr().out.splitlines()
        start = lines.index("reference: what adds up to the logit of the token that follows")
        rows = {line[:8].strip(): line[8:].split() for line in lines[start + 2 : start + 13]}
        assert list(rows) == ["logit", "ln_f bi…"] + [
            f"{n} {kind}" for n in (3, 2, 1, 0) for kind in ("mlp", "attn")
        ] + ["embed"]
        total = np.array([row for name, row in rows.items() if name != "logit"], float).sum(0)
        # Each of them is rounded to a hundredth.
        assert np.abs(total - np.array(rows["logit"], float)).max() <= 11 * 0.005

    def test_two_ports_are_compared_with_each_other(self, capfd: Any) -> None:
        pytest.importorskip("torch")
        ports = ("--port", "huggingface-eager", "--port", "huggingface-sdpa")
        assert main(["lens", self.TEXT, *ports]) == 0
        assert "huggingface-sdpa − huggingface-eager" in capfd.readouterr().out

    def test_a_port_without_states_is_refused_as_before(self, capfd: Any) -> None:
        assert main(["lens", self.TEXT, "--port", f"{PORTS}:good", "--quiet"]) == 2
        assert "there is no lens without" in capfd.readouterr().err
