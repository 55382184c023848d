"""The constants of a model, by which one that a port keeps in float32 is known.

A port that is cast to float64 keeps what it wrote as ``torch.tensor(2.0 / torch.pi)``: a number of
one element in float32. Which of the two float32 numbers around the constant that is, is the port's
business; in float64 it stands for the constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import GELU_CUBIC, SQRT_2_OVER_PI


@dataclass(frozen=True)
class Constant:
    """A number that some operations read.

    Attributes:
        formula: the constant, as a formula writes it.
        value: in float64.
        kinds: of the sites whose operation it belongs to.
    """

    formula: str
    value: float
    kinds: tuple[str, ...]


_NORMS = ("ln_1", "ln_2", "ln_f")
_ATTENTION = ("attn.scores", "attn.pattern", "attn.mix")
_GELU = ("mlp.act",)


@cache
def constants(config: Config) -> tuple[Constant, ...]:
    """Those that are no number of float32, and what people make of them beforehand."""
    size, width, scale = config.head_size, config.n_embd, config.keys.scale or 1.0
    found = (
        Constant("√(2/π)", SQRT_2_OVER_PI, _GELU),
        Constant("2/π", 2 / math.pi, _GELU),
        Constant("π", math.pi, _GELU),
        Constant("0.044715", GELU_CUBIC, _GELU),
        Constant("0.044715 √(2/π)", GELU_CUBIC * SQRT_2_OVER_PI, _GELU),
        Constant(f"√{size}", math.sqrt(size), _ATTENTION),
        Constant(f"1/√{size}", 1 / math.sqrt(size), _ATTENTION),
        Constant(f"{size}^¼", size**0.25, _ATTENTION),
        Constant(f"{size}^-¼", size**-0.25, _ATTENTION),
        Constant("the scale of the scores", scale, _ATTENTION),
        Constant("1 / the scale of the scores", 1 / scale, _ATTENTION),
        Constant("√2", math.sqrt(2), _GELU),
        Constant(f"√{width}", math.sqrt(width), ("embed",)),
        Constant("ε", config.keys.norm.epsilon, _NORMS),
        Constant(f"1/{width}", 1 / width, _NORMS),
    )
    return tuple(c for c in found if float(np.float32(c.value)) != c.value)


def stands_for(value: float, config: Config) -> float | None:
    """The constant that a number of float32 is one of the two neighbours of, times a power of two
    and a sign; None where it is none."""
    if abs(value) > float(np.finfo(np.float32).max) or float(np.float32(value)) != value:
        return None
    for constant in constants(config):
        exact = math.copysign(constant.value * _power(value, constant.value), value)
        rounded = np.float32(exact)
        away = np.float32(math.copysign(math.inf, exact - float(rounded)))
        if value in (float(rounded), float(np.nextafter(rounded, away))):
            return exact
    return None


def named(value: float, config: Config) -> tuple[Constant, float] | None:
    """The constant that a number is nearest to, which it is not, and by how much of it it differs;
    None where it is one, or nearer to none than to others."""
    if not value or not math.isfinite(value) or stands_for(value, config) is not None:
        return None
    apart = [(abs(abs(value) / c.value - 1), c) for c in constants(config)]
    error, constant = min(apart, key=lambda found: found[0])
    others = [abs(constant.value / c.value - 1) for c in constants(config) if c is not constant]
    return (constant, error) if 0 < error < min(others) / 2 else None


def _power(value: float, of: float) -> float:
    """The power of two that brings one number next to another."""
    if not value or not math.isfinite(value):
        return 1.0
    return float(2.0 ** round(math.log2(abs(value) / of)))
