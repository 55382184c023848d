"""What the last product reads, and how far its own rounding may move it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.local import Asked
from gpt_verify.graph.table import made_by
from gpt_verify.graph.tiles import EVERY
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import before_head, sites

Floats = NDArray[np.floating]


def stream_before(config: Config) -> str:
    """The site of the stream that the last norm reads; where there is no norm, what the head
    reads itself."""
    end = sites(config)[before_head(config)]
    return end.name if made_by(end).adds else end.inputs[0]


def read_by_the_head(
    config: Config,
    weights: DeclaredWeights,
    precision: Precision,
    tokens_T: NDArray[np.integer],
    stream_TD: Floats,
) -> Measured:
    """The last norm of a stream that was rounded to the format of the port, in arithmetic as wide
    as its accumulators.

    Args:
        config: sizes.
        weights: the checkpoint's tensors, in the precision that the port declares.
        precision: what the port computes in.
        tokens_T: the sequence.
        stream_TD: the exact stream, or its last positions.
    """
    end = sites(config)[before_head(config)]
    rounded = Measured(stream_TD, precision.u * np.abs(stream_TD))
    if made_by(end).adds:
        return rounded
    wide = replace(precision, u=precision.u_sum)
    asked = Asked(config, tokens_T, EVERY, end, wide, lambda *_: rounded, weights)
    return made_by(end).budget(wide, asked)
