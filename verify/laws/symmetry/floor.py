"""What rounding does to the logits of weights that were rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.floor import least_floor, measure_floor
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.symmetry.transforms import Symmetry, kind_of
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights

Floats = NDArray[np.floating]

#: Rewritings that do no more than change the order of sums, whose noise is that of the original.
_REORDERED = ("heads", "neurons")


def symmetry_floor(
    subject: Subject, symmetry: Symmetry, tokens_T: NDArray[np.int64], arithmetic: Precision
) -> Floats:
    """RMS noise of the logits at each position after the rewriting, [T].

    Before it the noise is the same or, where a constant is added, less.

    Args:
        subject: the port, which declares how the weights are held.
        symmetry: the rewriting.
        tokens_T: one sequence.
        arithmetic: the precision that is computed in.

    Raises:
        NotExamined: the reference overflows in it.
    """
    narrow = _narrow(arithmetic)
    name = "original" if symmetry.name in _REORDERED else symmetry.name
    held, seed = subject.precision.name, subject.seed
    key = ("symmetry", name, held, narrow.name, seed, tokens_T.tobytes())
    measured = subject.weights.memo
    if key not in measured:
        weights = subject.weights
        if name != "original":
            weights = DeclaredWeights(_Rewritten(subject.weights, symmetry), subject.precision)
        floor = measure_floor(subject.config, weights, narrow, tokens_T)
        measured[key] = floor.rms_T
    rms_T: Floats = measured[key]
    if not np.isfinite(rms_T).all():
        raise NotExamined(f"the reference overflows in {narrow.name}")
    return rms_T * (arithmetic.u / narrow.u)


def least_symmetry_floor(subject: Subject, squares_T: Floats, arithmetic: Precision) -> Floats:
    """What ``symmetry_floor`` is at least, [T], whatever was rewritten.

    Args:
        subject: the port.
        squares_T: mean over the vocabulary of the squared logits, the same before and after.
        arithmetic: the precision that is computed in.
    """
    narrow = _narrow(arithmetic)
    return least_floor(subject.config, narrow, squares_T) * (arithmetic.u / narrow.u)


def _narrow(arithmetic: Precision) -> Precision:
    """Rounding noise is proportional to u, so float64's floor is float32's, scaled."""
    return FLOAT32 if arithmetic.name == "float64" else arithmetic


class _Rewritten(Mapping[str, Floats]):
    """The checkpoint's tensors as a port holds them after the rewriting."""

    def __init__(self, tensors: Mapping[str, Floats], symmetry: Symmetry) -> None:
        self._tensors, self._symmetry = tensors, symmetry

    def __getitem__(self, name: str) -> Floats:
        step, value = self._symmetry.steps.get(kind_of(name)), self._tensors[name]
        if step is None:
            return value
        moved: NDArray[Any] = step.after(step.based(value))
        return moved.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
