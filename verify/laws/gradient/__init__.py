"""The law of the gradient."""

from __future__ import annotations

from gpt_verify.laws.gradient.check import at_the_weights, check_gradient
from gpt_verify.laws.gradient.faults import FAULTS
from gpt_verify.laws.law import Law, Part, derivatives
from gpt_verify.port import GRADIENTS, PARAMETERS

LAW = Law(
    "Gradient",
    70,
    (
        Part(
            "gradient",
            check_gradient,
            "for each tensor, ⟨the port's gradient, v⟩ along a random v is that of the "
            "reference's backward pass, which is itself checked by central differences of the "
            "float64 loss; in float64 first, where the port can. A mistake in the backward pass "
            "that alone explains all of them is named (a detached branch, the derivative of "
            "another GELU, a kernel without its mask, …)",
            needs=(PARAMETERS, GRADIENTS),
            sites=at_the_weights,
            takes=derivatives,
            in_one_call=True,
        ),
    ),
    FAULTS,
)
