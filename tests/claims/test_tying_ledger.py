"""What is published about the sizes of GPT-2, and what one table of tokens makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from models import checkpoint

from gpt_verify.claims import tying
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Verdict
from gpt_verify.claims.evidence import EVIDENCE
from gpt_verify.claims.ledger import ledger
from gpt_verify.claims.models import Model
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.claims.run import decide
from gpt_verify.reference.config import GPT1, RELEASED

pytestmark = pytest.mark.claims
COUNT = "tie-param-count"


@pytest.fixture
def oracle() -> Case:
    source = checkpoint()
    return Case(source, models=[Model(OraclePort(source), source)], code=[])


@pytest.mark.parametrize("name", RELEASED)
def test_which_table_fits_which_figure(name: str) -> None:
    """The new names are one table's; the paper's are too, if it has the first GPT's tokens."""
    config, said = RELEASED[name], tying.IN_THE_PAPER[name]
    assert f"{tying.millions(config)}M" == name
    assert tying.millions(replace(config, n_vocab=GPT1.n_vocab)) == said
    assert said < tying.millions(config) < tying.millions(config, tables=2)


def test_the_answer_gives_the_figures_of_both(oracle: Case) -> None:
    decided = decide(ledger()[COUNT], oracle)
    assert decided.verdict is Verdict.CORRECTED
    assert "117, 345, 762 and 1,542 million" in decided.answer
    assert "124M, 355M, 774M and 1558M" in decided.answer
    assert "124,439,808, 354,823,168, 774,030,080 and 1,557,611,200" in decided.answer
    paper = tying._list(f"{said:,}" for said in tying.IN_THE_PAPER.values())
    assert decided.measured is not None
    assert decided.measured.numbers["first_vocab_millions"] == paper


def test_had_the_paper_counted_right_nothing_would_be_corrected(
    oracle: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name: int(name.removesuffix("M")) for name in RELEASED}
    monkeypatch.setattr(tying, "IN_THE_PAPER", names)
    assert EVIDENCE[COUNT](oracle).verdict is Verdict.TRUE


def test_a_figure_with_room_for_a_second_table(
    oracle: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tying, "IN_THE_PAPER", {**tying.IN_THE_PAPER, "124M": 163})
    assert EVIDENCE[COUNT](oracle).verdict is Verdict.FALSE
