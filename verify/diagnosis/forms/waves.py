"""Sines and cosines of the position in the place of a table that was learned.

Fitted are which channels have the sines, how the frequencies fall, where the count begins and one
factor. A port may keep such a table in float32, whatever it computes in, and rounds its angles as
it likes: what is left of the token's row is accepted as it is where it lies within such a rounding
of the waves, at every position and in every channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from gpt_verify.diagnosis.forms.form import FEWEST, Array, Evidence, Fitted, Form, said, snapped
from gpt_verify.graph.call import Call
from gpt_verify.numerics.precision import FLOAT32

#: Vaswani et al. 2017, section 3.5.
BASE = 10000.0
#: Roundings of an angle: of the exponent, the power, the division and the product, the first of
#: which counts ln 10000 times.
ROUNDINGS = 4 + np.log(BASE)


def fits(e: Evidence) -> Iterator[Fitted]:
    if not e.site.looks_up or len(e.site.weights) < 2 or e.config.keys.table_offset:
        return
    if e.config.embed_scale is not None or len(e.got) < FEWEST or e.config.n_embd < FEWEST:
        return
    rest = e.got - e.call.w(e.site.weights[0])[e.call.tokens_T]
    for (layout, steps, begin), angle_TD in _angles(*rest.shape):
        waves = _waves(angle_TD, layout)
        factor = snapped(float(np.sum(rest * waves) / np.sum(waves * waves)))
        allowed = FLOAT32.u * abs(factor) * (1.0 + ROUNDINGS * np.abs(angle_TD))
        if (np.abs(rest - factor * waves) <= allowed).all():
            times = "" if said(factor) == "1" else f", times {said(factor)}"
            words = f"{layout}, {steps}, positions from {begin}{times}"
            yield e.alone(_Adding(rest), f"sines and cosines in place of wpe: {words}")
            return


def _angles(length: int, width: int) -> Iterator[tuple[tuple[str, str, int], Array]]:
    """The angle of each position and channel, by every convention."""
    half = width // 2
    each = {
        "sine and cosine in turn": np.arange(width) // 2,
        "cosine and sine in turn": np.arange(width) // 2,
        "sines first": np.arange(width) % half if width % 2 == 0 else np.arange(width) // 2,
        "cosines first": np.arange(width) % half if width % 2 == 0 else np.arange(width) // 2,
    }
    rates = {
        "10000^(-2i/D)": BASE ** (-2.0 * np.arange(half + 1) / width),
        "10000^(-i/(D/2 - 1))": BASE ** (-np.arange(half + 1) / max(1, half - 1)),
    }
    for layout, steps, begin in product(each, rates, (0, 1)):
        at_T = np.arange(begin, begin + length, dtype=np.float64)
        yield (layout, steps, begin), at_T[:, None] * rates[steps][each[layout]]


def _waves(angle_TD: Array, layout: str) -> Array:
    at = np.arange(angle_TD.shape[1])
    first = at % 2 == 0 if layout.endswith("in turn") else at < len(at) // 2
    sines = first if layout.startswith("sine") else ~first
    return np.where(sines, np.sin(angle_TD), np.cos(angle_TD))


class _Adding:
    """The token's row and what was found beside it."""

    def __init__(self, rest_TD: Array) -> None:
        self._rest_TD = rest_TD

    def __call__(self, call: Call) -> Array:
        made: Array = call.w(call.site.weights[0])[call.tokens_T] + self._rest_TD.astype(call.dtype)
        return made


FORM = Form("positions-waves", "adds sines and cosines of the position", fits)
