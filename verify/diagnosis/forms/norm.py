"""A norm by other statistics: how it is centred, and what it is divided by.

Fitted are, for each position, a factor and an offset between what is normed and what comes of it
(less bias and gain); then the rule that makes them: how much of the mean is taken away, and the
root of κ · variance + ε, or κ · σ + ε, or the same about 0. Where there is no such rule, each
position keeps a factor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.form import FEWEST, Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.graph.call import Call

Divisor = Callable[[Array], Array]


def _variance(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(np.mean(centred * centred, axis=-1, keepdims=True))


def _square(x: Array) -> Array:
    return np.asarray(np.mean(x * x, axis=-1, keepdims=True))


def _deviation(x: Array) -> Array:
    return np.asarray(np.mean(np.abs(x - x.mean(axis=-1, keepdims=True)), axis=-1, keepdims=True))


def _of_sample(x: Array) -> Array:
    return _variance(x) * x.dtype.type(_sample(x.shape[-1]))


def _sample(count: int) -> float:
    """By how much the variance of a sample is larger; 1 where there is none."""
    return count / (count - 1) if count > 1 else 1.0


#: Factors are one number where they differ by less; those of a sample differ by more from 1.
CLOSE = 1e-6
_OF_SAMPLE = {"variance": ("variance of a sample (n - 1)", _of_sample)}


def fits(e: Evidence) -> Iterator[Fitted]:
    if e.site.operation not in ("layer_norm", "rms_norm") or e.site.heads:
        return
    if not np.isfinite(e.got).all() or len(e.got) < FEWEST or e.config.keys.norm.plus_one:
        return
    x = e.call.x
    gain, *bias = (e.call.w(name) for name in e.site.weights)
    if (gain == 0).any():
        return
    normed = (e.got - (bias[0] if bias else 0.0)) / gain
    factor_T1, offset_T1 = _lines(x, normed)
    with_mean = factor_T1 * x.mean(axis=-1, keepdims=True)
    power = float(np.sum(with_mean**2))
    centre = snapped(-float(np.sum(offset_T1 * with_mean)) / power) if power > 0 else 0.0
    centre = 0.0 if abs(centre) < 1e-9 else centre
    by = 1.0 / factor_T1
    rules: list[tuple[str, Divisor, int]] = [
        ("variance", _variance, 2),
        ("mean square", _square, 2),
        ("variance", _variance, 1),
        ("mean square", _square, 1),
        ("mean |x - mean|", _deviation, 0),
    ]
    for name, of, root in rules:
        yield _by_rule(e, name, of, root, centre, by)
    should = "root mean square" if e.site.operation == "rms_norm" else "deviation"
    words = f"{_centred(centre)}, and each position is divided by another number than its {should}"
    yield e.alone(partial(_made, centre, lambda x: by.astype(x.dtype)), words)


def of_another(e: Evidence) -> Iterator[Fitted]:
    """The mean, the deviation or both are those of another site, as of a state before the last sum
    was added; that which leaves least."""
    if e.site.operation not in ("layer_norm", "rms_norm") or e.site.heads:
        return
    if not np.isfinite(e.got).all() or len(e.got) < FEWEST or e.config.keys.norm.plus_one:
        return
    centres = e.site.operation == "layer_norm"
    tried: list[tuple[float, _Of, str]] = []
    for name, value in e.shown.items():
        if name == e.site.inputs[0] or value.shape != e.call.x.shape:
            continue
        for mean, by in ((True, True), (True, False), (False, True)):
            if centres or not mean:
                act = _Of(name, mean, by, centres)
                divisor = "deviation" if centres else "root mean square"
                which = " and ".join(["mean"] * mean + [divisor] * by)
                tried.append((e.distance(act(e.call)), act, f"with the {which} of {name}"))
    if tried:
        _, act, words = min(tried, key=lambda one: one[0])
        yield e.alone(act, words)


class _Of:
    """A norm with statistics of another site."""

    def __init__(self, name: str, mean: bool, by: bool, centres: bool) -> None:
        self._name, self._mean, self._by, self._centres = name, mean, by, centres

    def __call__(self, call: Call) -> Array:
        x, other = call.x, call.values[self._name].astype(call.dtype)
        centred = x - (other if self._mean else x).mean(axis=-1, keepdims=True)
        of = other if self._by else x
        square = _variance(of) if self._centres else _square(of)
        epsilon = call.dtype(call.config.keys.norm.epsilon)
        made: Array = call.own(0) * (centred if self._centres else x) / np.sqrt(square + epsilon)
        return made + call.own(1) if len(call.site.weights) > 1 else made


def _lines(x: Array, y: Array) -> tuple[Array, Array]:
    """The straight line y = factor · x + offset of each position, by least squares."""
    mean_x, mean_y = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    power = np.sum((x - mean_x) ** 2, axis=-1, keepdims=True)
    slope = np.sum((x - mean_x) * (y - mean_y), axis=-1, keepdims=True) / power
    return np.asarray(slope), np.asarray(mean_y - slope * mean_x)


def _by_rule(e: Evidence, name: str, of: Divisor, root: int, centre: float, by: Array) -> Fitted:
    """κ and ε of one rule: within the root (2), of the root (1), of the number itself (0)."""
    statistic = of(e.call.x)
    basis = np.sqrt(statistic) if root == 1 else statistic
    target = by**2 if root == 2 else by
    columns = np.stack([basis.ravel(), np.ones(basis.size)], axis=-1)
    scale = 1.0 / np.abs(target).ravel()  # what is small counts as much
    found = np.linalg.lstsq(columns * scale[:, None], target.ravel() * scale, rcond=None)[0]
    k, epsilon = snapped(float(found[0])), float(found[1])
    if name in _OF_SAMPLE and np.isclose(k ** (2 / root), _sample(e.config.n_embd), rtol=CLOSE):
        name, of, k = *_OF_SAMPLE[name], 1.0

    def divisor(x: Array) -> Array:
        made = of(x)
        made = np.sqrt(made) if root == 1 else made
        made = x.dtype.type(k) * made + x.dtype.type(epsilon)
        return np.sqrt(made) if root == 2 else made

    inner = name if said(k) == "1" else f"{said(k)} · {name}"
    times = "" if said(k) == "1" else f" · {said(k)}"
    root_of = {2: f"√({inner} + {epsilon:.3g})", 1: f"√({name}){times} + {epsilon:.3g}"}
    words = f"{_centred(centre)}, and divided by {root_of.get(root, f'{inner} + {epsilon:.3g}')}"
    return e.alone(partial(_made, centre, divisor), words)


def _centred(centre: float) -> str:
    if centre == 0:
        return "not centred"
    return "centred" if said(centre) == "1" else f"less {said(centre)} · mean"


def _made(centre: float, divisor: Divisor, call: Call) -> Array:
    x = call.x
    normed = (x - call.dtype(centre) * x.mean(axis=-1, keepdims=True)) / divisor(x)
    made: Array = call.own(0) * normed
    return made + call.own(1) if len(call.site.weights) > 1 else made


FORM = Form("norm-form", "norms by other statistics", fits)
OTHER = Form("norm-of-another", "norms by the statistics of another site", of_another)
