"""Prefetching changes nothing but who waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gpt_verify.process.prefetch import prefetch


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_same_items_in_the_same_order(depth: int) -> None:
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))


def test_nothing_is_something() -> None:
    assert list(prefetch(iter([None, None]), 1)) == [None, None]
    assert list(prefetch(iter([]), 1)) == []


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        for item in prefetch(items(), 8):
            got.append(item)
    assert got == [0, 1, 2]


def test_no_thread_is_left_and_no_more_is_read_than_fits() -> None:
    read = []

    def items() -> Iterator[int]:
        for i in range(1000):
            read.append(i)
            yield i

    before = threading.active_count()
    fetched = prefetch(items(), 4)
    assert next(fetched) == 0
    fetched.close()  # type: ignore[attr-defined]  # a generator is closed like this
    assert threading.active_count() == before
    assert len(read) <= 7
