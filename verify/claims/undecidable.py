"""Claims that running the model cannot decide. What is measured is why not."""

from __future__ import annotations

import numpy as np

from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import LW
from gpt_verify.reference.weights import tensor_table

CLAIMS = (
    Claim(
        id="weight-decay-spread",
        statement="Weight decay makes each layer change the residual stream only a little.",
        kind=Kind.NOT_DECIDABLE,
        expected=Verdict.UNDECIDABLE,
        answer=(
            "Running the model cannot decide it, because it is a claim about training: two models "
            "would have to be trained, one with weight decay and one without. A checkpoint holds "
            "{tensors} tensors of the finished model and {more} that record how it was trained."
        ),
        sources=(LW,),
    ),
    Claim(
        id="mlm-forget-recall",
        statement="Masked language models first forget and later recall the input token.",
        kind=Kind.NOT_DECIDABLE,
        expected=Verdict.UNDECIDABLE,
        answer=(
            "GPT-2 cannot decide it, because it is not a masked language model: it predicts the "
            "token that follows, not one that was hidden, and never looks ahead. Of {weights} "
            "attention weights above the diagonal, {ahead} differs from zero."
        ),
        sources=(LW,),
    ),
)


@evidence("weight-decay-spread")
def record_of_training(case: Case) -> Measured:
    """Tensors beyond the model's own: an optimiser's, a step count."""
    own = set(tensor_table(case.config))
    more = sorted(set(case.checkpoint.tensors) - own)
    verdict = Verdict.DEPENDS if more else Verdict.UNDECIDABLE
    return Measured(verdict, {"tensors": len(own), "more": len(more) or "none"})


@evidence("mlm-forget-recall")
@on_each_model
def looks_ahead(model: Model) -> Measured:
    """Attention to what comes later, which a masked language model needs."""
    patterns = model.patterns()
    above = patterns[..., np.triu(np.ones(patterns.shape[-2:], np.bool_), 1)]
    ahead = int((above != 0).sum())
    verdict = Verdict.DEPENDS if ahead else Verdict.UNDECIDABLE
    return Measured(verdict, {"weights": above.size, "ahead": ahead or "none"})
