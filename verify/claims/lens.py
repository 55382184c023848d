"""Claims about the logit lens, and about what libraries call the last hidden state."""

from __future__ import annotations

from verify.claims.case import Case
from verify.claims.claim import Claim, Kind, Measured, Verdict
from verify.claims.evidence import evidence
from verify.claims.sources import HF

#: Relative distance below which two arrays are the same computation in float64, and above which
#: they are not: half of float64's digits, far from both the 1e-15 of one and the 1e-1 of the other.
SAME = 2.0**-26

CLAIMS = (
    Claim(
        id="lens-hf-last",
        statement="The last of Hugging Face's hidden_states is before the final layer norm.",
        kind=Kind.DOCUMENT,
        expected=Verdict.FALSE,
        answer=(
            "No, it is after it: hidden_states[-1] times wteᵀ is already the logits, in "
            "{versions}. Whoever applies ln_f once more norms twice: on the default checkpoint "
            "the distributions then differ from the model's by KL {kl_twice_nats:.4f} nats on "
            "average, little enough to be overlooked and wrong all the same."
        ),
        sources=(HF,),
    ),
)


@evidence("lens-hf-last")
def hidden_last(case: Case) -> Measured:
    """The head applied to the last hidden state, with and without a further norm."""
    code = case.code()
    facts = [c.facts["hidden"] for c in code]
    after = [f["distance_once"] < SAME < f["distance_twice"] for f in facts]
    before = [f["distance_twice"] < SAME < f["distance_once"] for f in facts]
    verdict = Verdict.UNDECIDABLE
    if all(after):
        verdict = Verdict.FALSE
    elif any(before):
        verdict = Verdict.TRUE
    numbers = {"versions": versions(case), "kl_twice_nats": facts[0]["kl_twice_nats"]}
    return Measured(verdict, numbers, asked=tuple(c.name for c in code))


def versions(case: Case) -> str:
    """Which were examined, by their major numbers: ``transformers 4 and 5``."""
    majors = sorted({code.facts["version"].partition(".")[0] for code in case.code()})
    return f"transformers {' and '.join(majors)}"
