"""What the reference gives when ``vocab.bpe`` is applied otherwise than it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from heapq import heappop

from gpt_verify.reference.bpe import BPE

Merges = Sequence[tuple[str, str]]


class OneByOne(BPE):
    """Looks for the earliest merge anew after each single one, as ``tokenizers`` does; the original
    joins every occurrence of it first.

    The two part only where a merge makes an earlier one possible, which no ``vocab.bpe`` that was
    learnt does: in a wrong order.
    """

    @staticmethod
    def _turn(waiting: list[tuple[int, int]]) -> tuple[int, list[int]]:
        earliest, at = heappop(waiting)
        return earliest, [at]


def with_merges(
    change: Callable[[Merges], Merges], table: type[BPE] = BPE
) -> Callable[[BPE, str], list[int]]:
    """Other lines of ``vocab.bpe``; the table is built for the first text of a vocabulary."""

    @lru_cache(maxsize=1)
    def built(bpe: BPE) -> BPE:
        return table(bpe.encoder, change(bpe.merges))

    return lambda bpe, text: built(bpe).encode(text)
