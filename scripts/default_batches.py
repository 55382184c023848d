"""The training mixture of the default checkpoint: text, and exercises in copying.

A model this small, trained on text alone, hardly learns to copy, and a checkpoint that does not
copy leaves attention at long range unused: a port could get it wrong and show next to nothing.
So every batch holds sequences in which something comes back, from the first step on.

A row is ``n_ctx + 1`` tokens. The second array that is returned marks the tokens whose prediction
is scored: what nobody could foresee (the first time round) is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Scored = NDArray[np.bool_]


#: Rows of each kind in a batch.
PROSE, PROSE_WITH_NAMES, PHRASES, REPEATED = 8, 1, 1, 2
MOST_PHRASES = 20
#: Shortest and longest segment that is repeated.
PERIODS = (4, 125)


class Batches:
    """Draws batches from one stream of token ids.

    Args:
        text: the stream, int[N].
        n_vocab: number of tokens.
        n_ctx: tokens of a row, less the one that is only predicted.
        seed: of the draws.
    """

    def __init__(self, text: Ids, n_vocab: int, n_ctx: int, seed: int) -> None:
        self.text, self.n_vocab, self.length = text, n_vocab, n_ctx + 1
        self.rng = np.random.default_rng(seed)

    def draw(self) -> tuple[Ids, Scored]:
        """The next batch."""
        rows = [self.prose() for _ in range(PROSE)]
        rows += [self.prose_with_names() for _ in range(PROSE_WITH_NAMES)]
        rows += [self.phrases() for _ in range(PHRASES)]
        rows += [self.repeated() for _ in range(REPEATED)]
        tokens, scored = zip(*rows, strict=True)
        return np.stack(tokens), np.stack(scored)

    def window(self, length: int) -> Ids:
        """A stretch of the text, from anywhere."""
        start = self.rng.integers(len(self.text) - length)
        return self.text[start : start + length].copy()

    def prose(self) -> tuple[Ids, Scored]:
        """Ordinary text; every token but the first is scored."""
        scored = np.ones(self.length, bool)
        scored[0] = False
        return self.window(self.length), scored

    def prose_with_names(self) -> tuple[Ids, Scored]:
        """Text in which a made-up word of 2 to 5 tokens comes back several times.

        Where the word will stand cannot be foreseen, so its first token is not scored, and the
        other ones are from the second occurrence on.
        """
        tokens, scored = self.prose()
        name = self.rng.integers(self.n_vocab, size=self.rng.integers(2, 6))
        slots = self.rng.permutation(self.length // len(name) - 1)[: self.rng.integers(3, 9)]
        for nth, slot in enumerate(sorted(slots)):
            at = 1 + slot * len(name)
            tokens[at : at + len(name)] = name
            scored[at : at + len(name)] = nth > 0
            scored[at] = False
        return tokens, scored

    def phrases(self) -> tuple[Ids, Scored]:
        """A few phrases of 2 to 8 random tokens, in an order drawn anew each time.

        The distance to the earlier occurrence changes all the time. With one segment repeated
        regularly the model learns to look a fixed number of tokens back, say 24, which serves
        every period that divides it; that is no copying.
        """
        lengths = self.rng.integers(2, 9, size=self.rng.integers(2, MOST_PHRASES + 1))
        phrases = [self.rng.integers(self.n_vocab, size=length) for length in lengths]
        tokens, scored, met = [], [], set()
        while len(tokens) < self.length:
            which = int(self.rng.integers(len(phrases)))
            tokens += phrases[which].tolist()
            scored += [False] + [which in met] * (len(phrases[which]) - 1)
            met.add(which)
        return np.array(tokens[: self.length], np.int64), np.array(scored[: self.length])

    def repeated(self) -> tuple[Ids, Scored]:
        """Something unrelated, then one segment over and over to the end of the row.

        The segment is random tokens, shuffled text or text; the stretch before it has a random
        length.
        """
        low, high = np.log(PERIODS)
        period = int(np.exp(self.rng.uniform(low, high)))
        kind = self.rng.random()
        if kind < 0.6:
            segment = self.rng.integers(self.n_vocab, size=period)
        else:
            segment = self.window(period)
            if kind < 0.85:
                self.rng.shuffle(segment)
        lead_in = int(self.rng.integers(self.length - 2 * period + 1))
        lead_in = min(lead_in, int(self.rng.integers(self.length // 2)))
        times = -(-(self.length - lead_in) // period)
        tokens = np.concatenate([self.window(lead_in), np.tile(segment, times)])[: self.length]
        scored = np.arange(self.length) >= lead_in + period
        # The second time round begins with a token that nothing announces.
        scored[lead_in + period] = False
        return tokens, scored
