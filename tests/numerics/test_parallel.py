"""What is handed to another thread, and what is not worth it."""

from __future__ import annotations

from threading import get_ident

from gpt_verify.numerics.parallel import WORTH, alone, both


def test_much_work_is_shared() -> None:
    other, mine = both(get_ident, get_ident, WORTH)
    assert mine == get_ident() != other


def test_little_is_done_by_the_caller() -> None:
    assert both(get_ident, get_ident, WORTH - 1) == (get_ident(), get_ident())


def test_one_of_as_many_processes_as_cores_shares_nothing() -> None:
    with alone():
        assert both(get_ident, get_ident, WORTH) == (get_ident(), get_ident())
