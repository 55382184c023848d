"""Claims about what the lens shows in a trained model: measured, and asserted on OpenAI's only."""

from __future__ import annotations

import numpy as np

from verify.claims.case import Case
from verify.claims.claim import Claim, Kind, Measured, Verdict
from verify.claims.evidence import evidence
from verify.claims.sources import LW

CLAIMS = (
    Claim(
        id="embed-unigram",
        statement=(
            "The embedding alone predicts the next token poorly; the first block makes the big "
            "step."
        ),
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            "It depends on the weights; on this checkpoint it {word}. Read through the lens, the "
            "embedding has a loss of {embed_nats:.2f} nats a token on ordinary prose (a uniform "
            "guess has {uniform_nats:.2f}), after the first block it is {first_nats:.2f}, and at "
            "the end {final_nats:.2f}; the largest drop is made by block {largest_block}, counted "
            "from 0."
        ),
        sources=(LW,),
        released=True,
    ),
)


@evidence("embed-unigram")
def loss_by_layer(case: Case) -> Measured:
    """Loss of the lens after each block: the embedding's is above a uniform guess's half-way to the
    end, and block 0 lowers it most."""
    loss_N = np.nanmean(case.lens("prose").loss_nats, axis=1)
    drops_L = loss_N[:-1] - loss_N[1:]
    uniform = float(np.log(case.config.n_vocab))
    poor = bool(loss_N[0] > (uniform + loss_N[-1]) / 2)
    largest = int(np.argmax(drops_L))
    return measured(
        poor and largest == 0,
        embed_nats=float(loss_N[0]),
        first_nats=float(loss_N[1]),
        final_nats=float(loss_N[-1]),
        uniform_nats=uniform,
        largest_block=largest,
    )


def measured(holds: bool, **numbers: object) -> Measured:
    """What a claim about weights measures: whether it holds here, and how much."""
    word = "holds" if holds else "does not hold"
    return Measured(Verdict.DEPENDS, {"word": word, **numbers}, holds)
