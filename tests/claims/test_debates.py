"""A debate is one page, whose answer stands on its claims and whose program runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import checkpoint

from gpt_verify.checkpoint import default_checkpoint
from gpt_verify.claims.claim import Decided, Measured, Verdict
from gpt_verify.claims.debates import DEBATES, Debate
from gpt_verify.claims.ledger import chosen, ledger
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.command.cli import main
from gpt_verify.reference.config import RELEASED
from gpt_verify.reference.weights import parameter_count
from gpt_verify.report.claims import html, markdown, terminal
from gpt_verify.report.claims import json as as_json

pytestmark = pytest.mark.claims
LEDGER = ledger()
(TIE,) = DEBATES


def as_expected(name: str) -> Decided:
    claim = LEDGER[name]
    return Decided(claim, Measured(claim.expected, {"n": 1}), "here:f", answer=claim.answer)


def report(*claims: Decided) -> ClaimsReport:
    about = {"path": "x", "config": checkpoint().config.as_dict(), "parameters": 1}
    return ClaimsReport({**about, "released": None}, claims, {}, "gpt-verify claims tie")


def whole(debate: Debate) -> list[Decided]:
    return [as_expected(name) for name in LEDGER if debate.has(name)]


# Its program


def run(debate: Debate, alter: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it is printed, on a model that lies here and may have been altered."""
    from transformers import GPT2LMHeadModel

    load = GPT2LMHeadModel.from_pretrained

    def loaded(name: str) -> Any:
        assert name == "openai-community/gpt2"
        model = load(default_checkpoint("huggingface"))
        alter(model)
        return model

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", loaded)
    exec(compile(debate.snippet, f"<{debate.id}>", "exec"), {})


def test_the_program_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(TIE, lambda model: None, monkeypatch)
    assert capsys.readouterr().out == "lm_head is wte; 1,082,496 parameters\n"


def copy_the_head(model: Any) -> None:
    import torch

    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def add_a_bias(model: Any) -> None:
    import torch

    model.lm_head.bias = torch.nn.Parameter(torch.ones(len(model.lm_head.weight)))


@pytest.mark.parametrize(
    ("alter", "complaint"),
    [(copy_the_head, "two matrices"), (add_a_bias, "the last step is another one")],
)
def test_the_program_refuses(
    alter: Callable[[Any], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        run(TIE, alter, monkeypatch)


def test_the_figures_in_the_program_are_those_of_the_smallest_model() -> None:
    config = RELEASED["124M"]
    last = TIE.snippet.rstrip().splitlines()[-1]
    assert f"# {parameter_count(config):,}; {config.n_vocab * config.n_embd:,} more" in last


# Its answer


def test_it_rests_on_claims_of_its_own() -> None:
    for debate in DEBATES:
        assert debate.rests_on and set(debate.rests_on) <= set(LEDGER)
        assert all(debate.has(name) for name in debate.rests_on)
        assert len(debate.answer) == 2
        assert all(line.endswith(".") and len(line) <= 98 for line in debate.answer)


def test_it_is_given_where_its_claims_came_out_so() -> None:
    shown = terminal.render(report(*whole(TIE)), full=True)
    assert f"  {TIE.answer[0]}\n  {TIE.answer[1]}\n" in shown


@pytest.mark.parametrize("name", TIE.rests_on)
@pytest.mark.parametrize("wrong", ["contradicted", "unjudged"])
def test_it_is_withheld_where_one_did_not(name: str, wrong: str) -> None:
    at = [d.claim.id for d in whole(TIE)].index(name)
    claims = whole(TIE)
    other = Verdict.FALSE if claims[at].verdict is Verdict.TRUE else Verdict.TRUE
    measured = Measured(other, {"n": 1}) if wrong == "contradicted" else None
    claims[at] = replace(claims[at], measured=measured, missing="no torch")
    made = report(*claims)
    texts = [terminal.render(made, full=True, width=400), markdown.render(made), html.render(made)]
    for text in texts:
        assert f"Not settled by this run. See {name}." in text
        assert TIE.answer[0] not in text
    (one,) = json.loads(as_json.render(made))["debates"]
    assert (one["settled"], one["answer"]) == (False, [f"Not settled by this run. See {name}."])


# Its page


def test_every_form_has_all_of_it() -> None:
    made = report(*whole(TIE))
    for text in (
        terminal.render(made, full=True, width=400),
        markdown.render(made),
        html.render(made),
        as_json.render(made),
    ):
        for part in (TIE.question, *TIE.answer, "from transformers import GPT2LMHeadModel"):
            assert part in text
        order = [text.rindex(f"test_claim[{d.claim.id}]") for d in made.claims]
        assert order == sorted(order) and len(order) == 14
    assert markdown.render(made).startswith(f"# {TIE.question}\n\n{TIE.answer[0]}")
    assert f"<h1>{TIE.question}</h1>" in html.render(made)
    assert TIE.snippet in markdown.render(made)


def test_a_part_of_it_is_not_the_debate() -> None:
    some = whole(TIE)[1:]
    made = report(*some)
    assert (made.debates, made.debate) == ([], None)
    assert TIE.question not in terminal.render(made, full=True)
    more = report(*whole(TIE), as_expected("act-relu"))
    assert (more.debates, more.debate) == ([TIE], None)
    assert f"## {TIE.question}" in markdown.render(more)
    assert f"{TIE.question} gpt-verify claims tie" in terminal.render(more, full=False)


# Names that are cut short


@given(st.sampled_from(sorted(LEDGER)), st.data())
def test_any_beginning_finds_the_claim(name: str, data: st.DataObject) -> None:
    cut = name[: data.draw(st.integers(1, len(name)))]
    spelled = data.draw(st.sampled_from([cut, cut.upper(), cut.replace("-", "_"), f" {cut} "]))
    found = chosen([spelled])
    if cut in LEDGER:
        assert found == [LEDGER[cut]]
    else:
        assert LEDGER[name] in found
        assert all(claim.id.startswith(cut) for claim in found)


def test_each_claim_once_and_in_order() -> None:
    ids = [claim.id for claim in chosen(["tie-graph", "tie", "act-relu"])]
    assert ids[0] == "tie-graph" and ids[-1] == "act-relu"
    assert len(set(ids)) == len(ids) == 15
    assert [c.id for c in chosen(["tie"])] == [name for name in LEDGER if name.startswith("tie-")]


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("tie-transpse", "tie-transpose"),
        ("TIE_TRANSPSE", "tie-transpose"),
        ("transpose", "tie-transpose"),
        ("maxent", "softmax-maxent"),
        ("casual", "causal"),
        ("lens-convergs", "lens-converges"),
    ],
)
def test_near_misses(slip: str, meant: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", slip]) == 2
    said = capfd.readouterr().err
    assert said.endswith(f"; did you mean {meant}?\n") and said.count("\n") == 1


@pytest.mark.parametrize("name", ["", " ", "-", "_", "zzz", "\x1b[31m"])
def test_what_begins_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", name]) == 2
    said = capfd.readouterr().err
    assert said.startswith("gpt-verify: no claim ") and "did you mean" not in said
    assert said.rstrip("\n").isprintable()


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    """A beginning is enough; docs/tied-embeddings.md is the page of a whole debate."""
    assert main(["claims", "weight"]) == 0
    printed = capfd.readouterr().out
    assert "weight-decay-spread: ? cannot be decided here" in printed
    assert "repeat: gpt-verify claims weight-decay-spread" in printed
