"""A value that was put through a function that has no place there: an activation once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpt_verify.diagnosis.forms.activation import FUNCTIONS
from gpt_verify.diagnosis.forms.changes import Change, Pair, of_values
from gpt_verify.diagnosis.forms.form import Array, Form
from gpt_verify.reference import ops
from gpt_verify.reference.activations import gelu_exact

#: A function that leaves a larger share of the value than this is not it.
NEAR = 1e-2
OTHERS: dict[str, Callable[[Array], Array]] = {
    **FUNCTIONS,
    "exact gelu": gelu_exact,
    "|x|": np.abs,
    "exp": np.exp,
    "softmax": lambda x: np.asarray(ops.softmax(x), x.dtype),
}


def activated(pair: Pair) -> Iterator[Change]:
    """Through the function that is nearest."""
    got, should = pair.got, pair.should
    if got.ndim != 2 or not np.isfinite(got).all():
        return
    with np.errstate(all="ignore"):
        left = {name: _power(f(should) - got) for name, f in OTHERS.items()}
    name = min(left, key=lambda one: left[one])
    if left[name] <= NEAR * _power(got):
        yield Change(OTHERS[name], f"put through {name}")


def _power(x: Array) -> float:
    power = float(np.sum(x * x))
    return power if np.isfinite(power) else np.inf


FORM = Form(
    "function-added", "puts a value through a function that is not there", of_values(activated)
)
