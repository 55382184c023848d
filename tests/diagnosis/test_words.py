"""What the forms of attention and of orders say of masks and orders that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt_verify.diagnosis.forms import order, seen

T, S = np.mgrid[:6, :6]
CAUSAL = S <= T
NOBODY = np.zeros(6, np.bool_)


def but(seen_TS: Any, *pairs: tuple[int, int]) -> Any:
    """The same, with these pairs turned over."""
    seen_TS = seen_TS.copy()
    for pair in pairs:
        seen_TS[pair] = ~seen_TS[pair]
    return seen_TS


@pytest.mark.parametrize(
    ("seen_TS", "words"),
    [
        (CAUSAL | True, "every target sees every source"),
        (CAUSAL & False, "targets 0, 1, 2, 3 … see none"),
        (S < T, "target t sees sources 0 … t-1 (itself hidden); target 0 sees none"),
        (
            but(S < T, (0, 0)),
            "target t sees sources 0 … t-1 (itself hidden); the first sees itself",
        ),
        (S > T, "target t sees sources t+1 … the last (only the future); target 5 sees none"),
        (S == T, "target t sees source t alone"),
        (CAUSAL & (T - S < 2), "target t sees sources t-1 … t"),
        (CAUSAL & (T - S != 1), "target t sees sources 0 … t but t-1"),
        (S != T, "target t sees sources 0 … the last but itself"),
        (CAUSAL & ((T - S) % 5 == 0), "target t sees sources 0 … t but t-4, t-3, t-2, t-1"),
        (CAUSAL & (T // 3 == S // 3), "target t sees no more than its chunk of 3"),
        (T // 3 == S // 3, "target t sees its whole chunk of 3, and nothing else"),
        (S // 3 <= T // 3, "target t sees all of its chunk of 3, the future in it too"),
        (CAUSAL | (S == 4), "sources 0, 4 are seen by all, the future too"),
        (CAUSAL | (S < 3), "sources 0 … 2 are seen by all, the future too"),
        (CAUSAL & (S != 2), "source 2 is seen by nobody"),
        (CAUSAL & ~((S > 0) & (S < 4)), "sources 1 … 3 are seen by nobody"),
        (but(CAUSAL, (2, 4), (3, 1)), "target 2 sees 4, 3 does not see 1"),
        (
            but(CAUSAL, (1, 0), (2, 1), (3, 1), (4, 0), (5, 2)),
            "target 1 does not see 0, 2 does not see 1, 3 does not see 1, 4 does not see 0, "
            "and 1 pairs more",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_sees_whom(seen_TS: Any, words: str) -> None:
    assert seen.described(np.asarray(seen_TS, np.bool_)) == words


def test_who_looks_at_all_alike() -> None:
    alike_T = NOBODY.copy()
    alike_T[0] = True
    assert (
        seen.described(S < T, alike_T)
        == "target t sees sources 0 … t-1 (itself hidden); target 0 sees none, and all sources "
        "count alike (a plain mean)"
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (np.arange(12)[::-1], "channels reversed"),
        (np.roll(np.arange(12), 1), "channels moved on by 1"),
        (np.maximum(np.arange(12) - 1, 0), "each channel is that of the one before"),
        (np.minimum(np.arange(12) + 1, 11), "each channel is that of the one after"),
        (np.roll(np.arange(12), -2), "channels moved on by -2"),
        (np.roll(np.arange(12), 6), "halves of the channels exchanged"),
        (
            np.arange(12).reshape(3, 4).T.ravel(),
            "channels laid out as [4, 3] where it should be [3, 4]",
        ),
        (
            np.arange(12).reshape(3, 4)[[1, 0, 2]].ravel(),
            "blocks of 4 channels in the order 1 0 2",
        ),
        (
            np.arange(12).reshape(3, 4)[:, [0, 2, 3, 1]].ravel(),
            "within each 4 channels, those in the order 0 2 3 1",
        ),
        (np.array([0, 2, 1, *range(3, 12)]), "channel 1 is that of 2, channel 2 is that of 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_order(found: Any, words: str) -> None:
    assert order.described(np.asarray(found), "channel", (4,)) == words
