"""The ledger as tests: each claim on the checkpoint in use, and where it is not so."""

from __future__ import annotations

import faults_blocks
import faults_norms
import faults_texts
import faults_tying
import pytest
from faulted_cases import FAULTED, Make

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind
from gpt_verify.claims.evidence import EVIDENCE
from gpt_verify.claims.ledger import ledger
from gpt_verify.claims.run import decide
from gpt_verify.errors import MissingDependency
from gpt_verify.port import NotExamined

pytestmark = pytest.mark.claims

LEDGER = ledger()
#: Importing them fills the register.
TOPICS = (faults_tying, faults_blocks, faults_norms, faults_texts)


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.id)
def test_claim(claim: Claim, case: Case) -> None:
    decided = decide(claim, case, case.released is not None)
    if decided.measured is None:
        if isinstance(decided.exception, (NotExamined, MissingDependency)):
            pytest.skip(f"{claim.id} was not judged: {decided.missing}")
        pytest.fail(f"{claim.id}: {decided.missing}")
    assert not decided.contradicted, f"{decided.measured}, expected {claim.expected}"
    assert decided.measured.numbers, "an answer has a number"
    assert "{" not in decided.answer


@pytest.mark.parametrize(
    "claim", [c for c in LEDGER.values() if c.kind is Kind.WEIGHTS], ids=lambda claim: claim.id
)
def test_asserted_of_released_weights(claim: Claim, case: Case) -> None:
    if case.released is None:
        pytest.skip("not asserted: needs OpenAI's released weights (--checkpoint=models/124M)")
    decided = decide(claim, case, on_released=True)
    assert decided.measured is not None, decided.missing
    assert decided.measured.holds is claim.released


def test_every_claim_has_a_faulted_model() -> None:
    assert set(FAULTED) == set(LEDGER)
    listed = {make for makers in FAULTED.values() for make in makers}
    assert {make.__module__ for make in listed} == {topic.__name__ for topic in TOPICS}
    assert all(make.__doc__ for make in listed)


@pytest.mark.parametrize(
    ("claim", "make"),
    [
        pytest.param(LEDGER[name], make, id=f"{name}-{make.__name__}")
        for name, makers in FAULTED.items()
        for make in makers
    ],
)
def test_faulted_model(claim: Claim, make: Make) -> None:
    """The evidence comes out the other way, and for no other reason than that it was measured."""
    with make() as case:
        measured = EVIDENCE[claim.id](case)
    if claim.kind is Kind.WEIGHTS:
        with Case(_default()) as usual:
            assert measured.holds is not EVIDENCE[claim.id](usual).holds
    else:
        assert measured.verdict is not claim.expected, measured


def _default() -> Checkpoint:
    from gpt_verify.checkpoint import default_checkpoint, open_checkpoint

    return open_checkpoint(default_checkpoint())
