"""Claims that follow from the architecture, decided on models of random sizes and weights."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind
from gpt_verify.claims.evidence import EVIDENCE
from gpt_verify.claims.ledger import ledger
from gpt_verify.claims.models import Model
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.claims.tokenizer import CLAIMS as ABOUT_TEXTS
from gpt_verify.faults.model import build
from gpt_verify.port import NotExamined
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference.bpe import BPE, alphabet
from gpt_verify.reference.config import Config

pytestmark = pytest.mark.claims

ARCHITECTURE = [c for c in ledger().values() if c.kind is Kind.ARCHITECTURE]
ABOUT_MODELS = [c for c in ARCHITECTURE if c not in ABOUT_TEXTS]
ABOUT_VOCABULARIES = [c for c in ARCHITECTURE if c in ABOUT_TEXTS]

few = settings(max_examples=4, deadline=None)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """As GPT-2's, the vocabulary is larger than the width, and there is more than one layer."""
    heads, size = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    width = max(heads * size, 4)
    width -= width % heads
    config = Config(
        n_vocab=width + draw(st.integers(1, 40)),
        n_ctx=draw(st.integers(6, 30)),
        n_embd=width,
        n_head=heads,
        n_layer=draw(st.integers(2, 3)),
    )
    return checkpoint(config, seed=draw(st.integers(0, 2**16)))


def ports(source: Checkpoint) -> list[Model]:
    """The oracle, and an independent writing of the same model in torch."""
    torch_port = TorchModule(build(source), source, "torch")
    return [Model(port, source) for port in (OraclePort(source), torch_port)]


@pytest.mark.parametrize("claim", ABOUT_MODELS, ids=lambda claim: claim.id)
@few
@given(source=checkpoints())
def test_random_model(claim: Claim, source: Checkpoint) -> None:
    with Case(source, models=ports(source), code=[]) as case:
        try:
            measured = EVIDENCE[claim.id](case)
        except NotExamined:
            assume(False)  # with one head there is nothing to tell apart
    assert (measured.verdict, measured.dissent) == (claim.expected, ""), measured


@st.composite
def vocabularies(draw: st.DrawFn) -> BPE:
    """Random merges of tokens that exist by then, and an end-of-text token."""
    tokens = list(alphabet().values())
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(1, 30))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    tokens.append("<|endoftext|>")
    return BPE({token: n for n, token in enumerate(tokens)}, merges)


@pytest.mark.parametrize("claim", ABOUT_VOCABULARIES, ids=lambda claim: claim.id)
@few
@given(bpe=vocabularies())
def test_random_vocabulary(claim: Claim, bpe: BPE) -> None:
    with Case(checkpoint(), models=[], code=[]) as case:
        case.bpe = bpe
        assert EVIDENCE[claim.id](case).verdict is claim.expected


def test_every_claim_of_architecture_is_there() -> None:
    assert len(ABOUT_MODELS) + len(ABOUT_VOCABULARIES) == len(ARCHITECTURE) > 40
