"""Whether a port that was cast to float64 computes in it throughout.

Some ports widen or narrow what they compute on the way: a softmax that is always taken in float32
is no mistake. Their float64 copies round as the narrower format does, and a law that expects the
rounding of float64 would refute them.
"""

from __future__ import annotations

from gpt_verify.laws.subject import Subject
from gpt_verify.port import ACTIVATIONS, Floats, Port, Tokens


def throughout(subject: Subject, float64_copy: Port, tokens: Tokens) -> bool:
    """Run the first positions of a batch, and look at the formats that are seen on the way.

    Args:
        subject: of the port; it is asked once, and the answer is kept.
        float64_copy: what ``Port.float64`` yields. One that shows no activations is taken at its
            word.
        tokens: int[B, T].
    """
    answers = subject.memo
    if "throughout" not in answers:
        answers["throughout"] = _throughout(float64_copy, tokens)
    return bool(answers["throughout"])


def _throughout(float64_copy: Port, tokens: Tokens) -> bool:
    activations = float64_copy.offers().get(ACTIVATIONS)
    if activations is None:
        return True
    narrower: list[str] = []

    def visit(site: str, value: Floats, narrowest: str | None = None) -> None:
        if narrowest not in (None, "float64"):
            narrower.append(site)

    activations(tokens[:1, :2], visit)
    return not narrower
