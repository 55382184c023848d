"""Layer norm and RMS norm: where statistics, the normalised stream and the gain are rounded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gpt_verify.graph.operations.rms_norm import grouped
from gpt_verify.numerics.precision import Precision
from gpt_verify.recipes.arithmetic import Array, Span, U, constant, exact, mean
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference.config import Config

Root = Callable[[Read, Span, Span], Span]


def _centred(x: Span, middle: Span) -> Span:
    """x - μ; or x r - μ r, which rounds both before it subtracts them."""
    return (x - middle).within(U * (abs(x.mid) + abs(middle.mid)))


def _moments(
    read: Read, x: Span | None = None, averaged: Span | None = None
) -> tuple[Span, Span, Span]:
    """Mean, centred stream and reciprocal root, all in registers.

    Args:
        read: the operation.
        x: the stream; None is what was stored of it.
        averaged: what the mean is of; None is the stream.
    """
    x = x or read.input()
    middle = mean(averaged or x)
    centred = _centred(x, middle)
    variance = mean(centred.square())
    return middle, centred, (variance + constant(read.config.keys.norm.epsilon)).rsqrt()


def _gain_and_bias(read: Read) -> tuple[Span, Span]:
    return exact(read.tensor(0)), exact(read.tensor(1))


def layer_norm(read: Read, x: Span | None = None, averaged: Span | None = None) -> Span:
    """In float32, rounded where it is stored.

    Args: as ``_moments``.
    """
    (_, centred, r), (g, b) = _moments(read, x, averaged), _gain_and_bias(read)
    return (centred * r * g).loose(2) + b


def _before_gain(read: Read) -> Span:
    (_, centred, r), (g, b), p = _moments(read), _gain_and_bias(read), read.declared
    return (((centred * r).loose(1).store(p) * g).store(p) + b).store(p)


def _before_gain_together(read: Read) -> Span:
    (_, centred, r), (g, b) = _moments(read), _gain_and_bias(read)
    return (centred * r).loose(1).store(read.declared) * g + b


def _before_bias(read: Read) -> Span:
    (_, centred, r), (g, b), p = _moments(read), _gain_and_bias(read), read.declared
    return ((centred * r * g).loose(2).store(p) + b).store(p)


def _statistics(read: Read) -> Span:
    (middle, _, r), (g, b), p = _moments(read), _gain_and_bias(read), read.declared
    return (_centred(read.input(), middle.store(p)) * r.store(p) * g).loose(2) + b


def _variance_of_steps(read: Read, centred: Span) -> Span:
    return mean(centred.square().store(read.declared)).store(read.declared)


def _variance_at_once(read: Read, centred: Span) -> Span:
    """One kernel makes the variance of the stream, and stores it."""
    x = read.input()
    return mean(_centred(x, mean(x)).square()).store(read.declared)


def _root(x: Span, p: Precision) -> Span:
    """√x, stored."""
    r = x.rsqrt()
    return Span(1 / r.high, 1 / r.mid, 1 / r.low).store(p)


def _reciprocal_root(x: Span, p: Precision) -> Span:
    """1 / √x of what is stored: rounded once, or the reciprocal of a root that is stored. torch's
    ``rsqrt`` does the first in its vectors, and the second with what is left over of a tensor."""
    return x.rsqrt().store(p).or_else((exact(1.0) / _root(x, p)).store(p))


def _times_root(read: Read, centred: Span, variance: Span) -> Span:
    return centred * _reciprocal_root(variance, read.declared)


def _over_root(read: Read, centred: Span, variance: Span) -> Span:
    return centred / _root(variance, read.declared)


def _steps(read: Read, variance: Callable[[Read, Span], Span], normed: Root) -> Span:
    x, p, (g, b) = read.input(), read.declared, _gain_and_bias(read)
    centred = (x - mean(x).store(p)).store(p)
    below = (variance(read, centred) + constant(read.config.keys.norm.epsilon)).store(p)
    return ((normed(read, centred, below).store(p) * g).store(p) + b).store(p)


LAYER_NORM = (
    Recipe("float32", "in float32", layer_norm),
    Recipe("cast-before-gain", "in float32, cast before the gain", _before_gain),
    Recipe(
        "cast-before-gain-once",
        "in float32, cast before the gain, gain and bias in one rounding",
        _before_gain_together,
    ),
    Recipe("cast-before-bias", "in float32, cast before the bias", _before_bias),
    Recipe("statistics-stored", "with mean and reciprocal root in {half}", _statistics),
    *(
        Recipe(
            f"steps{of}{by}",
            f"with every step stored in {{half}}{said}, {how}",
            partial(_steps, variance=variance, normed=normed),
        )
        for of, said, variance in (
            ("", "", _variance_of_steps),
            ("-variance", " but the variance's", _variance_at_once),
        )
        for by, how, normed in (
            ("", "times the reciprocal root", _times_root),
            ("-divided", "divided by the root", _over_root),
        )
    ),
)


def _grouped(read: Read, x: Span | None = None) -> tuple[Span, Array]:
    g_D = read.tensor(0)
    return (x or read.input()).each(lambda x: grouped(x, g_D)), g_D


def _back(read: Read, made: Span) -> Span:
    shape = read.input().mid.shape
    return made.each(lambda x: x.reshape(shape))


def _rms_root(read: Read, x: Span) -> Span:
    return (mean(x.square()) + constant(read.config.keys.norm.epsilon)).rsqrt()


def rms_norm(read: Read, x: Span | None = None, squared: Span | None = None) -> Span:
    """In float32, rounded where it is stored.

    Args:
        read: the operation.
        x: the stream; None is what was stored of it.
        squared: what the mean of squares is of; None is the stream.
    """
    stream, g_D = _grouped(read, x)
    gain = exact(g_D)
    if read.config.keys.norm.plus_one:
        gain = constant(1.0) + gain
    root = _rms_root(read, stream if squared is None else _grouped(read, squared)[0])
    return _back(read, (stream * root * gain).loose(2))


def _rms(read: Read, cast: bool, gain_stored: bool) -> Span:
    x, g_D = _grouped(read)
    gain = exact(g_D)
    if read.config.keys.norm.plus_one:
        gain = constant(1.0) + gain
        gain = gain.store(read.declared) if gain_stored else gain
    normed = (x * _rms_root(read, x)).loose(1)
    normed = normed.store(read.declared) if cast else normed
    return _back(read, (normed * gain).loose(0 if cast else 1))


def _rms_statistics(read: Read, squares: bool) -> Span:
    """The root alone is stored, or the mean of the squares and then the root."""
    x, g_D = _grouped(read)
    gain = exact(1 + g_D if read.config.keys.norm.plus_one else g_D)
    p, epsilon = read.declared, constant(read.config.keys.norm.epsilon)
    if squares:
        root = _reciprocal_root((mean(x.square()).store(p) + epsilon).store(p), p)
    else:
        root = _rms_root(read, x).store(p)
    return _back(read, (x * root * gain).loose(2))


def _rms_steps(read: Read) -> Span:
    x, g_D = _grouped(read)
    p, gain = read.declared, exact(g_D)
    if read.config.keys.norm.plus_one:
        gain = (constant(1.0) + gain).store(p)
    below = mean(x.square().store(p)).store(p) + constant(read.config.keys.norm.epsilon)
    root = _reciprocal_root(below.store(p), p)
    return _back(read, (x * root).store(p) * gain)


def _plus_one(config: Config) -> bool:
    return config.keys.norm.plus_one


RMS_NORM = (
    Recipe("float32", "in float32", rms_norm),
    Recipe(
        "cast-before-gain",
        "in float32, cast before the gain",
        partial(_rms, cast=True, gain_stored=False),
    ),
    Recipe(
        "gain-stored",
        "in float32, with 1 + g in {half}",
        partial(_rms, cast=False, gain_stored=True),
        _plus_one,
    ),
    Recipe(
        "cast-before-gain-stored",
        "in float32, cast before the gain, with 1 + g in {half}",
        partial(_rms, cast=True, gain_stored=True),
        _plus_one,
    ),
    Recipe(
        "root-stored", "with the reciprocal root in {half}", partial(_rms_statistics, squares=False)
    ),
    Recipe(
        "statistics-stored",
        "with the mean of squares and the reciprocal root in {half}",
        partial(_rms_statistics, squares=True),
    ),
    Recipe("steps", "with every step stored in {half}", _rms_steps),
)
