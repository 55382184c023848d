"""The forward pass as a loop over the table of sites: of one sequence or of several side by side,
with the reference's operations or with some of them overridden, in float64 or as a port rounds.

A large model's time goes into reading its weights. Runs that differ in their tokens, their noise or
in a small step of the weights share that. An override sees what the operation sees, and what was
computed before it, so that wrong wiring can be written as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Array, Call, Override
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

#: The operation and its value as computed → the value that is used from there on.
Alter = Callable[[Call, Array], Array]


def right(call: Call) -> Array:
    """The value that the reference's operation makes."""
    return made_by(call.site).value(call)


def run(
    lookup: Callable[[str], Array],
    config: Config,
    tokens_T: NDArray[np.integer],
    overrides: Mapping[str, Override],
    dtype: type[np.floating] = np.float64,
    start: Mapping[str, Array] | None = None,
    keep: int | None = 25,
    rows: int = 1,
    alter: Alter = lambda call, value: value,
) -> Iterator[tuple[str, Array]]:
    """The forward pass; yields ``(site, value)`` in the order of computation.

    Args:
        lookup: checkpoint name → tensor.
        config: sizes.
        tokens_T: one sequence; of several rows of one length, one after the other.
        overrides: site → what it becomes.
        dtype: what the arithmetic is done in.
        start: sites that are known already, from the first on without a gap; they are not computed
            and not yielded. What lies before the first override need not be computed twice.
        keep: how many sites an override can look back, beside those that are still to be read: by
            default this block and the one before; None for all.
        rows: how many sequences there are.
        alter: what is done to each value before anything reads it.
    """
    values: dict[str, Array] = dict(start or {})
    gone: list[str] = []
    for site, needed_until_now in _in_turn(config, keep):
        gone += needed_until_now
        if start is not None and site.name in start:
            continue
        call = Call(config, site, tokens_T, values, lookup, dtype, rows)
        value = alter(call, np.asarray(overrides.get(site.name, right)(call), dtype))
        values[site.name] = value
        yield site.name, value
        for name in gone:
            values.pop(name, None)
        gone.clear()


@cache
def _in_turn(config: Config, keep: int | None) -> list[tuple[Site, tuple[str, ...]]]:
    """Every site, and the sites that nobody looks at once it is computed."""
    order = list(sites(config).values())
    last_read = {name: i for i, site in enumerate(order) for name in site.inputs}
    gone: list[list[str]] = [[] for _ in order]
    for i, site in enumerate(order):
        last = max(last_read.get(site.name, 0), len(order) if keep is None else i + keep)
        if last < len(order):
            gone[last].append(site.name)
    return [(site, tuple(names)) for site, names in zip(order, gone, strict=True)]


def side_by_side(
    config: Config,
    weights: DeclaredWeights,
    tokens_RT: NDArray[np.integer],
    dtype: type[np.floating] = np.float64,
    alter: Alter = lambda call, value: value,
) -> Iterator[tuple[str, Array]]:
    """Every site of every row, in the order of computation.

    Values are [R·T, features], the rows one below the other; scores and patterns are
    [R·H, T, S]. ``of_row`` takes one row out of them.

    Args:
        config: sizes.
        weights: the tensors, in float32 or widened to float64.
        tokens_RT: int[R, T].
        dtype: of the arithmetic, float64 or float32.
        alter: what is done to each value before anything reads it.
    """
    lookup = (Widened(weights) if dtype is np.float64 else weights).__getitem__
    rows = len(tokens_RT)
    return run(lookup, config, tokens_RT.reshape(-1), {}, dtype, keep=0, rows=rows, alter=alter)


def of_row(value: Array, row: int, rows: int) -> Array:
    """One row's part of a value: [T, features], or [H, T, S]."""
    part: Array = value.reshape(rows, -1, *value.shape[1:])[row]
    return part
