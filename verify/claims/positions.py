"""Claims about positions, padding and decoding with a cache."""

from __future__ import annotations

import numpy as np

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import CODE, HF, OE
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.port import NotExamined
from gpt_verify.reference.lens import total_variation
from gpt_verify.reference.loss import log_softmax

#: Tokens of the sequence that is padded, and tokens of padding.
PADDED, PADDING = 8, 3

CLAIMS = (
    Claim(
        id="infer-last",
        statement="For inference on k tokens only output k matters; earlier ones can be ignored.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The next token is drawn from output k alone. With a cache of the keys and "
            "values of earlier positions, nothing is computed again for those positions: "
            "{tokens} tokens decoded with it have the logits of the full pass, to within "
            "rounding, wherever the sequence is cut."
        ),
        sources=(OE,),
    ),
    Claim(
        id="cache-approximate",
        statement="Decoding with a cache of keys and values is an approximation.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No. Causal attention never looks at what comes later, so that keys and values of "
            "earlier positions do not change when tokens are added: cut in every way that was "
            "tried, {tokens} tokens decoded with the cache give the logits of the full pass to "
            "within rounding (the last bits may differ, because sums are taken in another order)."
        ),
        sources=(HF,),
    ),
    Claim(
        id="position-limit",
        statement="GPT-2 can read texts of any length; quality just gets worse.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: wpe has {positions} rows, one for each position that exists, and there is no "
            "formula for more. All {positions} are usable; one token further there is no row, and "
            "every implementation that was asked refuses."
        ),
        sources=(CODE,),
    ),
    Claim(
        id="left-padding",
        statement="Padding on the left changes nothing, as long as its outputs are ignored.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "It does: the padding is attended to, and every token gets the embedding of a later "
            "position. {padding} tokens of padding before {tokens} move the predictions by a total "
            "variation of {variation:.2f} (1 is the most). With an attention mask and positions "
            "counted from the first real token the logits are those without padding."
        ),
        sources=(HF,),
    ),
)


def _cached(model: Model) -> bool:
    """The law of the cache; only where the model has one."""
    return model.passes("cache")


@evidence("infer-last")
@on_each_model
def last_matters(model: Model) -> Measured:
    verdict = Verdict.TRUE if _cached(model) else Verdict.FALSE
    return Measured(verdict, {"tokens": min(model.config.n_ctx, 9)})


@evidence("cache-approximate")
@on_each_model
def approximate(model: Model) -> Measured:
    verdict = Verdict.FALSE if _cached(model) else Verdict.TRUE
    return Measured(verdict, {"tokens": min(model.config.n_ctx, 9)})


@evidence("position-limit")
@on_each_model
def limit(model: Model) -> Measured:
    """The laws of all positions and of one more."""
    right = model.passes("positions.limit") and model.passes("positions.beyond")
    verdict = Verdict.FALSE if right else Verdict.TRUE
    return Measured(verdict, {"positions": model.config.n_ctx})


@evidence("left-padding")
@on_each_model
def padding(model: Model) -> Measured:
    """Padding that nobody is told of; and the law of padding where the model has a mask."""
    config = model.config
    if config.n_ctx <= PADDING + 1:
        raise NotExamined("there is no room for padding")
    tokens_T = model.probe[: min(PADDED, config.n_ctx - PADDING)]
    padded_T = np.concatenate([np.full(PADDING, config.n_vocab - 1), tokens_T])
    alone = np.asarray(model.logits(tokens_T), np.float64)
    behind = np.asarray(model.logits(padded_T), np.float64)[PADDING:]
    changed = model.subject.floors(behind - alone, tokens_T) > LIMIT_FLOORS
    try:
        masked = model.passes("positions.padding")
    except NotExamined:
        masked = True  # it takes no mask
    variation = float(total_variation(log_softmax(alone), log_softmax(behind)).mean())
    numbers = {"padding": PADDING, "tokens": len(tokens_T), "variation": variation}
    return Measured(Verdict.FALSE if changed and masked else Verdict.TRUE, numbers)
