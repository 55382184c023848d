"""Which memory the two ends of a port read, found by writing to it and undoing that.

Names, addresses and equal values prove nothing about what is computed: a head can hold a
transposed copy in a buffer that nobody lists. Rows of the table are overwritten, and the logits
must show it at both ends, in those tokens and in no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import ToolError
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.laws.table_rows import TableRows, row_tiles
from gpt_verify.numerics.two_tables import OtherLookup, last_state
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import Floats, Parameter
from gpt_verify.reference.ops import soft_cap, unembed

Tokens = NDArray[np.int64]
Bits = NDArray[np.bool_]
#: Overwrites some rows with zeros and others with one row of signs, and returns the logits.
Write = Callable[[Tokens, Tokens], Floats]

#: Positions of the inputs, and how many of the overwritten tokens are looked up; of a copy of a
#: large model, of which there are many.
_LENGTH, _LOOKED_UP = 8, 3
_FEW = 2, 1


@dataclass
class Ends:
    """What the writes showed.

    Attributes:
        problems: what an end does not read, or more than it should; each in words.
        faults: of each, the mistake that it shows; None where that is open.
        unseen: ends of which these weights show nothing, because the logits do not depend on them.
    """

    problems: list[str] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def add(self, problem: str, fault: str | None = None) -> None:
        self.problems.append(problem)
        self.faults.append(fault)


def ends_of(
    subject: Subject,
    parameter: Parameter,
    transposed: bool,
    restore: bool = True,
    copied: bool = False,
) -> Ends:
    """Overwrite rows of a table and see which ends of the port follow.

    Args:
        subject: the port, and what it is judged against.
        parameter: the table; it can be written to.
        transposed: it is [D, V].
        restore: afterwards every bit is as before, and that is tested.
        copied: the port is one of many copies.

    Raises:
        NotExamined: the logits are not finite, or not the same twice.
    """
    few = copied and subject.large
    trial = _Trial(subject, parameter, transposed, restore, few)
    return trial.only_token() if subject.config.n_vocab == 1 else trial.many_tokens()


class _Trial:
    """One table, overwritten."""

    def __init__(
        self, subject: Subject, parameter: Parameter, transposed: bool, restore: bool, few: bool
    ) -> None:
        self._subject, self._port, self._parameter = subject, subject.port, parameter
        self._transposed, self._restore = transposed, restore
        self._shape_VD = (subject.config.n_vocab, subject.config.n_embd)
        length, self._looked_up = _FEW if few else (_LENGTH, _LOOKED_UP)
        self._length = min(subject.config.n_ctx, length)
        self._signs_D = self._signs()
        self._ends = Ends()

    def many_tokens(self) -> Ends:
        """Half of the rows are overwritten, most of them with zeros, a few with signs. The inputs
        consist of the other half; but one row of the batch for each of those few ends in it."""
        rng = self._subject.rng(*b"ends")
        order = rng.permutation(self._shape_VD[0])
        half = self._shape_VD[0] // 2
        written, kept = order[:half], np.sort(order[half:])
        if half > 1:
            few = min(half - 1, self._looked_up)
            zeroed, signed = np.sort(written[few:]), written[:few]
            steps = [(zeroed, signed)]
        else:  # one row, in two steps
            zeroed = signed = written
            steps = [(written, written[:0]), (written[:0], written)]
        tokens = np.tile(rng.choice(kept, self._length), (1 + len(signed), 1)).astype(np.int64)
        tokens[1:, -1] = signed

        before = self._logits(tokens)
        with self._overwriting(tokens, before, np.sort(written)) as write:
            after = [write(*step) for step in steps]
        self._head(before[0][:, zeroed], [a[0][:, zeroed] for a in after], zeroed)
        for a in after:
            if not self._others(before[0][:, kept], a[0][:, kept], kept, tokens[0]):
                break
        for row, tokens_T in enumerate(tokens[1:], start=1):
            if not any(_different(a[row, -1, kept], before[row, -1, kept]).any() for a in after):
                self._lookup(tokens_T, kept, before[row, -1, kept])
        self._ends.unseen = list(dict.fromkeys(self._ends.unseen))
        return self._ends

    def only_token(self) -> Ends:
        """No input is without the one token, so both ends see every write.

        The head: of a row of zeros every logit is exactly zero. The lookup: where it does not
        follow, negating the row negates the logits, exactly.
        """
        tokens = np.zeros((1, self._length), np.int64)
        row, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
        before = self._logits(tokens)
        with self._overwriting(tokens, before, row) as write:
            zero, plus = write(row, none), write(none, row)
            self._signs_D *= -1
            minus = write(none, row)
        if zero.any():
            t = int(np.argmax(zero[0, :, 0] != 0))
            self._ends.add(
                f"the only row of {self._parameter.name} was overwritten with zeros, and "
                f"logits[{t}, 0] = {zero[0, t, 0]:.9g}, should be 0: the head reads other memory",
                "tying-head-hidden",
            )
        elif not (before.any() or plus.any()):
            self._ends.unseen.append("the head (every logit is zero)")
        if (minus == -plus).all():
            wte_VD = np.asarray(self._subject.weights["wte"], np.float64)
            x_TD = [self._state(tokens[0], 0, new_D) for new_D in (-self._signs_D, self._signs_D)]
            moves = unembed(x_TD[0] - x_TD[1], wte_VD)
            self._not_followed(self._subject.floors(moves, tokens[0]), 0, self._length - 1)
        return self._ends

    def _head(self, before_TZ: Floats, after: list[Floats], zeroed: Tokens) -> None:
        """A logit that was not zero must follow: of a row of zeros it is exactly zero."""
        moved = np.any([_different(after_TZ, before_TZ) for after_TZ in after], axis=0)
        still = (before_TZ != 0) & ~moved
        if not (moved.any() or still.any()):
            self._ends.unseen.append("the head (every logit is zero)")
        elif still.any():
            t, z = np.argwhere(still)[0]
            # A part is rows that stayed where others followed.
            whole = None if moved[:, still.any(axis=0)].any() else "tying-head-hidden"
            fault = "tying-head-part-hidden" if whole and moved.any() else whole
            self._ends.add(
                f"{int(still.any(axis=0).sum())} of {len(zeroed)} rows of {self._parameter.name} "
                f"were overwritten without a trace in their logits (logits[{t}, {zeroed[z]}] = "
                f"{before_TZ[t, z]:.9g} as before): the head reads other memory, a copy or a "
                "buffer",
                fault,
            )

    def _others(self, before_TK: Floats, after_TK: Floats, kept: Tokens, tokens_T: Tokens) -> bool:
        """Not one bit of other tokens' logits, up to a constant for each position (softmax is blind
        to it, and a port that centres its logits adds one)."""
        if not _different(before_TK, after_TK).any():
            return True
        moves = after_TK.astype(np.float64) - before_TK
        with np.errstate(invalid="ignore"):
            apart = moves - moves.mean(axis=-1, keepdims=True)
        if self._subject.floors(apart, tokens_T) <= LIMIT_FLOORS:
            return True
        t, k = np.unravel_index(int(np.argmax(np.abs(apart))), apart.shape)
        self._ends.add(
            f"logits[{t}, {kept[k]}] = {after_TK[t, k]:.9g}, should be {before_TK[t, k]:.9g}: "
            f"only rows of other tokens were overwritten in {self._parameter.name}"
        )
        return False

    def _lookup(self, tokens_T: Tokens, kept: Tokens, before_K: Floats) -> None:
        """Nothing moved: the reference says whether anything should have. Of a port that computes
        something else nobody knows why it did not."""
        at, token = len(tokens_T) - 1, int(tokens_T[-1])
        (old_D,) = self._subject.weights.rows("wte", slice(token, token + 1))
        x_TD = [self._state(tokens_T, token, new_D) for new_D in (old_D, self._signs_D)]
        moves = self._unembedded(x_TD[1][at:] - x_TD[0][at:], kept)
        off = before_K - self._unembedded(x_TD[0][at:], kept)
        off -= off.mean(axis=-1, keepdims=True)
        # Apart from a constant, one logit is always right.
        told = len(kept) > 1 and self._subject.floors(off, tokens_T, first=at) <= LIMIT_FLOORS
        fault = "tying-lookup-hidden" if told else None
        self._not_followed(self._subject.floors(moves, tokens_T, first=at), token, at, fault)

    def _not_followed(
        self, floors: float, token: int, position: int, fault: str | None = None
    ) -> None:
        if floors <= LIMIT_FLOORS:
            self._ends.unseen.append("the lookup (no logit depends on what is embedded)")
            return
        self._ends.add(
            f"row {token} of {self._parameter.name} was overwritten, and token {token} at position "
            f"{position} is embedded as before (the reference moves by {floors:.3g} noise floors): "
            "the lookup reads other memory",
            fault,
        )

    def _state(self, tokens_T: Tokens, token: int, new_D: Floats) -> Floats:
        # The rows that are looked up, and their numbers among themselves, stand for the table.
        ids, renumbered_T = np.unique(tokens_T, return_inverse=True)
        rows_RD = np.where((ids == token)[:, None], new_D, self._subject.weights.rows("wte", ids))
        other = OtherLookup(Widened(self._subject.weights), rows_RD)
        return last_state(other, self._subject.config, renumbered_T)

    def _unembedded(self, x_TD: Floats, kept: Tokens) -> Floats:
        """Logits of these tokens: rows are widened a tile at a time."""
        weights = self._subject.weights
        tiles = row_tiles((len(kept), self._shape_VD[1]))
        products = [
            unembed(x_TD, weights.rows("wte", kept[tile]).astype(np.float64)) for tile in tiles
        ]
        logits = np.concatenate(products, axis=-1)
        keys = self._subject.config.keys
        if keys.bias_head:
            logits += weights["lm_head/b"][kept]
        return logits if keys.cap_logits is None else soft_cap(logits, keys.cap_logits)

    def _signs(self) -> Floats:
        """A row that no table has: ± the largest power of two in either table, so that a sum with
        a position is another direction, and every format holds it."""
        memo, key = self._subject.weights.memo, "largest of the tables"
        if key not in memo:
            memo[key] = self._largest()
        largest = memo[key]
        scale = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 1.0
        signs_D = self._subject.rng(*b"signs").choice([-1.0, 1.0], self._shape_VD[1])
        return np.asarray(scale * signs_D, np.float32)

    def _largest(self) -> float:
        """The largest magnitude in either table."""
        weights, config = self._subject.weights, self._subject.config
        tiles = (
            weights.rows(name, rows)
            for name, n_rows in (("wte", config.n_vocab), ("wpe", config.n_ctx))
            if name == "wte" or config.keys.table
            for rows in row_tiles((n_rows, config.n_embd))
        )
        return max(float(max(tile.max(), -tile.min())) for tile in tiles)

    def _run(self, tokens: Tokens) -> Floats:
        """The first row, which holds no token that is overwritten, comes from a call of its own:
        rows that depend on each other are no matter of tying."""
        made = np.array(self._port.logits(tokens))
        if len(tokens) > 1:
            made[0] = self._port.logits(tokens[:1])[0]
        return made

    def _logits(self, tokens: Tokens) -> Floats:
        value = self._run(tokens)
        if not np.isfinite(value).all():
            raise NotExamined("its logits are not finite")
        return value

    @contextmanager
    def _overwriting(self, tokens: Tokens, before: Floats, rows: Tokens) -> Iterator[Write]:
        """Write as often as you like to these rows; afterwards every bit is as before."""
        table = TableRows(self._parameter, self._shape_VD, self._transposed)
        if self._restore:
            original, digest = table.read(rows), table.digest()

        def overwrite(zeroed: Tokens, signed: Tokens) -> Floats:
            table.write(zeroed, np.zeros((), np.float32))
            table.write(signed, self._signs_D)
            return self._run(tokens)

        try:
            yield overwrite
        finally:
            if self._restore:
                table.write(rows, original)
        if not self._restore:
            return
        if table.digest() != digest:
            raise ToolError(
                f"{self._port.name}: {self._parameter.name} does not hold what it held before it "
                "was written to"
            )
        if not same_bits(before, self._run(tokens)):
            raise NotExamined("its logits are not the same twice, so that no write shows in them")


def _different(a: Floats, b: Floats) -> Bits:
    """Element by element, whether one bit differs: -0 is not 0, and NaN is the same NaN only."""
    bits = np.dtype(f"u{a.dtype.itemsize}")
    different: Bits = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
    return different
