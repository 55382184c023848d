"""Faults of the gradient: every value is correct, and what trains the model is not.

They are injected by ``gpt_verify.laws.gradient.injection``. What they come to is computed a second
time, from the rules of the reference's own backward pass, in
``gpt_verify.laws.gradient.hypotheses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, InModel


def _inject(name: str, model: Any, layers: Sequence[int]) -> None:
    from gpt_verify.laws.gradient.injection import INJECTIONS

    INJECTIONS[name](model, layers)


def _gradient(name: str, summary: str, in_blocks: bool = True) -> Fault:
    inject = InModel(partial(_inject, name), in_blocks=in_blocks)
    return Fault(f"gradient-{name}", "gradient", summary, inject=inject, law="gradient")


FAULTS = (
    _gradient("gelu-straight-through", "takes the derivative of GELU to be 1"),
    _gradient(
        "gelu-erf",
        "computes the tanh approximation of GELU, and the derivative of the exact form, with erf",
    ),
    _gradient("gelu-exponent", "forgets the 3 that the derivative of x³ brings down inside GELU"),
    _gradient("norm-statistics", "takes mean and deviation of a layer norm for constants"),
    _gradient("norm-deviation", "takes the deviation of a layer norm for a constant"),
    _gradient("norm-gain", "leaves the gain of a layer norm out of what goes back to its input"),
    _gradient(
        "averaged",
        "hands every position the sequence's mean, in the backward pass through a layer norm",
    ),
    _gradient("attention-detached", "detaches what attention adds to the residual stream"),
    _gradient("mlp-detached", "detaches what the MLP adds to the residual stream"),
    _gradient("skips-detached", "detaches the residual stream where a branch is added to it"),
    _gradient("blocks-apart", "detaches the residual stream where it enters a block"),
    _gradient("pattern-detached", "takes the attention pattern for a constant"),
    _gradient("query-detached", "takes queries for constants"),
    _gradient(
        "key-detached",
        "takes keys for constants, as those are that come from a cache without a graph",
    ),
    _gradient("value-detached", "takes values for constants"),
    _gradient("scores-unscaled", "leaves 1/√K out of the derivative of the scores"),
    _gradient(
        "softmax-diagonal",
        "takes the derivative of softmax to be p, without what its sum takes away",
    ),
    _gradient(
        "mask-straight-through",
        "masks the attention pattern forwards only: derivatives go through softmax as if there "
        "were no mask",
    ),
    _gradient(
        "mask-missing",
        "has no mask in the backward pass through attention, as a kernel that was not given it",
    ),
    _gradient(
        "bias-averaged",
        "averages the derivative of a bias over the positions, where it is their sum",
    ),
    _gradient("frozen", "reads a matrix detached, so that it is never trained"),
    _gradient(
        "counted-twice",
        "adds the derivative of a matrix twice, as a checkpoint that runs its backward pass again",
    ),
    _gradient(
        "scaled",
        "scales the derivative between two operations, as where a loss scale is undone twice",
        in_blocks=False,
    ),
)
