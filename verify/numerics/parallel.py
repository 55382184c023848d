"""Two products side by side.

The oracle's BLAS is held to one thread (``gpt_verify.judging.judge.one_blas_thread``). Where two
independent products are due, the second core takes one of them; NumPy releases the interpreter for
both.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

#: Multiplications from which on the other thread is asked. Below, handing over takes longer than
#: what is handed over: this interpreter runs one thread at a time between two products.
WORTH = 1 << 22

_alone = False


def work_alone() -> None:
    """Do one thing after the other from now on: this process is one of as many as there are
    cores."""
    global _alone
    _alone = True


@contextmanager
def alone() -> Iterator[None]:
    """The same within the block."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="gpt-verify")


def both(first: Callable[[], A], second: Callable[[], B], work: int = WORTH) -> tuple[A, B]:
    """The results of two functions that share nothing; ``first`` runs in another thread.

    NumPy's error state goes along. Neither function may call ``both``: there is one other thread.

    Args:
        first, second: no arguments.
        work: multiplications, about, that each takes; one after the other where they are few.
    """
    if _alone or work < WORTH:
        return first(), second()
    other = _pool().submit(contextvars.copy_context().run, first)
    try:
        mine = second()
    finally:
        # Not left behind when the other one raises: it may hold the caller's arrays.
        other.exception()
    return other.result(), mine


def by_twos(jobs: Sequence[Callable[[], A]]) -> list[A]:
    """The results of any number of such functions, two of them at a time."""
    found: list[A] = []
    for i in range(0, len(jobs), 2):
        some = jobs[i : i + 2]
        found += both(some[0], some[1]) if len(some) == 2 else [some[0]()]
    return found
