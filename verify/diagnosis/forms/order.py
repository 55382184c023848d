"""An order of channels or positions, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import listed

Order = NDArray[np.intp]


def described(order: Order, unit: str, sizes: tuple[int, ...] = ()) -> str:
    """``channels reversed``, ``heads in the order 1 0 2 3``.

    Args:
        order: for each place, which of the correct ones stands there.
        unit: what is ordered.
        sizes: of blocks that may be moved whole: channels of a head, of a part.
    """
    n = len(order)
    same = np.arange(n)
    if np.array_equal(order, same[::-1]):
        return f"{unit}s reversed"
    for by in (1, 2, -1, -2, n // 2):
        if np.array_equal(order, np.roll(same, by)):
            return (
                f"{unit}s moved on by {by}" if abs(by) <= 2 else f"halves of the {unit}s exchanged"
            )
    if n > 2 and np.array_equal(order[1:], same[:-1]):
        return f"each {unit} is that of the one before"
    if n > 2 and np.array_equal(order[:-1], same[1:]):
        return f"each {unit} is that of the one after"
    for rows in range(2, n):
        if n % rows == 0 and np.array_equal(order, same.reshape(rows, -1).T.ravel()):
            laid = f"[{n // rows}, {rows}] where it should be [{rows}, {n // rows}]"
            return f"{unit}s laid out as {laid}"
    for size in sizes:
        if 1 < size < n and n % size == 0 and (words := _blocks(order, size, unit)):
            return words
    moved = np.flatnonzero(order != same)
    if len(moved) <= 4:
        return ", ".join(f"{unit} {at} is that of {order[at]}" for at in moved)
    return f"{unit}s in the order {listed(order)}"


def _blocks(order: Order, size: int, unit: str) -> str:
    blocks = order.reshape(-1, size)
    firsts, within = blocks[:, 0] // size, blocks % size
    whole = (blocks // size == firsts[:, None]).all()
    if whole and (within == np.arange(size)).all():
        return f"blocks of {size} {unit}s in the order {listed(firsts)}"
    if whole and (firsts == np.arange(len(firsts))).all() and (within == within[0]).all():
        return f"within each {size} {unit}s, those in the order {listed(within[0])}"
    return ""
