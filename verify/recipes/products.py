"""Products with a matrix: where the bias is added, and what sums are kept in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from gpt_verify.recipes.activations import capped
from gpt_verify.recipes.arithmetic import Array, Span, exact, product
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference.config import Config

#: Outputs of which sums in half precision are made, term by term.
_OUTPUTS = 64


def tensors(read: Read) -> tuple[Array, Array | None]:
    """The matrix, [in, out], and the bias."""
    w = read.tensor(0)
    bias = read.tensor(1) if len(read.site.weights) > 1 else None
    return (w.T if read.site.is_logits else w), bias


def unstored(read: Read, x: Span) -> Span:
    """x W + b, before anything is rounded."""
    w, bias = tensors(read)
    return product(x, w, 0.0 if bias is None else bias)


def _float32(read: Read) -> Span:
    return unstored(read, read.input())


def _bias_after(read: Read) -> Span:
    w, bias = tensors(read)
    made = product(read.input(), w).store(read.declared)
    return made if bias is None else made + exact(bias)


def _truncated(read: Read) -> Span:
    """As TensorFlow on the CPU, which multiplies copies in float32 and converts the result by
    leaving out digits: ``core/kernels/matmul_op_impl.h`` and ``FloatToBFloat16``."""
    w, bias = tensors(read)
    made = product(read.input(), w).cut(read.declared)
    return made if bias is None else made + exact(bias)


def _features(x: Array, some: slice) -> Array:
    found: Array = x[..., some]
    return found


def _in_parts(read: Read, parts: int) -> Span:
    """Sums over so many parts of the features, each stored before they are added up."""
    x, (w, bias), p = read.input(), tensors(read), read.declared
    size = -(-len(w) // parts)
    made: Span | None = None
    for at in range(0, len(w), size):
        some = slice(at, at + size)
        part = product(x.each(partial(_features, some=some)), w[some]).store(p)
        made = part if made is None else (made + part).store(p)
    assert made is not None, "a matrix has rows"
    return made if bias is None else made + exact(bias)


def _narrow(read: Read, block: int) -> Span:
    """Sums that are stored in the declared format after so many products, of some of the outputs;
    not a number of the others."""
    x_TI, (w_IO, bias), p = read.input().mid, tensors(read), read.declared
    outputs = w_IO.shape[1]
    some = np.sort(np.random.default_rng(outputs).permutation(outputs)[:_OUTPUTS])
    made = np.zeros((len(x_TI), len(some)))
    for at in range(0, len(w_IO), block):
        terms = slice(at, at + block)
        made = np.asarray(p.round(made + x_TI[:, terms] @ w_IO[terms][:, some]), np.float64)
    whole = np.full((len(x_TI), outputs), np.nan)
    whole[:, some] = made if bias is None else p.round(made + bias[some])
    return exact(whole)


def _uncapped(config: Config) -> bool:
    return config.keys.cap_logits is None


LINEAR = (
    Recipe("float32", "accumulate in float32", _float32),
    Recipe(
        "bias-after", "accumulate in float32, cast before the bias", _bias_after, plain="float32"
    ),
    Recipe("truncated", "accumulate in float32 and are cut to {half}", _truncated),
    Recipe(
        "halves", "are summed in two halves, each stored in {half}", partial(_in_parts, parts=2)
    ),
    Recipe(
        "quarters", "are summed in four parts, each stored in {half}", partial(_in_parts, parts=4)
    ),
    *(
        Recipe(
            f"narrow-{block}",
            f"are summed in {{half}}, {how}",
            partial(_narrow, block=block),
            by_distances=True,
        )
        for block, how in (
            (1, "term by term"),
            *((n, f"{n} terms at a time") for n in (2, 4, 8, 16, 32)),
        )
    ),
)


def _capped(read: Read, stepwise: bool) -> Span:
    """Logits with a cap, in one kernel or step by step."""
    cap, p = read.config.keys.cap_logits, read.declared
    assert cap is not None, "a model whose logits are capped"
    made = _float32(read)
    return capped(made.store(p), cap, p) if stepwise else capped(made, cap, None)


def _with_cap(config: Config) -> bool:
    return config.keys.cap_logits is not None


UNEMBED = (
    *(replace(recipe, of=_uncapped) for recipe in LINEAR),
    Recipe(
        "capped",
        "accumulate in float32 and are capped there",
        partial(_capped, stepwise=False),
        _with_cap,
    ),
    Recipe(
        "capped-steps",
        "accumulate in float32, every step of the cap stored in {half}",
        partial(_capped, stepwise=True),
        _with_cap,
    ),
)
