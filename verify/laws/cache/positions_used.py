"""Which positions a port decodes at, call by call, read off its logits.

The position at which each call begins is searched for, with those of the calls before it as they
were found; within a call positions are counted on. What is found must give all of the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.decode import Before, decode
from gpt_verify.laws.decoding import Case, Way
from gpt_verify.laws.subject import Subject
from gpt_verify.numerics.weights import Widened
from gpt_verify.reference.config import Config

NAME, SUMMARY = "cache-positions-used", "decodes at other positions where there is a cache"
#: Positions beyond twice the longest sequence are tried only where a size of the model is one.
TWICE = 2


def positions_used(subject: Subject, cases: Sequence[Case]) -> list[Way]:
    """The one way that fits best; none where the calls are right, or of a model of a family."""
    config = subject.config
    if config.own is not None:
        return []
    starts: dict[Before, int] = {}
    for case in sorted(cases, key=lambda case: len(case.pieces)):
        _found(subject, case, _tried(config, case), starts)
    if all(start == sum(before) for before, start in starts.items()):
        return []
    longest = max(cases, key=lambda case: len(case.pieces))
    words = f"positions used, call by call: {_words(starts, longest)}"
    return [Way(words, partial(_positions, starts), fault=NAME)]


def _tried(config: Config, case: Case) -> Iterable[int]:
    length = sum(map(len, case.pieces))
    sizes = {config.n_head, config.n_layer, config.n_embd, config.head_size, config.n_ctx - 1}
    near = {*range(TWICE * length), *sizes, *(n - 1 for n in sizes)}
    return sorted(n for n in near if 0 <= n < config.n_ctx)


def _found(subject: Subject, case: Case, tried: Iterable[int], starts: dict[Before, int]) -> None:
    """The beginnings of the calls of one sequence, each by what leaves least of its logits."""
    weights = Widened(subject.weights)
    before: Before = ()
    for i, piece in enumerate(case.pieces):
        if before and before not in starts:
            rows = slice(sum(before), sum(before) + len(piece))
            left = {}
            for start in tried:
                way = Way("", partial(_positions, {**starts, before: start}))
                made = decode(weights, subject.config, case.pieces[: i + 1], way)
                if made is not None:
                    left[start] = float(np.sum((made[rows] - case.got_RV[rows]) ** 2))
            starts[before] = min(left, key=lambda start: left[start]) if left else sum(before)
        before = (*before, len(piece))


def _positions(starts: Mapping[Before, int], before: Before, n: int) -> NDArray[np.integer]:
    return np.arange(n) + starts.get(before, sum(before))


def _words(starts: Mapping[Before, int], case: Case) -> str:
    """Of the sequence with most calls."""
    lengths = tuple(map(len, case.pieces))
    found = [starts.get(lengths[:i], sum(lengths[:i])) for i in range(len(lengths))]
    return " ".join(map(str, found))
