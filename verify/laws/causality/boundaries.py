"""Where the future is cut off: boundaries at which a causal mask is known to go wrong.

A mask that is off by one, or missing, leaks at every boundary. A kernel that works in tiles leaks
at the edge of a tile, which is a power of two, or one token to either side of it, and at the end of
the context, where the last tile is not full.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

#: Sequences up to this length are cut everywhere.
SHORT = 16
#: How many tokens times parameters a port is asked for at most, before boundaries are tried in
#: sequences that are only a little longer than they need to be.
WORK = 20_000_000_000
#: Where that is so: the boundaries up to the first number are tried in sequences with that many
#: tokens and eight more, those up to the second likewise. The rest needs the whole context.
RUNGS, AFTER = (64, 256), 8


@dataclass(frozen=True)
class Cuts:
    """Boundaries that are tried in sequences of one length.

    Attributes:
        length: tokens of the sequences.
        boundaries: s in 1 … length - 1; tokens from s on are replaced.
    """

    length: int
    boundaries: tuple[int, ...]


def cuts(config: Config) -> list[Cuts]:
    """Everything that is tried, shortest sequences first; nothing for a context of one token."""
    n_ctx = config.n_ctx
    short = min(SHORT, n_ctx)
    found = [Cuts(short, tuple(range(1, short)))] if short > 1 else []
    if n_ctx == short:
        return found
    every = edges(n_ctx)
    if (len(every) + 1) * n_ctx * parameter_count(config) <= WORK:
        return [*found, Cuts(n_ctx, every)]
    return found + _ladder(n_ctx, every)


def edges(n_ctx: int) -> tuple[int, ...]:
    """Powers of two, one less and one more, and the last position."""
    powers = powers_of_two(n_ctx)
    near = {power + step for power in powers for step in (-1, 0, 1)}
    return tuple(sorted(s for s in near | {n_ctx - 1} if 0 < s < n_ctx))


def powers_of_two(below: int) -> list[int]:
    """1, 2, 4 …, all less than ``below``."""
    return [1 << k for k in range(below.bit_length()) if 1 << k < below]


def _ladder(n_ctx: int, every: tuple[int, ...]) -> list[Cuts]:
    """Each boundary in the shortest sequence that has room for it; of those far out, only the
    powers of two themselves and the last position."""
    found, begin = [], SHORT
    for rung in RUNGS:
        length = rung + AFTER
        if length >= n_ctx:
            break
        wanted = every if rung == RUNGS[0] else powers_of_two(n_ctx)
        within = tuple(s for s in wanted if begin <= s <= rung + 1)
        found.append(Cuts(length, within))
        begin = within[-1] + 1
    far = {*powers_of_two(n_ctx), n_ctx - 1}
    return [*found, Cuts(n_ctx, tuple(sorted(s for s in far if s >= begin)))]
