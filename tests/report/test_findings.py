"""What a finding says in its fields, so that nobody has to search its message."""

from __future__ import annotations

import pytest

from gpt_verify.diagnosis.cause import causes
from gpt_verify.diagnosis.port import Diagnosis
from gpt_verify.explanation import Candidate, Explanation
from gpt_verify.findings import Cause, Finding, Named, Status, concerns, naming

FAILED = Finding("tying.value", Status.FAILED, "it differs", "logits")


def test_a_check_is_a_part_of_a_law() -> None:
    assert (FAILED.law, FAILED.part) == ("tying", "value")
    whole = Finding("gradient", Status.PASSED, "")
    assert (whole.law, whole.part) == ("gradient", None)


@pytest.mark.parametrize(
    ("law", "check", "does"),
    [
        ("tying", "tying.value", True),
        ("tying.value", "tying.value", True),
        ("tying.value", "tying", False),
        ("loss", "lossless.value", False),
        ("cache", "cache", True),
    ],
)
def test_a_name_stands_for_a_check(law: str, check: str, does: bool) -> None:
    assert concerns(law, check) is does


def test_one_fault_is_the_fault_and_several_are_none() -> None:
    assert naming("head-copied") == Named(("head-copied",))
    assert naming("a", "b") == Named(("a", "b"))
    assert naming() is naming("") is naming(None) is None
    faults = [
        Finding("x", Status.FAILED, "", named=naming(*names)).fault for names in ("", "a", "ab")
    ]
    assert faults == [None, "a", None]


def test_words_around_a_message() -> None:
    said = FAILED.saying("first: ", "; then").explained("because")
    assert str(said) == "tying.value logits: first: it differs; then; because"
    assert said.details == {"explanation": "because"}


def test_a_cause_says_what_is_a_site_and_what_a_tensor() -> None:
    """``ln_f`` is a site, and so might be a tensor: no name is looked at to tell."""

    def explained(where: str, of_tensor: bool) -> Explanation:
        return Explanation(where, 9.0, 1.0, (Candidate("a", 0.1),), of_tensor=of_tensor)

    (cause,) = causes([explained("h0/mlp/c_fc/w", True), explained("h.0.mlp.pre", False)])
    assert (cause.sites, cause.tensors, cause.laws) == (("h.0.mlp.pre",), ("h0/mlp/c_fc/w",), ())
    assert cause.where == ("h0/mlp/c_fc/w", "h.0.mlp.pre")
    assert Cause("a", laws=("logits",), sites=("logits",)).where == ("logits",)


@pytest.mark.parametrize("status", [Status.FAILED, Status.PASSED])
def test_a_diagnosis_edits_no_finding_of_its_callers(status: Status) -> None:
    logits = Finding("logits", status, "too far", "logits", 9.0, 1.0)
    seen = Finding("logits.faults", Status.FAILED, "explained by a", "logits")
    given = [logits, FAILED]
    found = Diagnosis(in_logits=seen).annotated(given)
    assert given == [logits, FAILED]
    if status is Status.FAILED:
        assert [str(f) for f in found] == ["logits logits: too far; explained by a", str(FAILED)]
    else:
        assert found == [logits, FAILED, seen]
