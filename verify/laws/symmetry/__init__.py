"""The laws of symmetry."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part, derivatives
from gpt_verify.laws.symmetry.check import (
    check_heads,
    check_neurons,
    check_rotate,
    check_scale,
    check_shift,
)
from gpt_verify.laws.symmetry.gradient import check_symmetry_gradient
from gpt_verify.port import GRADIENTS, PARAMETERS

LAW = Law(
    "Symmetry",
    80,
    (
        Part(
            "symmetry.heads",
            check_heads,
            "the heads are put into another order: the output stays the same",
            needs=(PARAMETERS,),
            writes=True,
            takes=derivatives,
        ),
        Part(
            "symmetry.neurons",
            check_neurons,
            "the neurons of every MLP are put into another order: the same",
            needs=(PARAMETERS,),
            writes=True,
            takes=derivatives,
        ),
        Part(
            "symmetry.scale",
            check_scale,
            "queries are multiplied, channel by channel, by what keys are divided by: the same",
            needs=(PARAMETERS,),
            writes=True,
            takes=derivatives,
        ),
        Part(
            "symmetry.rotate",
            check_rotate,
            "values are rotated within a head, and the rows of the next matrix with them: the same",
            needs=(PARAMETERS,),
            writes=True,
            takes=derivatives,
        ),
        Part(
            "symmetry.shift",
            check_shift,
            "a constant is added to all that is written into the residual stream (not to GPT's "
            "embeddings, which its first block reads as they are): the same",
            needs=(PARAMETERS,),
            writes=True,
            takes=derivatives,
        ),
        Part(
            "symmetry.gradient",
            check_symmetry_gradient,
            "when the weights are rewritten, the gradient is rewritten with them",
            needs=(PARAMETERS, GRADIENTS),
            writes=True,
            takes=derivatives,
            in_one_call=True,
        ),
    ),
    shares="gradient",
)
