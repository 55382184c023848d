"""The law of the batch: a sequence has the same logits alone, in a batch, and in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Named, naming
from gpt_verify.graph.decode import Before, Positions, Sources
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, logits_of, mean_squares, refuting
from gpt_verify.laws.decoding import Case, Way, recognise
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.numerics.weights import Widened
from gpt_verify.reference.model import logits as reference_logits
from gpt_verify.reference.ops import LAYER_NORM_EPSILON

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

LAW, SIZES_LAW = "batch", "batch.sizes"
#: Tokens of a row. A third of a small context, so that positions that run on from row to row exist.
LENGTH = 33
#: How four sequences are put together, by number. The second of them is twice in one place,
#: between different neighbours.
ARRANGEMENTS = {
    "in a batch of three": (0, 1, 2),
    "in another order": (2, 0, 1),
    "between other neighbours": (3, 1, 0),
}
#: Rows of larger batches: where kernels change their tiles, and one more.
SIZES = (4, 5, 8, 9, 16, 17, 32, 33)
#: Sequences that fill them in turn, and their tokens. No power of two is a multiple of so many, so
#: that a row is never beside, or mistaken for, its own like in the next tile.
FILLED_BY, SHORT = 5, 3


@dataclass(frozen=True)
class Row:
    """One sequence in one batch.

    Attributes:
        order: the sequences of the batch, by number.
        place: which of them it is.
        tokens_BT: the batch.
    """

    order: Sequence[int]
    place: int
    tokens_BT: Tokens
    got_TV: Floats
    alone_TV: Floats
    floors_T: Floats

    @property
    def wrong(self) -> bool:
        return bool(self.floors_T.max() > LIMIT_PAIR)

    @property
    def sequence(self) -> int:
        return self.order[self.place]

    @property
    def tokens_T(self) -> Tokens:
        return np.asarray(self.tokens_BT[self.place])


@refuting(LAW)
def check_batch(subject: Subject) -> Iterator[Finding]:
    """Four sequences alone and in three arrangements; the same with single tokens."""
    agreement, kept = Agreement(subject), True
    lengths = sorted({1, max(1, min(LENGTH, subject.config.n_ctx // 3))}, reverse=True)
    for length in lengths:
        alone, rows = _arranged(subject, agreement, length)
        if not agreement.holds():
            why, named = _why(subject, alone, [row for row in rows if row.wrong], rows)
            details = {"rows": len(rows), "wrong": sum(row.wrong for row in rows)}
            subject.memo[LAW] = "failed"
            yield agreement.failed(LAW, why, named, **details)
            return
        first, second = _between_others(rows)
        kept = kept and same_bits(first.got_TV, second.got_TV)
    words = " and ".join(f"{n} token{'s' * (n > 1)}" for n in lengths)
    depend = "do not depend" if kept else "depend"
    what = (
        f"rows of {words} alone, in batches of three, in another order, between other neighbours "
        f"(on which their bits {depend})"
    )
    yield agreement.passed(LAW, what, neighbours_keep_bits=kept)


@refuting(SIZES_LAW)
def check_sizes(subject: Subject) -> Iterator[Finding]:
    """Short sequences alone and in batches of up to 33 rows."""
    if LAW in subject.memo:
        raise NotExamined("rows in batches of three are wrong")
    agreement = Agreement(subject)
    tokens = subject.tokens(FILLED_BY, min(SHORT, subject.config.n_ctx), SIZES[-1])
    alone = [logits_of(subject, row[None])[0] for row in tokens]
    wrong: dict[int, list[int]] = {}
    for size in SIZES:
        order = [i % FILLED_BY for i in range(size)]
        got_BTV = logits_of(subject, tokens[order])
        for place, sequence in enumerate(order):
            words = f"row {place} in a batch of {size}"
            floors_T = agreement.compare(words, got_BTV[place], alone[sequence], tokens[sequence])
            if floors_T.max() > LIMIT_PAIR:
                wrong.setdefault(size, []).append(place)
    if agreement.holds():
        of = f"rows of {tokens.shape[1]} token{'s' * (tokens.shape[1] > 1)}"
        yield agreement.passed(SIZES_LAW, f"{of} alone and in batches of {SIZES[0]} to {SIZES[-1]}")
        return
    right = [size for size in SIZES if size not in wrong]
    what = f"in batches of {_listed(list(wrong))} rows"
    what += f", and right in those of {_listed(right)}" if right else ""
    first = min(wrong)
    why = f"wrong {what}; of {first}, rows {_listed(wrong[first])}"
    above = right and max(right) < first
    named = naming("batch-large" if above and len(wrong[first]) == first else None)
    yield agreement.failed(SIZES_LAW, why, named, wrong=wrong)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[: SIZES[0]]))
    return f"{shown} …" if len(numbers) > SIZES[0] else shown


def _arranged(
    subject: Subject, agreement: Agreement, length: int
) -> tuple[list[Floats], list[Row]]:
    """The logits of every sequence alone, and of every row of every arrangement."""
    tokens = subject.tokens(4, length)
    alone = [logits_of(subject, tokens[i : i + 1])[0] for i in range(len(tokens))]
    rows = []
    for what, order in ARRANGEMENTS.items():
        batch = tokens[list(order)]
        got_BTV = logits_of(subject, batch)
        for place, sequence in enumerate(order):
            words = f"row {place} {what}"
            got_TV, expected_TV = got_BTV[place], alone[sequence]
            floors_T = agreement.compare(words, got_TV, expected_TV, tokens[sequence])
            rows.append(Row(order, place, batch, got_TV, expected_TV, floors_T))
    return alone, rows


def _why(
    subject: Subject, alone: Sequence[Floats], wrong: Sequence[Row], rows: Sequence[Row]
) -> tuple[str, Named | None]:
    """What the wrong rows have in common; and the name of the fault, where it is a known one."""
    one = wrong[0]
    again_TV = logits_of(subject, one.tokens_T[None])[0]
    if _apart_by(subject, again_TV, one.alone_TV, one.tokens_T) > LIMIT_PAIR:
        return "but that row alone has other logits when it is asked for again", None
    if owners := _owners(subject, alone, wrong):
        mirrored = all(len(row.order) - 1 - row.place == owners[i] for i, row in enumerate(wrong))
        words = f"row {wrong[0].place} is given the logits of row {owners[0]}"
        return words, naming("batch-rows-reversed" if mirrored else None)
    length = len(wrong[0].tokens_T)
    cases = [_case(subject, row) for row in rows]
    if found := recognise(subject, cases, _ways(length), _apart(length)):
        return found.description, found.named
    if not _is_right(subject, one.tokens_T, one.alone_TV) and all(
        _is_right(subject, row.tokens_T, row.got_TV) for row in rows
    ):
        return "it is the row alone that is wrong", naming("batch-single-row")
    first, second = _between_others(rows)
    if _apart_by(subject, first.got_TV, second.got_TV, first.tokens_T) > LIMIT_PAIR:
        return "a row depends on the rows beside it: they share something, a mean or a mask", None
    if [row for row in rows if row.place == len(row.order) - 1] == list(wrong):
        return "the last row is wrong, whichever it is", naming("batch-last-row")
    if all(row.place > 0 for row in wrong):
        words = "the first row is correct, whichever it is: a row depends on its place in the batch"
        return words, None
    what = f"{len(wrong)} of {len(rows)} rows are wrong, whatever is beside them"
    return f"{what}: {found.description}", None


def _between_others(rows: Sequence[Row]) -> tuple[Row, Row]:
    """The sequence that is twice in the same place, beside other ones."""
    first, second = (row for row in rows if (row.sequence, row.place) == (1, 1))
    return first, second


def _owners(subject: Subject, alone: Sequence[Floats], wrong: Sequence[Row]) -> list[int]:
    """The rows whose logits the wrong ones were given; empty where one was given nobody's."""
    owners = []
    for row in wrong:
        owner = next(
            (
                place
                for place, sequence in enumerate(row.order)
                if place != row.place
                and _apart_by(subject, row.got_TV, alone[sequence], row.tokens_BT[place])
                <= LIMIT_PAIR
            ),
            None,
        )
        if owner is None:
            return []
        owners.append(owner)
    return owners


def _apart_by(subject: Subject, a_TV: Floats, b_TV: Floats, tokens_T: Tokens) -> float:
    return float(subject.position_floors(mean_squares(a_TV, b_TV), tokens_T).max())


def _is_right(subject: Subject, tokens_T: Tokens, got_TV: Floats) -> bool:
    """As far as rounding can tell, and whatever is wrong with the model as a whole."""
    exact_TV = reference_logits(Widened(subject.weights), subject.config, tokens_T)
    return _apart_by(subject, got_TV, exact_TV, tokens_T) <= LIMIT_PAIR


def _case(subject: Subject, row: Row) -> Case:
    """A row of a batch that is laid out as one sequence."""
    length = len(row.tokens_T)
    places = np.arange(length) + row.place * length
    floor_T = subject.floor(row.tokens_T)
    return Case([row.tokens_BT.reshape(-1)], places, row.got_TV, row.alone_TV, floor_T)


def _apart(length: int) -> Way:
    """What is right: each row by itself."""
    return Way("", _restarting(length), _own_row(length))


def _ways(length: int) -> list[Way]:
    def every_row(before: Before, n: int) -> NDArray[np.bool_]:
        place = np.arange(n) % length
        return np.asarray(place <= place[:, None])

    def first_row(before: Before, n: int) -> NDArray[np.bool_]:
        return np.asarray(every_row(before, n) & (np.arange(n) < length))

    def over_rows(x_nD: Floats) -> Floats:
        x_BLD = x_nD.reshape(-1, length, x_nD.shape[-1])
        centred_BLD = x_BLD - x_BLD.mean(axis=(0, -1), keepdims=True)
        variance_1L1 = np.mean(centred_BLD**2, axis=(0, -1), keepdims=True)
        scaled: Floats = centred_BLD / np.sqrt(variance_1L1 + LAYER_NORM_EPSILON)
        return scaled.reshape(x_nD.shape)

    return [
        Way(
            "positions run on from row to row",
            sources=_own_row(length),
            fault="batch-positions-run-on",
        ),
        Way(
            "a row sees the rows before it: the batch is attended to as one sequence",
            _restarting(length),
            fault="batch-attended-as-one",
        ),
        Way(
            "the batch is taken for one sequence, its rows one after the other",
            fault="batch-as-one-sequence",
        ),
        Way(
            "every row sees all rows, up to its own position",
            _restarting(length),
            every_row,
            fault="batch-every-row",
        ),
        Way(
            "every row sees the first one in place of itself",
            _restarting(length),
            first_row,
            fault="batch-first-row-for-all",
        ),
        Way(
            "layer norm takes its statistics over all rows",
            _restarting(length),
            _own_row(length),
            normalise=over_rows,
            fault="batch-norm-over-rows",
        ),
    ]


def _restarting(length: int) -> Positions:
    return lambda before, n: np.arange(n) % length


def _own_row(length: int) -> Sources:
    def sources(before: Before, n: int) -> NDArray[np.bool_]:
        row = np.arange(n) // length
        return np.asarray(np.tri(n, dtype=np.bool_) & (row == row[:, None]))

    return sources
