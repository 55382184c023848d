"""An activation x · g(x) with another gate g: cut straight, a rational function, other numbers.

Fitted are two numbers of a straight line that is held between 0 and 1; or the two of GELU's
g(x) = (1 + tanh(a (x + b x³))) / 2, which is the logistic function of 2a (x + b x³); or the
coefficients of a rational function in the place of the tanh. They must meet every channel at every
position.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.graph.call import Call
from gpt_verify.reference.ops import SQRT_2_OVER_PI

#: A gate within this of its ends is held there; an input nearer to 0 than this tells no gate.
HELD, SMALL = 1e-9, 1e-3
#: Powers of z² above and below the line.
ORDERS = ((1, 1), (2, 1), (2, 2))
#: Elements that the coefficients are fitted to at most.
MOST = 8192


def fits(e: Evidence) -> Iterator[Fitted]:
    if e.site.kind != "mlp.act" or len(e.site.inputs) != 1 or not np.isfinite(e.got).all():
        return
    x, got = (np.asarray(value, np.float64).ravel() for value in (e.call.x, e.got))
    tells = np.abs(x) > SMALL
    step = max(1, int(tells.sum()) // MOST)
    x, gate = x[tells][::step], (got[tells] / x[tells])[::step]
    inside = (gate > HELD) & (gate < 1 - HELD)
    if inside.sum() < 16:
        return
    x, gate = x[inside], gate[inside]
    slope, start = (snapped(float(c)) for c in np.polyfit(x, gate, 1))
    words = f"x · ({said(slope)} · x + {said(start)}), the gate held between 0 and 1"
    yield e.alone(partial(_straight, slope, start), words)
    yield _otherwise(e, x, gate)
    for above, below in ORDERS:
        z = _within_gelu(x)
        n, d = _rational(z, 2 * gate - 1, above, below)
        yield e.alone(partial(_of_gelu, n, d), f"the tanh within GELU is {_words(n, d, 'z')}")


def _straight(slope: float, start: float, call: Call) -> Array:
    x = call.x
    made: Array = x * np.clip(call.dtype(slope) * x + call.dtype(start), 0, 1)
    return made


def _otherwise(e: Evidence, x: Array, gate: Array) -> Fitted:
    """GELU of two other numbers: the logarithm of g / (1 - g) is linear in x and x³; least squares,
    each element by how well its gate tells it."""
    weight = gate * (1 - gate)
    columns = np.stack([x * weight, x**3 * weight], axis=-1)
    scale = np.abs(columns).max(axis=0)
    logit = np.log(gate) - np.log1p(-gate)
    first, third = np.linalg.lstsq(columns / scale, logit * weight, rcond=None)[0] / scale
    a, b = snapped(first / 2), snapped(third / first)
    return e.alone(
        partial(_by_tanh, a, b),
        f"GELU's tanh is of {said(a)} (x + {said(b)} x³), "
        f"not of {said(float(SQRT_2_OVER_PI))} (x + 0.044715 x³)",
    )


def _by_tanh(a: float, b: float, call: Call) -> Array:
    x = call.x
    z = call.dtype(a) * (x + call.dtype(b) * x**3)
    made: Array = x.dtype.type(0.5) * x * (1 + np.tanh(z))
    return made


def _within_gelu(x: Array) -> Array:
    made: Array = x.dtype.type(SQRT_2_OVER_PI) * (x + x.dtype.type(0.044715) * x**3)
    return made


def _rational(z: Array, t: Array, above: int, below: int) -> tuple[Array, Array]:
    """n and d of t · (1 + Σ d_k z^2k) = z · Σ n_k z^2k."""
    columns = [z ** (2 * k + 1) for k in range(above + 1)]
    columns += [-t * z ** (2 * k) for k in range(1, below + 1)]
    scale = np.array([np.abs(column).max() for column in columns])
    found = np.linalg.lstsq(np.stack(columns, axis=-1) / scale, t, rcond=None)[0] / scale
    return np.asarray(found[: above + 1]), np.concatenate([[1.0], found[above + 1 :]])


def _of_gelu(n: Array, d: Array, call: Call) -> Array:
    x = call.x
    z = _within_gelu(x)
    square = z * z
    above = sum(call.dtype(c) * square**k for k, c in enumerate(n))
    below = sum(call.dtype(c) * square**k for k, c in enumerate(d))
    made: Array = x.dtype.type(0.5) * x * (1 + np.clip(z * above / below, -1, 1))
    return made


def _words(n: Array, d: Array, z: str) -> str:
    return f"{z} ({_polynomial(n, z)}) / ({_polynomial(d, z)}), a rational approximation"


def _polynomial(coefficients: Array, z: str) -> str:
    powers = ["", *(f" · {z}^{2 * k}" for k in range(1, len(coefficients)))]
    return " + ".join(f"{said(float(c))}{p}" for c, p in zip(coefficients, powers, strict=True))


FORM = Form("activation-gate", "has another gate in its activation", fits)
