"""Claims about the MLP and its activation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import AR, CODE, GELU, LW
from gpt_verify.faults.gelu import erf
from gpt_verify.graph.call import Override
from gpt_verify.port import NotExamined
from gpt_verify.reference.ops import gelu

Floats = NDArray[np.floating]
Function = Callable[[Floats], Floats]


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def exact_gelu(x: Floats) -> Floats:
    """x Φ(x), with erf."""
    value: Floats = 0.5 * x * (1 + erf(x / np.sqrt(2.0)))
    return value


#: What a model's activation may turn out to be.
ACTIVATIONS: dict[str, Function] = {"gelu": gelu, "exact gelu": exact_gelu, "relu": relu}

CLAIMS = (
    Claim(
        id="act-relu",
        statement="GPT uses ReLU.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: GELU, in the form with tanh. It gives all {values} activations of the model from "
            "what goes into them, to within the rounding of float64; ReLU is off by up to "
            "{furthest:.2f}."
        ),
        sources=(LW,),
    ),
    Claim(
        id="gelu-which",
        statement="GPT-2's GELU is the exact one, with the error function (torch's nn.GELU()).",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: it is the approximation with tanh, 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), "
            "which transformers calls gelu_new and torch gelu with approximate='tanh'. The two "
            "differ by up to {apart:.6f}, small enough to read well and large enough to refute a "
            "port: all {values} activations here fit the one and not the other."
        ),
        sources=(CODE, GELU),
    ),
    Claim(
        id="gelu-linear-zero",
        statement="GELU is smooth at 0 and close to linear near it.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The model's activation is GELU ({values} values compared); its slope at 0 is "
            "{slope:.3f} from both sides, and within ±0.01 it departs from x/2 by at most "
            "{departs:.1e}, {percent:.1f} % of what x/2 is there."
        ),
        sources=(LW,),
        proof="Both forms of GELU are x/2 + x²/√(2π) + O(x⁴).",
    ),
    Claim(
        id="gelu-curvature",
        statement="GELU's curvature is largest near 0.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The second derivative of the model's activation has its maximum at "
            "{at:.2f}, where it is {largest:.4f} = √(2/π); so near 0 it is smooth, and yet bends "
            "more than anywhere else."
        ),
        sources=(LW,),
        proof=(
            "The exact GELU is x Φ(x), whose second derivative (2 − x²) φ(x) is largest in size at "
            "0: 2 φ(0) = √(2/π). The form with tanh has the same value there; that it is nowhere "
            "larger is measured."
        ),
    ),
    Claim(
        id="relu-nonlinear-small",
        statement="ReLU is nonlinear for arbitrarily small inputs, and GELU is not.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. Take the best straight line through the values on [-s, s]: for s = 1, 0.01 and "
            "0.0001 ReLU leaves {relu:.2f} of its size unexplained each time, the model's "
            "activation {large:.3f}, {medium:.5f} and {small:.7f}."
        ),
        sources=(LW,),
        proof=(
            "For s > 0, ReLU(s x) = s ReLU(x): enlarged, it looks the same at every scale. GELU is "
            "x/2 + x²/√(2π) + O(x⁴), whose part that is not linear vanishes relative to x."
        ),
    ),
    Claim(
        id="mlp-widen",
        statement="The MLP goes to a higher dimension and back.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer="Yes: from {width} to {hidden}, {times} times as many, and back to {back}.",
        sources=(AR,),
    ),
)


def _applied(function: Function) -> Override:
    return lambda c: function(c.x)


def activation_of(model: Model) -> tuple[str, Function, int]:
    """Which of the known functions the model applies, and how many values said so.

    Raises:
        NotExamined: none of them.
    """
    for name, function in ACTIVATIONS.items():
        fit = model.fits("mlp.act", _applied(function))
        if fit:
            return name, function, fit.elements
    raise NotExamined("its activation is none of the known ones")


@evidence("act-relu")
@on_each_model
def is_relu(model: Model) -> Measured:
    name, _, values = activation_of(model)
    off = [
        np.abs(relu(model.at(f"h.{i}.mlp.pre")) - model.at(f"h.{i}.mlp.act")).max()
        for i in model.layers
    ]
    verdict = Verdict.TRUE if name == "relu" else Verdict.FALSE
    return Measured(verdict, {"values": values, "furthest": float(max(off)), "activation": name})


@evidence("gelu-which")
@on_each_model
def is_exact(model: Model) -> Measured:
    name, _, values = activation_of(model)
    x = np.linspace(-6, 6, 12001)
    apart = float(np.abs(gelu(x) - exact_gelu(x)).max())
    verdict = Verdict.TRUE if name == "exact gelu" else Verdict.FALSE
    return Measured(verdict, {"values": values, "apart": apart, "activation": name})


@evidence("gelu-linear-zero")
@on_each_model
def linear_near_zero(model: Model) -> Measured:
    """One-sided slopes at 0, and the departure from a straight line."""
    _, function, values = activation_of(model)
    h = np.array([1e-6])
    right, left = float((function(h) / h)[0]), float((-function(-h) / h)[0])
    x = np.linspace(-0.01, 0.01, 2001)
    departs = float(np.abs(function(x) - x / 2).max())
    # Slopes at ±h differ by the second derivative times 2 h, at most 1.6e-6, if it is smooth.
    smooth = abs(right - left) < 4e-6
    verdict = Verdict.TRUE if smooth and departs < 1e-4 else Verdict.FALSE
    percent = 100 * departs / (x.max() / 2)
    numbers = {"values": values, "slope": right, "departs": departs, "percent": percent}
    return Measured(verdict, numbers)


@evidence("gelu-curvature")
@on_each_model
def curvature(model: Model) -> Measured:
    """Second differences with two steps: at a kink the smaller step gives more."""
    _, function, _ = activation_of(model)
    x = np.round(np.linspace(-6, 6, 1201), 2)

    def second(h: float) -> Floats:
        value: Floats = (function(x + h) - 2 * function(x) + function(x - h)) / h**2
        return value

    coarse, fine = second(2e-3), second(1e-3)
    at = int(np.argmax(fine))
    bounded = fine.max() < 1.5 * coarse.max()
    numbers = {"at": abs(float(x[at])), "largest": float(fine[at])}
    return Measured(Verdict.TRUE if bounded and x[at] == 0 else Verdict.FALSE, numbers)


def _left_by_line(function: Function, size: float) -> float:
    """RMS of what the best line through the values on [-size, size] leaves, over their RMS."""
    x = np.linspace(-size, size, 2001)
    y = function(x)
    line = np.polynomial.Polynomial.fit(x, y, 1)
    return float(np.sqrt(np.mean((y - line(x)) ** 2) / np.mean(y**2)))


@evidence("relu-nonlinear-small")
@on_each_model
def nonlinear_when_small(model: Model) -> Measured:
    """What a line leaves, on smaller and smaller intervals."""
    _, function, _ = activation_of(model)
    sizes = (1.0, 1e-2, 1e-4)
    large, medium, small = (_left_by_line(function, size) for size in sizes)
    of_relu = [_left_by_line(relu, size) for size in sizes]
    constant = max(of_relu) - min(of_relu) < 1e-6
    # A curve is a line and a parabola, of which 1/100 is left on an interval of 1/100.
    vanishes = small < medium / 50 and medium < large / 50
    verdict = Verdict.TRUE if constant and vanishes else Verdict.FALSE
    numbers = {"relu": of_relu[0], "large": large, "medium": medium, "small": small}
    return Measured(verdict, numbers)


@evidence("mlp-widen")
@on_each_model
def widens(model: Model) -> Measured:
    width = model.config.n_embd
    hidden = {model.at(f"h.{i}.mlp.pre").shape[-1] for i in model.layers}
    back = {model.at(f"h.{i}.mlp.out").shape[-1] for i in model.layers}
    verdict = Verdict.TRUE if hidden == {4 * width} and back == {width} else Verdict.FALSE
    (first,), (out,) = sorted(hidden)[:1], sorted(back)[:1]
    return Measured(
        verdict, {"width": width, "hidden": first, "times": first // width, "back": out}
    )
