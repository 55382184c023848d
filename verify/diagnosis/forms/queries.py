"""Queries, keys and values of a head, brought to another size or format before they meet.

Fitted is what is done to each of them: nothing, length 1, root mean square 1, mean 0 and variance 1
(with one factor for each head, which a scale has), or rounding to a narrower format; of rounding,
also whether the product is rounded. These are a few choices for all scores of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.attended import visible
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, listed, said, snapped
from gpt_verify.graph.call import Call
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, Precision
from gpt_verify.reference import ops

Change = Callable[[Array], Array]
#: Factors of heads nearer to each other than this are one.
ALIKE = 1e-5


def _same(x: Array) -> Array:
    return x


def _in_format(precision: Precision, x: Array) -> Array:
    """Rounded, in the format that it had: what is computed with it is not."""
    return np.asarray(precision.round(x), x.dtype)


def _length_one(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True)))


def _mean_square_one(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(1e-6)))


def _standard(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    square = np.mean(centred * centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(square + x.dtype.type(1e-5)))


def _softmax(x: Array) -> Array:
    return np.asarray(ops.softmax(x), x.dtype)


#: What is done to a vector of a head, in words.
NORMS: dict[str, Change] = {
    "": _same,
    "brought to length 1": _length_one,
    "brought to a mean square of 1": _mean_square_one,
    "normalised (mean 0, variance 1)": _standard,
    "put through a softmax": _softmax,
}
FORMATS = (BFLOAT16, FLOAT16, FLOAT32)


def normed(e: Evidence) -> Iterator[Fitted]:
    """Scores of queries and keys that were normed."""
    if e.site.kind != "attn.scores":
        return
    counts = visible(e)
    tried = []
    for (of_q, q), (of_k, k) in list(product(NORMS.items(), repeat=2))[1:]:
        made = _scores(e.call, q, k)
        factor_H = np.array(
            [_factor(m[c], g[c]) for m, g, c in zip(made, e.got, counts, strict=True)]
        )
        left = np.where(counts, e.got - factor_H[:, None, None] * made, 0.0)
        tried.append((float(np.sum(left * left)), of_q, of_k, factor_H))
    _, of_q, of_k, factor_H = min(tried, key=lambda one: one[0])
    own = 1.0 / np.sqrt(e.config.head_size) if e.config.keys.scale is None else e.config.keys.scale
    act = partial(_scaled_scores, factor_H, NORMS[of_q], NORMS[of_k])
    yield e.alone(act, f"{_normed_words(of_q, of_k)}; {_factor_words(factor_H * own)}")


def _scores(call: Call, q: Change, k: Change) -> Array:
    return ops.attention_scores(q(call.part("q")), k(call.part("k")), call.config.keys.scale)


def _scaled_scores(factor_H: Array, q: Change, k: Change, call: Call) -> Array:
    made = _scores(call, q, k)
    return made * factor_H.astype(made.dtype)[:, None, None]


def _factor(made: Array, got: Array) -> float:
    power = float(made @ made)
    return snapped(float(made @ got) / power) if power > 0 else 0.0


def _normed_words(of_q: str, of_k: str) -> str:
    if of_q == of_k:
        return f"queries and keys are {of_q} before they meet"
    each = [f"{what} are {of}" for what, of in (("queries", of_q), ("keys", of_k)) if of]
    return f"{' and '.join(each)} before they meet"


def _factor_words(factor_H: Array) -> str:
    if np.ptp(factor_H) <= ALIKE * np.abs(factor_H).max():
        return f"their product is multiplied by {said(float(np.median(factor_H)))}"
    return (
        f"their products are multiplied by a number of each head: {listed(map(said, factor_H), 4)}"
    )


def rounded(e: Evidence) -> Iterator[Fitted]:
    """Queries and keys, or values, or what is made of them, in a narrower format."""
    if e.site.kind == "attn.scores":
        yield from _rounded_scores(e)
    elif e.site.kind == "attn.mix" and e.beside("attn.pattern") in e.shown:
        yield from _rounded_mix(e)


def _rounded_scores(e: Evidence) -> Iterator[Fitted]:
    counts = visible(e)
    for precision in FORMATS:
        for before, after in ((True, False), (True, True), (False, True)):
            act = partial(
                _scores_in,
                partial(_in_format, precision) if before else _same,
                partial(_in_format, precision) if after else _same,
            )
            if _typical(e, act, counts):
                what = ["queries and keys"] * before + ["their products"] * after
                yield e.alone(act, f"{' and '.join(what)} rounded to {precision.name}", True)


def _scores_in(before: Change, after: Change, call: Call) -> Array:
    return np.asarray(after(_scores(call, before, before)), call.dtype)


def _rounded_mix(e: Evidence) -> Iterator[Fitted]:
    counts: NDArray[np.bool_] = np.ones(e.got.shape, np.bool_)
    for precision in FORMATS:
        for of_v, of_pattern, after in product((True, False), repeat=3):
            rounding = partial(_in_format, precision)
            some = (of_v, of_pattern, after)
            v, pattern, mix = (rounding if yes else _same for yes in some)
            act = partial(_mix_in, v, pattern, mix)
            if (of_v or of_pattern or after) and _typical(e, act, counts):
                what = ["values"] * of_v + ["the pattern"] * of_pattern + ["the mix"] * after
                yield e.alone(act, f"{' and '.join(what)} rounded to {precision.name}", True)


def _mix_in(of_v: Change, of_pattern: Change, after: Change, call: Call) -> Array:
    mix = ops.attention_mix(of_pattern(call.x), of_v(call.part("v")))
    return np.asarray(after(mix), call.dtype)


def _typical(e: Evidence, act: Callable[[Call], Array], counts: NDArray[np.bool_]) -> bool:
    """Whether it leaves less than a tenth of the median error: some fall on the other side of a
    step."""
    before = float(np.median(np.abs((e.got - e.right)[counts])))
    return float(np.median(np.abs((e.got - act(e.call))[counts]))) < 0.1 * before


NORMED = Form("queries-normed", "norms queries or keys before they meet", normed)
ROUNDED = Form("heads-rounded", "rounds queries, keys or values to a narrower format", rounded)
