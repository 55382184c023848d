"""Rotary positions by other angles, or other channels, than the model's.

Fitted is one angle for each pair of channels, by which it turns from one position to the next: off
queries or keys where a port shows them turned, and off all scores of a layer where it does not.
Angles that fall as the powers of a base are said to be those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.attended import visible
from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, listed, said
from gpt_verify.graph.call import Call
from gpt_verify.graph.heads import split
from gpt_verify.graph.operations.rope import rope_of
from gpt_verify.reference.architecture import Rope
from gpt_verify.reference.ops import heads_of, side_by_side
from gpt_verify.reference.positions import frequencies, pairs, rotate

#: Angles nearer to those of a formula than this, relative to the largest, are the formula's.
NEAR = 1e-6
#: As a base is to a whole number that it is taken for.
ROUND = 1e-4
#: A weight of the pattern that is smaller than this is as good as none.
LEAST = 1e-30
#: Heads whose scores are read, terms of these scores (one for each pair of channels) at most, and
#: steps of the fit at each distance.
HEADS, MOST, STEPS = 8, 1 << 21, 4
ROTATED = ("attn.q_rot", "attn.k_rot")


@dataclass(frozen=True)
class _Turns:
    """How heads are turned.

    Attributes:
        rope: which channels, in which pairs.
        angles_R: of each pair, from one position to the next.
        factor: what is turned is multiplied by it.
        formula: of the angles, in words.
    """

    rope: Rope
    angles_R: Array
    factor: float
    formula: str = ""

    def __call__(self, call: Call) -> Array:
        x_HTK = heads_of(call.x, call.site.heads)
        angle_TR = np.arange(x_HTK.shape[1])[:, None] * self.angles_R
        cos, sin = (self.factor * f(angle_TR).astype(call.dtype) for f in (np.cos, np.sin))
        return side_by_side(rotate(x_HTK, cos, sin, self.rope))


def fits(e: Evidence) -> Iterator[Fitted]:
    if e.site.kind in ROTATED:
        rope = rope_of(e.config, e.site)
        made = heads_of(e.call.x, e.site.heads), heads_of(e.got, e.site.heads)
        found = [_off_vectors(one, *made) for one in _ropes(rope, e.config.head_size)]
        turns = min(found, key=lambda one: e.distance(one(e.call)))
        for act in (_by_formula(turns, e.config.head_size), turns):
            if act is not None:
                yield e.alone(act, _words(act, rope))
    elif not set(map(e.beside, ROTATED)) & e.shown.keys():
        yield from _hidden(e)


def _ropes(rope: Rope, head_size: int) -> Iterator[Rope]:
    """Channels that may be turned, and which of them together."""
    for size in dict.fromkeys((rope.size, head_size, head_size // 2, head_size // 4)):
        for neighbours in (rope.pairs, not rope.pairs):
            if size >= 2 and size % 2 == 0:
                yield replace(rope, size=size, pairs=neighbours)


def _complex(x_HTK: Array, rope: Rope) -> Array:
    """The pairs of channels as complex numbers, [H, T, R/2]."""
    a, b = pairs(rope)
    return x_HTK[..., a] + 1j * x_HTK[..., b]


def _off_vectors(rope: Rope, x_HTK: Array, got_HTK: Array) -> _Turns:
    """The angles are those of the ratio at each position, unwrapped by doubling the distance."""
    x, got = (_complex(value, rope) for value in (x_HTK, got_HTK))
    ratio_TR = np.sum(got * x.conj(), axis=0)  # weighted by |x|²
    weight_TR = np.sum(np.abs(x) ** 2, axis=0)
    angles_R, length = np.angle(ratio_TR[1] * ratio_TR[0].conj()), len(ratio_TR)
    for end in _doubling(length):
        t = np.arange(end, dtype=np.float64)[:, None]
        off_TR = np.angle(ratio_TR[:end] * np.exp(-1j * t * angles_R))
        angles_R = angles_R + _slope(t, off_TR, weight_TR[:end])
    turned = ratio_TR * np.exp(-1j * np.arange(length)[:, None] * angles_R)
    return _Turns(rope, angles_R, float(turned.real.sum() / weight_TR.sum()))


def _slope(t: Array, off_TR: Array, weight_TR: Array) -> Array:
    """Of the line through nothing at position 0."""
    made: Array = np.sum(weight_TR * t * off_TR, axis=0) / np.sum(weight_TR * t * t, axis=0)
    return made


def _doubling(length: int) -> Iterator[int]:
    """2, 4, 8 … and the whole, twice."""
    end = 2
    while end < length:
        yield end
        end *= 2
    yield from (length, length)


def _hidden(e: Evidence) -> Iterator[Fitted]:
    """Queries and keys are turned where nothing shows them: by the angles that all scores have.

    Of a pattern the logarithms are scores, less a number of each target.
    """
    names, scores = [e.beside(kind) for kind in ROTATED], e.beside("attn.scores")
    if None in names or e.got.shape[-1] < 3 or scores is None:
        return
    if e.site.name == scores:
        got, seen = e.got, visible(e)
    elif e.site.kind == "attn.pattern" and scores not in e.shown and e.config.keys.cap is None:
        seen = np.tri(*e.got.shape[-2:], dtype=np.bool_) & (e.got > LEAST)
        got = np.log(np.where(seen, e.got, 1.0))
    else:
        return
    rope = rope_of(e.config, e.at(str(names[0])).site)
    before = [e.call.values[e.at(str(name)).site.inputs[0]] for name in names]
    q, k = split(e.config, before[0], "q"), split(e.config, before[1], "k")
    scale = e.config.keys.scale or q.shape[-1] ** -0.5
    found: list[tuple[float, _Turns]] = []
    for one in _ropes(rope, e.config.head_size):
        fit = _Scores(one, q, k, got / scale, seen, e.site.name != scores)
        found.append(fit.best())
    _, turns = min(found, key=lambda one: one[0])
    for act in (_by_formula(turns, e.config.head_size), turns):
        if act is not None:
            yield Fitted(dict.fromkeys(map(str, names), act), _words(act, rope))


class _Scores:
    """Angles off the scores: Σ over pairs of Re(q k̄ e^{iθ(t - s)}), and what is not turned.

    Args:
        rope: which channels.
        q, k: [H, T, K], before they are turned.
        got: the products, [H, T, S].
        seen: which of them are not masked.
        offset: a number of each target is added to its scores.
    """

    def __init__(
        self, rope: Rope, q: Array, k: Array, got: Array, seen: NDArray[np.bool_], offset: bool
    ) -> None:
        self._rope = rope
        q, k, got = (some[:HEADS] for some in (q, k, got))
        seen = seen[:HEADS]
        count = max(2, MOST // (len(q) * k.shape[1] * (rope.size // 2)))
        targets = np.unique(np.linspace(0, q.shape[1] - 1, count).astype(int))
        self._distance = (targets[:, None] - np.arange(k.shape[1]))[None]
        rest = q[:, targets, rope.size :] @ k[..., rope.size :].swapaxes(-1, -2)
        self._left, self._seen = got[:, targets] - rest, seen[:, targets]
        zq, zk = _complex(q[:, targets], rope), _complex(k, rope)
        self._offset = offset
        self._terms = zq[:, :, None] * zk[:, None].conj()  # [H, t, S, R/2]

    def best(self) -> tuple[float, _Turns]:
        """What they leave of the products, and the angles."""
        factor, angles_R = self._factor(), np.zeros(self._rope.size // 2)
        # Sources beside the target, less the target itself: there an offset cancels.
        first, itself = (self._seen & (self._distance == n) for n in (1, 0))
        rows = first.any(axis=-1) & itself.any(axis=-1)
        of_first, of_itself = first & rows[..., None], itself & rows[..., None]
        terms = factor * self._terms[of_first]
        if len(terms) >= 2 * len(angles_R):
            left = self._left[of_first] - self._left[of_itself]
            left = left + factor * self._terms[of_itself].real.sum(axis=-1)
            columns = np.concatenate([terms.real, -terms.imag], axis=-1)
            found = np.linalg.lstsq(columns, left, rcond=None)[0]
            angles_R = np.arctan2(*np.split(found, 2)[::-1])
        for end in _doubling(self._terms.shape[2]):
            near = self._seen & (self._distance < end)
            for _ in range(STEPS):
                left, slopes = self._residual(near, factor, angles_R)
                if not self._offset:
                    slopes = slopes[:, :-1]
                step = np.linalg.lstsq(slopes.T @ slopes, slopes.T @ left, rcond=None)[0]
                angles_R = angles_R + step[: len(angles_R)]
                factor += float(step[-1]) if self._offset else 0.0
        left, _ = self._residual(self._seen, factor, angles_R)
        return float(np.sum(left * left)), _Turns(self._rope, angles_R, max(factor, 0.0) ** 0.5)

    def _factor(self) -> float:
        """Of what is turned on both sides, squared: a token and itself are turned alike."""
        itself = self._seen & (self._distance == 0)
        made = self._terms[itself].real.sum(axis=-1)
        power = float(made @ made)
        if self._offset or not power:
            return 1.0
        return max(float(made @ self._left[itself]) / power, 0.0) or 1.0

    def _residual(
        self, near: NDArray[np.bool_], factor: float, angles_R: Array
    ) -> tuple[Array, Array]:
        """What is left, and its slopes by each angle and by the factor."""
        distance = np.broadcast_to(self._distance, near.shape)[..., None]
        turned = np.where(near[..., None], self._terms * np.exp(1j * distance * angles_R), 0)
        left = np.where(near, self._left, 0) - factor * turned.real.sum(axis=-1)
        slopes = np.concatenate(
            [-factor * turned.imag * distance, turned.real.sum(axis=-1, keepdims=True)], axis=-1
        )
        if self._offset:
            count = np.maximum(near.sum(axis=-1, keepdims=True), 1)
            left = left - left.sum(axis=-1, keepdims=True) / count
            slopes = slopes - slopes.sum(axis=-2, keepdims=True) / count[..., None]
        return left[near], slopes[near]


def _by_formula(turns: _Turns, head_size: int) -> _Turns | None:
    """With the angles of a base, where they are those: exact ones, which a fit cannot reach."""
    size, i = turns.rope.size, np.arange(len(turns.angles_R))
    if (base := _base(turns, size)) is None:
        return None
    # A round base for another number of channels is likelier than one that is not round.
    for of in (size, head_size):
        other = _base(turns, of)
        if other is not None and other > 1 and abs(other / round(other) - 1) < ROUND:
            base, size = float(round(other)), of
            break
    return replace(
        turns,
        angles_R=base ** (-2.0 * i / size),
        factor=float(f"{turns.factor:.6g}"),
        formula=f" ({said(base)}^(-2i/{size}))",
    )


def _base(turns: _Turns, size: int) -> float | None:
    """Of which the angles are the powers that fall as those of so many channels do."""
    angles_R = turns.angles_R
    if len(angles_R) < 2 or (angles_R <= 0).any():
        return None
    i = np.arange(len(angles_R))
    # The last angles are small, and read off the less exactly: all count by their own size.
    slope = np.sum(angles_R**2 * i * np.log(angles_R)) / np.sum(angles_R**2 * i * i)
    made = np.exp(slope * i)
    if np.abs(made - angles_R).max() > NEAR * np.abs(angles_R).max():
        return None
    return float(np.exp(-slope * size / 2))


def _words(turns: _Turns, rope: Rope) -> str:
    channels = f"{turns.rope.size} channels of each head"
    if turns.rope.pairs != rope.pairs:
        channels += ", neighbours together" if turns.rope.pairs else ", i with i + R/2"
    size = "" if (turns.rope.size, turns.rope.pairs) == (rope.size, rope.pairs) else channels + " "
    angles = listed(map(said, turns.angles_R), 4) + turns.formula
    words = f"{size}turn by {angles} from one position to the next"
    words += f", should be {listed(map(said, frequencies(rope)), 4)}"
    own = 1.0 if rope.scaling is None else rope.scaling.attention
    if abs(turns.factor - own) > 1e-5:
        words += f"; and are multiplied by {said(turns.factor)}, should be {said(own)}"
    return words


FORM = Form("angles-used", "turns queries and keys by other angles", fits)
