"""Scores and mix: what is scaled before it is stored, and what weights are multiplied with."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gpt_verify.graph.local import NotShown
from gpt_verify.recipes.arithmetic import Span, constant, product
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.recipes.softmax import fused, once
from gpt_verify.reference.ops import side_by_side
from gpt_verify.sites import sites


def scale_of(read: Read) -> float:
    scale = read.config.keys.scale
    return 1 / float(np.sqrt(read.config.head_size)) if scale is None else scale


def _scaled(x: Span, scale: float) -> Span:
    """Times the scale, or divided by its reciprocal, which is the same for a power of two."""
    made = x * constant(scale)
    return made if math.frexp(scale)[0] == 0.5 else made.loose(1)


def unstored(read: Read, scale_stored: bool = False) -> Span:
    """q·k s, before anything is rounded; of a scale that is stored, or not."""
    made = product(read.part("q"), read.part("k").mid.transpose(0, 2, 1))
    if scale_stored:
        return made * constant(scale_of(read)).store(read.declared)
    return _scaled(made, scale_of(read))


def _scaled_after(read: Read) -> Span:
    made = product(read.part("q"), read.part("k").mid.transpose(0, 2, 1))
    return _scaled(made.store(read.declared), scale_of(read))


def _query_scaled(read: Read) -> Span:
    q = _scaled(read.part("q"), scale_of(read)).store(read.declared)
    return product(q, read.part("k").mid.transpose(0, 2, 1))


def _query_scaled_truncated(read: Read) -> Span:
    """The scale is stored as well: keras ``layers/attention/multi_head_attention.py``,
    ``_compute_attention``, on TensorFlow."""
    p = read.declared
    q = (read.part("q") * constant(scale_of(read)).store(p)).store(p)
    return product(q, read.part("k").mid.transpose(0, 2, 1)).cut(p)


def _both_scaled(read: Read) -> Span:
    """Each times the root of the scale, as torch's attention without a kernel does."""
    root, p = float(np.sqrt(scale_of(read))), read.declared
    q, k = _scaled(read.part("q"), root).store(p), _scaled(read.part("k"), root).store(p)
    k_HKS = k.each(lambda x: x.transpose(0, 2, 1))
    made = product(q, k_HKS.mid)
    return made if k.known else made.within(np.abs(q.mid) @ (k_HKS.high - k_HKS.low))


SCORES = (
    Recipe("scaled-after", "are stored before they are scaled", _scaled_after),
    Recipe("float32", "are scaled in float32", unstored, plain="scaled-after"),
    Recipe(
        "query-scaled",
        "are of queries that were scaled and stored",
        _query_scaled,
        plain="scaled-after",
    ),
    Recipe(
        "query-scaled-truncated",
        "are of queries times the scale in {half}, stored, and cut to {half}",
        _query_scaled_truncated,
    ),
    Recipe(
        "both-scaled",
        "are of queries and keys that were scaled and stored",
        _both_scaled,
        plain="scaled-after",
    ),
)


def _mixed(read: Read, pattern: Span) -> Span:
    return product(pattern, read.part("v").mid).each(side_by_side)


def _weights_stored(read: Read) -> Span:
    return _mixed(read, read.input().store(read.declared))


def _float32(read: Read) -> Span:
    return _mixed(read, read.input())


def _truncated(read: Read) -> Span:
    return _float32(read).cut(read.declared)


def _scores(read: Read) -> Read:
    """The scores, of an attention that is looked at as a whole.

    Raises:
        NotShown: something else lies between scores and pattern.
    """
    pattern = sites(read.config)[read.site.inputs[0]]
    found = sites(read.config)[pattern.inputs[0]]
    if found.operation != "scores" or pattern.weights:
        raise NotShown(pattern.name)
    return read.of(found.name)


def _fused(read: Read, stored: bool, lanes: int = 0, scale_stored: bool = False) -> Span:
    """Weights of one kernel, as they are or stored, divided by their sum at the end."""
    scores = unstored(_scores(read), scale_stored)
    made, divisor = fused(read, scores, stored, lanes)
    mixed = product(made, read.part("v").mid)
    return (mixed / divisor).each(side_by_side)


def _fused_pattern(read: Read, both: bool, stored: bool) -> Span:
    """The pattern is stored before the product; so are the scores, or they are not."""
    scores = _scores(read)
    made = _both_scaled(scores) if both else unstored(scores)
    made = made.store(read.declared) if stored else made
    return _mixed(read, once(read, made).store(read.declared))


def _eager(read: Read) -> Span:
    """As in steps of their own, which the port does not show."""
    made = _scaled_after(_scores(read)).store(read.declared)
    return _mixed(read, once(read, made).store(read.declared))


MIX = (
    Recipe("float32", "accumulates in float32", _float32),
    Recipe(
        "pattern-stored",
        "accumulates in float32, of weights cast to {half}",
        _weights_stored,
        plain="float32",
    ),
    Recipe("truncated", "accumulates in float32, cut to {half}", _truncated),
    Recipe("fused", "is of one kernel in float32", partial(_fused, stored=False), whole=True),
    Recipe(
        "fused-scale-stored",
        "is of one kernel in float32, with the scale in {half}",
        partial(_fused, stored=False, scale_stored=True),
        whole=True,
        plain="fused",
    ),
    Recipe(
        "fused-stored",
        "is of one kernel in float32, of exponentials cast to {half}",
        partial(_fused, stored=True),
        whole=True,
    ),
    *(
        Recipe(
            f"fused-stored-short-{lanes}",
            "is of one kernel in float32, of exponentials by a short polynomial cast to {half}, "
            f"{lanes} at a time",
            partial(_fused, stored=True, lanes=lanes),
            whole=True,
        )
        for lanes in (8, 16)
    ),
    Recipe(
        "fused-pattern-stored",
        "is of one kernel in float32, of weights cast to {half}",
        partial(_fused_pattern, both=False, stored=False),
        whole=True,
    ),
    Recipe(
        "fused-scores-stored",
        "is of scores and weights cast to {half}",
        partial(_fused_pattern, both=False, stored=True),
        whole=True,
        plain="fused-eager",
    ),
    Recipe(
        "fused-both-scaled",
        "is of queries and keys scaled first, scores and weights in {half}",
        partial(_fused_pattern, both=True, stored=True),
        whole=True,
    ),
    Recipe(
        "fused-eager",
        "is of scores stored before they are scaled, and weights in {half}",
        _eager,
        whole=True,
    ),
)
