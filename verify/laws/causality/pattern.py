"""The law of causality, seen inside: no weight of attention lies on what comes later.

Above the diagonal every weight is exactly zero, in every layer and head, and each row sums to one,
to within what rounding does to it. Where a layer has a window, what lies before it is zero as well;
where a head has a sink, which takes its share and is dropped, a row sums to no more than one.
Layers are looked at as they pass, one head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.laws.causality.sight import Sight
from gpt_verify.laws.subject import Subject
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.scores import limit_max
from gpt_verify.port import ACTIVATIONS, NOT_SHOWN
from gpt_verify.reference.config import Config

Floats = NDArray[np.floating]

LAW = "causality.pattern"


def patterns(config: Config) -> list[str | None]:
    """The site of every layer."""
    return [f"h.{layer}.attn.pattern" for layer in range(config.n_layer)]


def check_pattern(subject: Subject) -> Iterator[Finding]:
    """One pass over the whole context; one finding for each layer."""
    config, length = subject.config, subject.config.n_ctx
    limit = limit_max(config.n_layer * config.n_head * length)
    seen: dict[str, Finding] = {}
    layers = {site: layer for layer, site in enumerate(patterns(config))}

    def visit(site: str, value: Floats, narrowest: object = None) -> None:
        if site.endswith(".attn.pattern"):
            seen[site] = _finding(subject, site, value, limit, config.window(layers[site]))

    subject.offers[ACTIVATIONS](subject.tokens(1, length), visit)
    for site in patterns(config):
        assert site is not None, "a pattern has a place"
        hidden = Finding(LAW, Status.NOT_EXAMINED, NOT_SHOWN, site)
        yield seen.get(site, hidden)


def row_budget(p: Precision, pattern_TS: Floats) -> Floats:
    """How far the sum of each row may be from one, [T].

    The sum of p_s = e_s / Σe is one whatever the exponentials are, except for what comes after they
    were summed: each exponential may be stored, or be computed again, and each quotient is rounded;
    those errors are p_s's own. The t roundings of Σe, and that of its reciprocal where the engine
    multiplies by that, are common to the row. What is smaller than the format's range may be lost.
    (``gpt_verify.graph.operations.pattern`` has the same terms.)
    """
    size = pattern_TS.shape[-1]
    squares_T = np.einsum("ts,ts->t", pattern_TS, pattern_TS, dtype=np.float64)
    own = (p.exp_ulp * p.u_sum + p.u) ** 2 + p.u_sum**2 + p.u**2
    variance_T = own * squares_T + (size + 1) * p.u_sum**2 + (size * p.tiny) ** 2
    return np.asarray(np.sqrt(variance_T))


@dataclass
class _Layer:
    """What is wrong with one layer.

    Attributes:
        sees: bool[T, S], of all heads.
        leaking: heads with a weight above the diagonal.
        above: index of the largest of these weights, [head, t, s], and its value.
        elements: how many there are.
        row: head and target of the row that is furthest from one.
        total, budget, score: its sum, what that may be off by, and by how much of that it is.
        skewed: for each head, which rows are beyond the limit, and in which direction.
        over_targets: every column of every head sums to one.
        before: how many weights lie before the window, and of the largest the index and the value.
    """

    sees: NDArray[np.bool_]
    leaking: list[int] = field(default_factory=list)
    above: tuple[tuple[int, int, int], float] = ((0, 0, 0), 0.0)
    elements: int = 0
    row: tuple[int, int] = (0, 0)
    total: float = 1.0
    budget: float = 0.0
    score: float = 0.0
    skewed: dict[int, NDArray[np.signedinteger]] = field(default_factory=dict)
    over_targets: bool = True
    before: tuple[int, tuple[int, int, int], float] = (0, (0, 0, 0), 0.0)


def _finding(
    subject: Subject, site: str, value: Floats, limit: float, window: int | None
) -> Finding:
    """Of one layer, [1, H, T, S]."""
    n_head, length = subject.config.n_head, subject.config.n_ctx
    if value.shape != (1, n_head, length, length):
        words = f"{site} has shape {list(value.shape)}, should be {[1, n_head, length, length]}"
        return Finding(LAW, Status.FAILED, words, site)
    layer = _Layer(np.zeros((length, length), np.bool_))
    future = np.triu(np.ones((length, length), np.bool_), 1)
    sinks = subject.config.keys.sinks
    for head, pattern_TS in enumerate(value[0]):
        _look_above(layer, head, pattern_TS, future)
        if window is not None:
            _look_before(layer, head, pattern_TS, window)
        _look_at_sums(layer, head, pattern_TS, subject.precision, limit, sinks)
    said = [
        *_above(layer, site, n_head),
        *_before(layer, site, window),
        *_sums(layer, site, limit, sinks),
    ]
    status = Status.FAILED if said else Status.PASSED
    outside = "" if window is None else f" and before a window of {window}"
    total = "to no more than 1" if sinks else "to 1"
    words = "; ".join(said) or (
        f"{n_head} heads, {length} tokens: zero above the diagonal{outside}, rows sum {total} "
        "within rounding"
    )
    details = {"above_diagonal": layer.elements, "heads": layer.leaking}
    return Finding(LAW, status, words, site, layer.score, limit, details)


def _look_above(layer: _Layer, head: int, pattern_TS: Floats, future_TS: NDArray[np.bool_]) -> None:
    leaks_TS = (pattern_TS != 0) & future_TS  # what is no number is not zero either
    if not leaks_TS.any():
        return
    layer.leaking.append(head)
    layer.sees |= leaks_TS
    layer.elements += int(leaks_TS.sum())
    size_TS = np.where(leaks_TS, np.nan_to_num(np.abs(pattern_TS), nan=np.inf), -1.0)
    target, source = (int(i) for i in np.unravel_index(int(np.argmax(size_TS)), size_TS.shape))
    if size_TS[target, source] > abs(layer.above[1]):
        layer.above = ((head, target, source), float(pattern_TS[target, source]))


def _look_before(layer: _Layer, head: int, pattern_TS: Floats, window: int) -> None:
    """Weights on what is no longer in the window."""
    past_TS = np.tri(len(pattern_TS), k=-window, dtype=np.bool_)
    sizes_TS = np.where(past_TS, np.nan_to_num(np.abs(pattern_TS), nan=np.inf), 0.0)
    if not sizes_TS.any():
        return
    target, source = (int(i) for i in np.unravel_index(int(np.argmax(sizes_TS)), sizes_TS.shape))
    count, place, largest = layer.before
    if sizes_TS[target, source] > abs(largest):
        place, largest = (head, target, source), float(pattern_TS[target, source])
    layer.before = (count + int(np.count_nonzero(sizes_TS)), place, largest)


def _look_at_sums(
    layer: _Layer, head: int, pattern_TS: Floats, p: Precision, limit: float, sinks: bool
) -> None:
    totals_T = pattern_TS.sum(axis=-1, dtype=np.float64)
    budgets_T = row_budget(p, pattern_TS)
    with np.errstate(all="ignore"):  # infinities are judged, not computed with
        off_T = np.maximum(totals_T - 1, -totals_T) if sinks else np.abs(totals_T - 1)
        scores_T = np.maximum(off_T, 0.0) / budgets_T
        sides_T = np.nan_to_num(np.sign(totals_T - 1)).astype(np.int64)
    scores_T = np.where(np.isfinite(totals_T), scores_T, np.inf)
    at = int(np.argmax(scores_T))
    if scores_T[at] > layer.score:
        layer.row, layer.score = (head, at), float(scores_T[at])
        layer.total, layer.budget = float(totals_T[at]), float(budgets_T[at])
    if scores_T[at] > limit:
        layer.skewed[head] = np.where(scores_T > limit, sides_T, 0)
    columns_S = pattern_TS.sum(axis=0, dtype=np.float64)
    allowed_S = limit * row_budget(p, np.ascontiguousarray(pattern_TS.T))
    layer.over_targets &= bool((np.abs(columns_S - 1) <= allowed_S).all())


def _above(layer: _Layer, site: str, n_head: int) -> Iterator[str]:
    """Weights on later tokens."""
    if not layer.leaking:
        return
    (head, target, source), got = layer.above
    words = Sight(layer.sees, np.ones_like(layer.sees), layers=1).describe()
    heads = ", ".join(map(str, layer.leaking))
    where = "in every head" if len(layer.leaking) == n_head else f"in head {heads} of {n_head}"
    yield (
        f"{site}[0, {head}, {target}, {source}] = {got:.9g}, should be 0 "
        f"({layer.elements} such weights); {where}, {words}"
    )


def _before(layer: _Layer, site: str, window: int | None) -> Iterator[str]:
    """Weights on tokens that have left the window."""
    count, (head, target, source), got = layer.before
    if count:
        yield (
            f"{site}[0, {head}, {target}, {source}] = {got:.9g}, should be 0: {count} weights lie "
            f"before a window of {window}"
        )


def _sums(layer: _Layer, site: str, limit: float, sinks: bool) -> Iterator[str]:
    """Rows that do not sum to one, or with a sink to more than that."""
    if not layer.skewed:
        return
    head, target = layer.row
    words = (
        f"row {site}[0, {head}, {target}] sums to {layer.total:.9g}, should be "
        f"{'between 0 and ' * sinks}1 ± {layer.budget * limit:.2g}"
    )
    if sinks:
        yield words
        return
    rows = np.stack(list(layer.skewed.values()))
    if layer.over_targets:
        words += "; every column does: the softmax is taken over the targets"
    elif not layer.leaking and (rows[:, :-1] == -1).all() and not rows[:, -1].any():
        words += "; every row is short but the last: the mask is applied after the softmax"
    yield words
