"""Scores that fall with the distance: how far the slopes' product is rounded before it is added."""

from __future__ import annotations

from functools import partial

import numpy as np

from gpt_verify.numerics.budgets import FUNCTION_ULP
from gpt_verify.recipes.arithmetic import Span, exact
from gpt_verify.recipes.attention import unstored
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference import positions


def _added(read: Read, by_place: bool, slopes_stored: bool, stored: bool) -> Span:
    """slope · -(t - s), or slope · s, which a softmax cannot tell apart; [H, T or 1, S]."""
    slope_H = exact(positions.slopes(read.config.n_head)[:, None, None])
    if not np.array_equal(slope_H.mid, slope_H.mid.astype(np.float32)):
        slope_H = slope_H.loose(FUNCTION_ULP)
    slope_H = slope_H.store(read.declared) if slopes_stored else slope_H
    source_S = np.arange(len(read.tokens_T), dtype=np.float64)
    far = source_S[None, :] if by_place else source_S - source_S[:, None]
    made = slope_H * exact(far)
    return made.store(read.declared) if stored else made


def _sloped(
    read: Read,
    by_place: bool,
    slopes_stored: bool = False,
    stored: bool = False,
    scores_stored: bool = False,
) -> Span:
    """The scores as they are shown; hidden ones as the product that ends here, stored or not."""
    if read.site.inputs[0] in read.values:
        scores = read.input()
    else:
        scores = unstored(read.of(read.site.inputs[0]))
    scores = scores.store(read.declared) if scores_stored else scores
    return scores + _added(read, by_place, slopes_stored, stored)


_WAYS = (
    ("distances", "times distances", False),
    ("places", "times positions", True),
)

ALIBI = tuple(
    Recipe(
        name + of + last,
        words + said + more,
        partial(
            _sloped,
            by_place=by_place,
            slopes_stored=slopes_stored,
            stored=stored,
            scores_stored=scores_stored,
        ),
        plain=name + of if scores_stored else name if of else "",
    )
    for last, more, scores_stored in (("", "", False), ("-to-stored", ", to stored scores", True))
    for name, words, by_place in _WAYS
    for of, said, slopes_stored, stored in (
        ("", ", added in float32", False, False),
        ("-stored", ", stored in {half} and added", False, True),
        ("-slopes-stored", ", themselves in {half}, stored and added", True, True),
    )
)
