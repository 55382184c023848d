"""What the reference gives when ``vocab.bpe`` is applied otherwise than it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

from reference.bpe import BPE

Merges = Sequence[tuple[str, str]]


class OneByOne(BPE):
    """Looks for the earliest merge anew after each single one, as ``tokenizers`` does; the original
    joins every occurrence of it first.

    The two part only where a merge makes an earlier one possible, which no ``vocab.bpe`` that was
    learnt does: in a wrong order.
    """

    def _merge(self, word: list[str]) -> list[str]:
        after, before = [*range(1, len(word) + 1)], [*range(-1, len(word) - 1)]

        def rank(at: int) -> int | None:
            follower = after[at]
            return self._rank.get((word[at], word[follower])) if follower < len(word) else None

        waiting = [(r, at) for at in range(len(word)) if (r := rank(at)) is not None]
        heapify(waiting)
        while waiting:
            earliest, at = heappop(waiting)
            if not word[at] or rank(at) != earliest:
                continue  # another merge has taken one of the two
            taken = after[at]
            word[at] += word[taken]
            word[taken] = ""
            after[at] = after[taken]
            if after[at] < len(word):
                before[after[at]] = at
            for changed in (before[at], at):
                if changed >= 0 and (r := rank(changed)) is not None:
                    heappush(waiting, (r, changed))
        return [symbol for symbol in word if symbol]


def with_merges(
    change: Callable[[Merges], Merges], table: type[BPE] = BPE
) -> Callable[[BPE, str], list[int]]:
    """Other lines of ``vocab.bpe``; the table is built for the first text of a vocabulary."""

    @lru_cache(maxsize=1)
    def built(bpe: BPE) -> BPE:
        return table(bpe.encoder, change(bpe.merges))

    return lambda bpe, text: built(bpe).encode(text)
