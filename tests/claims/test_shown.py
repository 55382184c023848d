"""A verdict cannot be misread, and no answer says more than what ran."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from models import checkpoint

from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Decided, Kind, Measured, Verdict
from gpt_verify.claims.ledger import ledger
from gpt_verify.claims.run import ClaimsReport, decide
from gpt_verify.claims.sources import CODE, LW, OUR_GRAPH
from gpt_verify.claims.tying_code import _beside
from gpt_verify.ports.openai_tf import MetaGraph
from gpt_verify.report.claims import html, markdown, terminal
from gpt_verify.report.claims.messages import ALARM, SHOWN, kinds, summary

pytestmark = pytest.mark.claims
LEDGER = ledger()
PAGES = Path(terminal.__file__).resolve().parents[1] / "pages"


def one(verdict: Verdict, expected: Verdict | None = None, **more: object) -> Decided:
    said = Claim("some", "Something is so.", Kind.ARCHITECTURE, expected or verdict, "It is {n}.")
    return Decided(replace(said, **more), Measured(verdict, {"n": 1}), "here:f", answer="It is 1.")


def report(*claims: Decided, released: str | None = None) -> ClaimsReport:
    about = {"path": "x", "config": checkpoint().config.as_dict(), "parameters": 1}
    return ClaimsReport({**about, "released": released}, claims, {}, "gpt-verify claims")


# Verdicts


def test_no_two_verdicts_look_alike() -> None:
    assert set(SHOWN) == set(Verdict)
    for part in range(3):
        assert len({shown[part] for shown in SHOWN.values()}) == len(Verdict)
    assert len(set(terminal.COLOUR.values())) == len(Verdict) + 1


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("full", [True, False])
def test_only_what_is_true_has_a_tick(verdict: Verdict, full: bool) -> None:
    made = report(one(verdict))
    sign, words, _ = SHOWN[verdict]
    page = html.render(made).partition("<tbody>")[2]
    listed = terminal.render(made, full=full).partition("\nMarks: ")[0]
    written = markdown.render(made).partition("\n|---")[2]
    for text in (listed, written, page):
        assert ("✓" in text) is (verdict is Verdict.TRUE)
        assert ("✗" in text) is (verdict is Verdict.FALSE)
        assert sign in text
    assert words in page and f"{sign} {words} |" in markdown.render(made)


def test_the_colour_of_false_is_not_that_of_true() -> None:
    """Nor that of anything that went well."""
    made = report(one(Verdict.FALSE))
    page = html.render(made).partition("<tbody>")[2]
    assert 'class="verdict false"' in page
    assert not re.search(r'class="[^"]*\b(passed|verified|true)\b', page)
    style = (PAGES / "claims.css").read_text()
    colours = dict(re.findall(r"\.(true|false) \{ color: var\((--\w+)\); \}", style))
    assert colours == {"true": "--passed", "false": "--failed"}
    red, green = "\x1b[1;31m✗ false", "\x1b[32m✓ true"
    assert red in terminal.render(made, full=True, colour=True)
    assert green in terminal.render(report(one(Verdict.TRUE)), full=True, colour=True)
    assert "\x1b" not in terminal.render(made, full=True)


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("full", [True, False])
def test_what_is_not_as_expected_is_said_in_words(verdict: Verdict, full: bool) -> None:
    for expected in set(Verdict) - {verdict}:
        made, as_expected = report(one(verdict, expected)), report(one(verdict))
        for render in (
            lambda r: terminal.render(r, full=full),
            markdown.render,
            lambda r: html.render(r).partition("<tbody>")[2],
        ):
            assert ALARM in render(made) and ALARM not in render(as_expected)
        assert ALARM in summary(made)


def test_colours_change_nothing_but_colours() -> None:
    wide = report(
        *(one(verdict) for verdict in Verdict), Decided(one(Verdict.TRUE).claim, None, "")
    )
    for full in (True, False):
        plain = terminal.render(wide, full=full)
        coloured = terminal.render(wide, full=full, colour=True)
        assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain != coloured


# Claims about weights


def about_weights(asserted: bool) -> Decided:
    found = one(Verdict.DEPENDS, kind=Kind.WEIGHTS, released=True, criterion="it is so.")
    return replace(found, measured=Measured(Verdict.DEPENDS, {}, True), asserted=asserted)


def test_what_was_not_asserted_is_not_said_to_be() -> None:
    without, given = report(about_weights(False)), report(about_weights(True), released="124M")
    forms = (lambda r: terminal.render(r, full=True, width=400), markdown.render, html.render)
    for render in forms:
        assert "here it did not" in render(without).replace("&#39;", "'")
        assert "here it did not" not in render(given)
    assert "measured, but not asserted in this run" in kinds(without)["W"]
    assert "asserted, this being OpenAI's 124M" in kinds(given)["W"]
    assert "1 not asserted without OpenAI's released weights" in summary(without)
    assert "asserted" not in summary(given)


def test_whether_it_holds_here_stands_beside_the_verdict() -> None:
    for holds, words in ((True, "holds here"), (False, "not so here")):
        found = replace(about_weights(False), measured=Measured(Verdict.DEPENDS, {}, holds))
        for render in (markdown.render, html.render, lambda r: terminal.render(r, full=True)):
            assert f"depends on weights: {words}" in render(report(found))
        assert f"~ weights: {words}" in terminal.render(report(found), full=False)


def test_each_says_by_which_criterion_it_holds() -> None:
    for claim in LEDGER.values():
        assert bool(claim.criterion) is (claim.kind is Kind.WEIGHTS), claim.id
        assert not claim.criterion or claim.criterion.endswith(".")


# Theorems


def test_a_theorem_is_proved_and_not_sampled() -> None:
    for name in ("softmax-maxent", "softmax-props", "wwt-singular", "gelu-linear-zero"):
        assert LEDGER[name].proof.endswith("."), name
    shown = markdown.render(report(one(Verdict.TRUE, proof="Because it is.")))
    assert "\nProof: Because it is.\n" in shown
    assert "To illustrate it" in LEDGER["softmax-maxent"].answer


# Whose code ran


def test_an_answer_about_openais_code_says_that_a_copy_ran() -> None:
    """Where nothing but the port openai-tf was asked, it is not called OpenAI's."""
    alone = ("tie-graph", "causal-mask-form")
    for claim in LEDGER.values():
        assert (OUR_GRAPH in claim.answer) is (claim.id in alone), claim.id
        assert not re.search(r"published graph|OpenAI's (own )?graph", claim.answer), claim.id
    asked = replace(one(Verdict.TRUE), measured=Measured(Verdict.TRUE, asked=("openai-tf",)))
    shown = terminal.render(report(asked), full=True)
    assert "openai-tf (OpenAI's graph, written anew)" in shown


def test_whose_graph_lies_beside_the_weights() -> None:
    """Only beside OpenAI's weights is it OpenAI's; nothing else about the evidence changes."""
    with Case(open_checkpoint(default_checkpoint()), code=[]) as case:
        assert case.released is None
        ours = decide(LEDGER["tie-graph"], case)
        case.released = "124M"
        theirs = decide(LEDGER["tie-graph"], case)
    assert ours.verdict is theirs.verdict is Verdict.TRUE
    assert "Nor is the graph beside these weights OpenAI's: tokens" in ours.answer
    assert "OpenAI's own graph, in the .meta file that it released: tokens" in theirs.answer


@pytest.mark.parametrize("released", [None, "124M"])
def test_no_graph_lies_beside_the_weights(released: str | None) -> None:
    none = MetaGraph(False, "the checkpoint has no .meta file")
    said = _beside(none, released)
    assert said.startswith(
        "OpenAI's own graph was not found in the .meta file: the checkpoint has no .meta file."
        if released
        else "No forward pass is stored beside these weights. OpenAI's own graph is in"
    )


def test_a_text_to_look_it_up_in_did_not_say_it() -> None:
    shown = markdown.render(report(one(Verdict.FALSE, sources=(LW, CODE))))
    assert "Said in: [nostalgebraist" in shown and "See: [OpenAI, gpt-2, src/model.py]" in shown
    assert not any("Said in: [OpenAI" in markdown.render(report(d)) for d in map(_of, LEDGER))


def _of(name: str) -> Decided:
    return Decided(LEDGER[name], Measured(LEDGER[name].expected, {}), "")
