"""The ledger as tests: each claim on the checkpoint in use, and where it is not so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from claim_faults import FAULTED, Make

from verify.checkpoint import Checkpoint
from verify.claims.case import Case
from verify.claims.claim import Claim, Kind
from verify.claims.evidence import EVIDENCE
from verify.claims.ledger import ledger
from verify.claims.released import released
from verify.claims.run import decide
from verify.errors import MissingDependency
from verify.ports.port import NotExamined

pytestmark = pytest.mark.claims

LEDGER = ledger()


@pytest.fixture(scope="session")
def case(checkpoint: Checkpoint) -> Iterator[Case]:
    with Case(checkpoint) as made:
        yield made


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.id)
def test_claim(claim: Claim, case: Case) -> None:
    decided = decide(claim, case, released(case.checkpoint) is not None)
    if decided.measured is None:
        if isinstance(decided.exception, (NotExamined, MissingDependency)):
            pytest.skip(f"{claim.id} was not judged: {decided.missing}")
        pytest.fail(f"{claim.id}: {decided.missing}")
    assert not decided.contradicted, f"{decided.measured}, expected {claim.expected}"
    assert decided.measured.numbers, "an answer has a number"
    assert "{" not in decided.answer


def test_every_claim_has_a_faulted_model() -> None:
    assert set(FAULTED) == set(LEDGER)


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
    from verify.checkpoint import default_checkpoint, open_checkpoint

    return open_checkpoint(default_checkpoint())
