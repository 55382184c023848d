"""The oracle's runs, kept for the next port that is judged on the same tokens.

Every port of a run meets the same inputs, and in the same precision the oracle has the same to say
about them. Its runs are most of what the cascaded comparison costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from gpt_verify.numerics.draws import draws
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

#: A site, its value in float64, and its values in the port's precision, one for each draw.
Pair = tuple[str, NDArray[np.floating], NDArray[np.floating]]
#: What the runs of all inputs may take. The default checkpoint's take 0.4 GB.
ROOM_BYTES = 512 << 20


class Recording:
    """Runs by their tokens; one that has no room is made again whenever it is asked for.

    Args:
        room_bytes: for all runs together.
    """

    def __init__(self, room_bytes: int = ROOM_BYTES) -> None:
        self._room_bytes = room_bytes
        self._runs: dict[bytes, _Run] = {}

    def of(
        self, config: Config, tokens_T: NDArray[np.integer], make: Callable[[], Iterator[Pair]]
    ) -> Iterator[Pair]:
        """The run on these tokens from its first site on; ``make`` starts it where it is new."""
        key = np.ascontiguousarray(tokens_T, np.int64).tobytes()
        if key not in self._runs:
            size = run_bytes(config, len(tokens_T))
            if size > self._room_bytes:
                return make()
            self._room_bytes -= size
            self._runs[key] = _Run(make())
        return iter(self._runs[key])


class _Run:
    """A run, kept as far as somebody has read; whoever comes further reads on."""

    def __init__(self, rest: Iterator[Pair]) -> None:
        self._rest = rest
        self._pairs: list[Pair] = []

    def __iter__(self) -> Iterator[Pair]:
        at = 0
        while True:
            if at == len(self._pairs):
                pair = next(self._rest, None)
                if pair is None:
                    return
                for value in pair[1:]:
                    value.setflags(write=False)  # the next reader's as well
                self._pairs.append(pair)
            yield self._pairs[at]
            at += 1


def run_bytes(config: Config, length: int, per_element: int | None = None) -> int:
    """What all runs of one sequence take: all sites but the logits, in float64 and in float32; or
    in a format of so many bytes."""
    count = draws(length, length * parameter_count(config))
    d, per_element = config.n_embd, per_element or 8 + 4 * count
    per_layer = length * 18 * d + 2 * config.n_head * length**2
    return per_element * (config.n_layer * per_layer + 2 * length * d)
