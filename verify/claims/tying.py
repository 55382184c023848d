"""Claims about the last product: whether lm_head is wte, and in which sense."""

from __future__ import annotations

from verify.claims.claim import Claim, Kind, Measured, Verdict
from verify.claims.evidence import evidence, on_each_model
from verify.claims.models import Model
from verify.claims.sources import LW, OE

CLAIMS = (
    Claim(
        id="tie-transpose",
        statement="The last step multiplies by the transpose of the input embedding.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The model looks tokens up in the table wte ({vocab} × {width}) and, at the end, "
            "multiplies the normed last state by the transpose of that very table; there is no "
            "other output matrix. Computed so from what the model hands to its last step, all "
            "{logits} logits of a {tokens}-token sequence come out as the model's own, to within "
            "the rounding of float64; with the rows of the table in another order, {shuffled} of "
            "them do not."
        ),
        sources=(LW, OE),
    ),
)


@evidence("tie-transpose")
@on_each_model
def transpose(model: Model) -> Measured:
    """The logits against ln_f · wteᵀ, and against the same with other rows."""
    fit = model.fit("logits")
    order = model.rng(1).permutation(model.config.n_vocab)
    right = model.at("ln_f") @ model.w("wte").T
    moved = int((right[:, order] != model.at("logits")).sum())
    return Measured(
        Verdict.TRUE if fit else Verdict.FALSE,
        {
            "vocab": model.config.n_vocab,
            "width": model.config.n_embd,
            "tokens": len(model.probe),
            "logits": fit.elements,
            "shuffled": moved,
            "score_over_limit": fit.ratio,
        },
    )
