"""Another activation: which function, of the input times what, and what is added.

Fitted are four numbers: a, b, c and d of ``a f(c x) + b x + d``, for each of some functions f: c by
Newton's method, the others by least squares. They must meet every channel at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.graph.call import Call
from gpt_verify.reference import ops

#: Elements that are looked at while c is searched for.
MOST = 4096
STARTS = (1.0, 0.5, 2.0, 1.7)
STEPS = 40


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x)), x.dtype)


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, 0.0), x.dtype)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": ops.gelu,
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: np.maximum(x, 0.0),
    "relu²": lambda x: np.maximum(x, 0.0) ** 2,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "softplus": _softplus,
    "sin": np.sin,
    "x²": lambda x: x * x,
}


def fits(e: Evidence) -> Iterator[Fitted]:
    one_input = len(e.site.inputs) == 1 and e.site.kind == "mlp.act"
    if not one_input or not np.isfinite(e.got).all():
        return
    step = max(1, e.got.size // MOST)
    x, got = e.call.x.ravel()[::step], e.got.ravel()[::step]
    tried = [(name, *_searched(f, x, got)) for name, f in FUNCTIONS.items()]
    name, c, _ = min(tried, key=lambda one: one[2])
    f = FUNCTIONS[name]
    every_x = e.call.x.ravel()
    a, b, d = (_near_zero(k) for k in _linear(f, c, every_x, e.got.ravel())[0])

    def act(call: Call) -> Array:
        x = call.x
        made: Array = call.dtype(a) * f(call.dtype(c) * x) + call.dtype(b) * x + call.dtype(d)
        return made

    yield e.alone(act, _words(name, a, b, c, d))


def _words(name: str, a: float, b: float, c: float, d: float) -> str:
    if a == 0:
        return (f"{said(b)} · x" if said(b) != "1" else "x") + (f" + {said(d)}" if d else "")
    inner = "x" if said(c) == "1" else f"{said(c)} · x"
    words = f"{name}({inner})" if said(a) == "1" else f"{said(a)} · {name}({inner})"
    words += f" + {said(b)} · x" if b else ""
    return words + (f" + {said(d)}" if d else "")


def _near_zero(value: float) -> float:
    return 0.0 if abs(value) < 1e-12 else snapped(value)


def _linear(
    f: Callable[[Array], Array], c: float, x: Array, got: Array
) -> tuple[tuple[float, float, float], Array]:
    """a, b and d, and what is left."""
    columns = np.stack([f(c * x), x, np.ones_like(x)], axis=-1)
    found = np.linalg.lstsq(columns, got, rcond=None)[0]
    left: Array = columns @ found - got
    return (float(found[0]), float(found[1]), float(found[2])), left


def _searched(f: Callable[[Array], Array], x: Array, got: Array) -> tuple[float, float]:
    """The c that leaves least, and that."""

    def left(c: float) -> Array:
        return _linear(f, c, x, got)[1]

    best = (1.0, np.inf)
    for start in STARTS:
        c, rest = start, left(start)
        for _ in range(STEPS):
            slope = (left(c + 1e-6) - left(c - 1e-6)) / 2e-6
            power = float(slope @ slope)
            if power == 0 or not np.isfinite(power):
                break
            by = -float(slope @ rest) / power
            new = left(c + by)
            if not float(new @ new) < float(rest @ rest):
                break
            c, rest = c + by, new
        if float(rest @ rest) < best[1]:
            best = snapped(c), float(rest @ rest)
    return best


FORM = Form("activation-form", "has another activation", fits)
