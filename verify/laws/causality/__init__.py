"""The laws of causality."""

from __future__ import annotations

from gpt_verify.laws.causality.check import check_bits
from gpt_verify.laws.causality.gradient import check_causal_gradient, takes
from gpt_verify.laws.causality.pattern import check_pattern, patterns
from gpt_verify.laws.law import Law, Part, a_whole_context
from gpt_verify.port import ACTIVATIONS, INPUT_GRADIENTS

LAW = Law(
    "Causality",
    30,
    (
        Part(
            "causality.bits",
            check_bits,
            "everything from position s on is replaced; logits before s are the same. Every s of "
            "short sequences; powers of two and one more and less, and n_ctx − 1, of long ones",
            takes=a_whole_context,
            in_one_call=True,
        ),
        Part(
            "causality.pattern",
            check_pattern,
            "attention is exactly zero above the diagonal and before a window, in every layer and "
            "head, and rows sum to one within the budget of a softmax, to less where there is a "
            "sink",
            needs=(ACTIVATIONS,),
            sites=patterns,
            takes=a_whole_context,
        ),
        Part(
            "causality.gradient",
            check_causal_gradient,
            "d loss at i / d input at j is exactly zero for j > i",
            needs=(INPUT_GRADIENTS,),
            takes=takes,
            in_one_call=True,
        ),
    ),
)
