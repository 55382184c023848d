"""GELU, SiLU and gates: in one kernel, or step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from gpt_verify.graph.operations.gelu import root_of
from gpt_verify.numerics.precision import FLOAT16, Precision
from gpt_verify.recipes.arithmetic import Span, constant, exact
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference import activations
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import GELU_CUBIC

Function = Callable[[Span, Read], Span]
HALF, ONE = exact(0.5), exact(1.0)


def gelu(x: Span, read: Read, constants: Precision | None = None) -> Span:
    cubic, root = constant(GELU_CUBIC), constant(root_of(read.config))
    if constants is not None:
        cubic, root = cubic.store(constants), root.store(constants)
    inner = (x + cubic * x * x * x) * root
    return HALF * x * (ONE + inner.loose(3).map(np.tanh))


def _gelu_steps(
    x: Span, read: Read, cube_of_squares: bool = False, constants: Precision | None = None
) -> Span:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), every step stored.

    Args:
        x: what it reads.
        read: the operation.
        cube_of_squares: x³ is x x, stored, times x; a power of its own otherwise.
        constants: the format that the program's numbers are in.
    """
    p = read.declared
    cubic, root = constant(GELU_CUBIC), constant(root_of(read.config))
    if constants is not None:
        cubic, root = cubic.store(constants), root.store(constants)
    cube = (x * x).store(p) * x if cube_of_squares else (x * x * x).loose(1)
    inner = ((x + (cube.store(p) * cubic).store(p)).store(p) * root).store(p)
    return (HALF * x).store(p) * (ONE + inner.map(np.tanh).store(p)).store(p)


def _gelu_tanh(x: Span, read: Read) -> Span:
    inner = (x + constant(GELU_CUBIC) * x * x * x) * constant(root_of(read.config))
    return HALF * x * (ONE + inner.loose(3).map(np.tanh).store(read.declared))


def _in_table(x: Span, read: Read, function: Function) -> Span:
    """A table of the function at every number of float16."""
    return function(x.store(FLOAT16), read).store(FLOAT16)


def _gelu_exact(x: Span, read: Read) -> Span:
    return HALF * x * (ONE + (x * constant(math.sqrt(0.5))).map(activations.erf))


def _gelu_exact_steps(x: Span, read: Read) -> Span:
    p = read.declared
    inner = (x * constant(math.sqrt(0.5))).loose(1).store(p).map(activations.erf).store(p)
    return (HALF * x).store(p) * (ONE + inner).store(p)


def sigmoid(x: Span) -> Span:
    return x.map(activations.sigmoid, 20)


def _silu(x: Span, read: Read) -> Span:
    return x * sigmoid(x)


def _silu_steps(x: Span, read: Read) -> Span:
    return x * sigmoid(x).store(read.declared)


def _recipes(whole: Function, *more: tuple[str, str, Function]) -> tuple[Recipe, ...]:
    """Those of a function alone."""
    table = partial(_in_table, function=whole)
    ways: tuple[tuple[str, str, Function], ...] = (
        ("float32", "in float32", whole),
        *more,
        ("table-float16", "by a table in float16", table),
    )
    return tuple(Recipe(name, words, partial(_alone, function=way)) for name, words, way in ways)


def _alone(read: Read, function: Function) -> Span:
    return function(read.input(), read)


GELU = _recipes(
    gelu,
    ("steps", "with every step stored in {half}", _gelu_steps),
    (
        "steps-squares",
        "with every step stored in {half}, x² too",
        partial(_gelu_steps, cube_of_squares=True),
    ),
    ("tanh-stored", "in float32, with tanh in {half}", _gelu_tanh),
)


def _steps_with_constants(read: Read, cube_of_squares: bool) -> Span:
    return _gelu_steps(read.input(), read, cube_of_squares, read.declared)


def _with_constants(read: Read) -> Span:
    return gelu(read.input(), read, read.declared)


GELU += (
    Recipe("float32-constants", "in float32, with the constants in {half}", _with_constants),
    Recipe(
        "steps-constants",
        "with every step and the constants in {half}",
        partial(_steps_with_constants, cube_of_squares=False),
    ),
    Recipe(
        "steps-squares-constants",
        "with every step, x² and the constants in {half}",
        partial(_steps_with_constants, cube_of_squares=True),
    ),
)
GELU_EXACT = _recipes(_gelu_exact, ("steps", "with every step stored in {half}", _gelu_exact_steps))


def _relu(x: Span, read: Read) -> Span:
    return x.each(lambda x: np.maximum(x, 0.0))


RELU = (Recipe("exact", "with nothing to round", partial(_alone, function=_relu)),)
SILU = _recipes(_silu, ("steps", "with σ stored in {half}", _silu_steps))


def _gate(read: Read, stepwise: bool, stored: bool) -> Span:
    """act(gate) · up, where the first may be stored before the product is made."""
    found = GATES[read.config.keys.activation][stepwise](read.input(0), read)
    return (found.store(read.declared) if stored else found.loose(1)) * read.input(1)


GATES: dict[str, tuple[Function, Function]] = {
    "gelu": (gelu, _gelu_steps),
    "gelu_exact": (_gelu_exact, _gelu_exact_steps),
    "silu": (_silu, _silu_steps),
}


def _known_gate(config: Config) -> bool:
    return config.keys.activation in GATES


GLU = (
    Recipe("float32", "in float32", partial(_gate, stepwise=False, stored=False), _known_gate),
    Recipe(
        "cast-before-up",
        "in float32, cast before the product of the two",
        partial(_gate, stepwise=False, stored=True),
        _known_gate,
    ),
    Recipe(
        "steps",
        "with every step stored in {half}",
        partial(_gate, stepwise=True, stored=True),
        _known_gate,
    ),
)


def capped(x: Span, cap: float, stored: Precision | None) -> Span:
    """c tanh(x / c), of which every step may be stored."""
    if stored is None:
        return ((x / constant(cap)).map(np.tanh) * constant(cap)).loose(1)
    return (x / constant(cap)).store(stored).map(np.tanh).store(stored) * constant(cap)


def _cap(read: Read, stepwise: bool) -> Span:
    cap = read.config.keys.cap
    assert cap is not None, "a model whose scores are capped"
    return capped(read.input(), cap, read.declared if stepwise else None)


SOFT_CAP = (
    Recipe("float32", "in float32", partial(_cap, stepwise=False)),
    Recipe("steps", "with every step stored in {half}", partial(_cap, stepwise=True)),
)
