"""The law of masks: padding on the right, on both sides and in between hides as on the left does.

What is masked is not there: the other tokens have the logits that they have without it. Where they
are is another matter. transformers counts the tokens that are not masked; others count from the
first of them, or from the left whatever is masked. A port that takes positions is told them, and
with a mask alone any of these is right, as long as it is the same for every mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import described
from gpt_verify.findings import Finding, naming
from gpt_verify.laws.agreement import Agreement, checked, logits_of, refuting
from gpt_verify.laws.decoding import Case, Way, recognise
from gpt_verify.laws.padding.check import LAW as LEFT
from gpt_verify.laws.padding.check import TRAP, padded_batches
from gpt_verify.laws.padding.hypotheses import Padded, counted, from_first, ways_of_shapes
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import MASKED, PADDED, PADDED_AT

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]
Call = Callable[[Padded], Floats]

LAW = "positions.masks"
BETWEEN = "masked in between"
#: Where a port may take tokens to be that a mask does not hide, without being told.
CONVENTIONS: dict[str, Callable[[Padded], Tokens]] = {
    "positions count the tokens that are not masked": lambda batch: batch.positions,
    "positions count from the first token that is not masked": from_first,
    "positions count all tokens": counted,
}


@refuting(LAW)
def check_masks(subject: Subject) -> Iterator[Finding]:
    """Every shape with positions given and with a mask alone, then every type of mask."""
    padded, padded_at = subject.offers.get(PADDED), subject.offers.get(PADDED_AT)
    if padded is None and padded_at is None:
        raise NotExamined(PADDED.lacking)
    if subject.config.n_ctx == 1:
        raise NotExamined("a context of one token leaves no room for padding")
    if subject.memo.get(LEFT, TRAP) is None:
        raise NotExamined("padding on the left is wrong already")
    found = _Found(subject)
    for shape, batch in shapes(subject).items():
        found.shape(shape, batch)
        if found.wrong is not None:
            yield found.wrong
            return
    types = found.types()
    if found.wrong is not None:
        yield found.wrong
        return
    said = ", ".join(found.said)
    which = f"; with a mask alone {found.conventions[0]}" if found.conventions else ""
    yield found.agreement.passed(LAW, f"{said}; {types}{which}")


def shapes(subject: Subject) -> dict[str, Padded]:
    """The sequences that the law of padding on the left has, padded elsewhere."""
    (zeros, other) = padded_batches(subject)
    rows, width = zeros.sequences, zeros.tokens.shape[1]
    # The longest has no padding: once it comes first, once among the others.
    rows_of_shape = {"padding on both sides": sorted(rows, key=len, reverse=True)}
    filling = other.tokens[:, ::-1]
    masks = {"a mask of ones": np.ones((len(rows), width), np.bool_)}
    layouts: dict[str, Callable[[int, int], list[bool]]] = {
        "padding on the right": lambda pads, n: [True] * n + [False] * pads,
        "padding on both sides": lambda pads, n: (
            [False] * (pads // 2) + [True] * n + [False] * (pads - pads // 2)
        ),
    }
    windows = [w for layer in range(subject.config.n_layer) if (w := subject.config.window(layer))]
    if min(windows, default=width) >= width:  # a window counts what is masked, or does not
        layouts[BETWEEN] = _in_between
    for name, layout in layouts.items():
        sequences = rows_of_shape.get(name, rows)
        masks[name] = np.array([layout(width - len(row), len(row)) for row in sequences])
    found = {}
    for name, mask in masks.items():
        tokens = np.array(zeros.tokens if name == "a mask of ones" else filling)
        if name != "a mask of ones":
            sequences = rows_of_shape.get(name, rows)
            for row, (real, sequence) in enumerate(zip(mask, sequences, strict=True)):
                tokens[row, real] = sequence
        found[name] = Padded(tokens, mask.astype(np.int64))
    return found


def _in_between(pads: int, n: int) -> list[bool]:
    """One masked token before, the others in the middle and after the last but one."""
    if n < 2:
        return [False] * pads + [True] * n
    before = min(pads, 1)
    middle = (pads - before) // 2
    late = pads - before - middle
    half = n // 2
    mask = [False] * before + [True] * half + [False] * middle + [True] * (n - half - 1)
    return [*mask, *[False] * late, True]


@dataclass
class _Found:
    """What has come out so far.

    Attributes:
        agreement: of all comparisons that count.
        conventions: those that a port with a mask alone has followed in every shape.
        said: shapes that were tried.
        wrong: the failure, or None.
    """

    subject: Subject
    agreement: Agreement = field(init=False)
    conventions: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    wrong: Finding | None = None

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.subject)
        if PADDED in self.subject.offers:
            self.conventions = list(CONVENTIONS)

    def shape(self, name: str, batch: Padded) -> None:
        """A mask of one shape, in all ways in which the port takes it."""
        subject = self.subject
        padded, padded_at = subject.offers.get(PADDED), subject.offers.get(PADDED_AT)
        alone = [logits_of(subject, row[None])[0] for row in batch.sequences]
        self.said.append(name)
        if padded_at is not None:
            got = rows_of(subject, batch, padded_at(batch.tokens, batch.mask, batch.positions))
            if not self._compare(f"{name}, positions given", batch, got, alone):
                self.wrong = self._failed(name, batch, got, alone)
                return
        if padded is None:
            return
        got = rows_of(subject, batch, padded(batch.tokens, batch.mask))
        followed = [c for c in self.conventions if self._follows(c, batch, got, alone)]
        if followed or self._is_unclear(name):
            self.conventions = followed or self.conventions
            if followed:
                best = self._expected(followed[0], batch, alone)
                if not isinstance(best, Way):
                    self._compare(f"{name}, a mask alone", batch, got, best)
            return
        self.wrong = self._alone_wrong(name, batch, got, alone)

    def _alone_wrong(
        self, name: str, batch: Padded, got: Sequence[Floats], alone: Sequence[Floats]
    ) -> Finding:
        """With a mask alone it does nothing that is usual, or not what it does in other masks."""
        usual, what = self.conventions[0], f"{name}, a mask alone"
        expected = self._expected(usual, batch, alone)
        self._compare(what, batch, got, alone if isinstance(expected, Way) else expected)
        for other in CONVENTIONS:
            if other not in self.conventions and self._follows(other, batch, got, alone):
                why = f"{name}, with a mask alone: {other}, and in other masks {usual}"
                return self.agreement.failed(LAW, why)
        return self._failed(f"{name}, with a mask alone", batch, got, alone)

    def _is_unclear(self, name: str) -> bool:
        """Whether nobody can say what a port that takes no positions makes of tokens that are
        masked in between: the oracle of a family does not, nor that of a port that is wrong
        elsewhere."""
        known = self.subject.config.own is None and self.subject.logits_right is not False
        return name == BETWEEN and not known and PADDED_AT not in self.subject.offers

    def _expected(
        self, convention: str, batch: Padded, alone: Sequence[Floats]
    ) -> Sequence[Floats] | Way:
        """What the port itself makes of these positions where it takes any; otherwise, how the
        oracle does."""
        at = CONVENTIONS[convention](batch)
        if (at == batch.positions)[batch.real].all():
            return alone
        padded_at = self.subject.offers.get(PADDED_AT)
        if padded_at is not None:
            return rows_of(self.subject, batch, padded_at(batch.tokens, batch.mask, at))
        return batch.way(convention, at)

    def _follows(
        self, convention: str, batch: Padded, got: Sequence[Floats], alone: Sequence[Floats]
    ) -> bool:
        expected = self._expected(convention, batch, alone)
        if isinstance(expected, Way):
            case = case_of(self.subject, batch, got, alone)
            return bool(recognise(self.subject, [case], [expected], batch.right))
        agreement = Agreement(self.subject)
        return compared(agreement, convention, batch, got, expected)

    def _compare(
        self, what: str, batch: Padded, got: Sequence[Floats], expected: Sequence[Floats]
    ) -> bool:
        return compared(self.agreement, what, batch, got, expected)

    def _failed(
        self, where: str, batch: Padded, got: Sequence[Floats], alone: Sequence[Floats]
    ) -> Finding:
        """What is wrong, by the mistake that the oracle would have to make as well."""
        case = case_of(self.subject, batch, got, alone)
        found = recognise(self.subject, [case], ways_of_shapes(batch), batch.right)
        return self.agreement.failed(LAW, f"{where}: {found.description}", found.named)

    def types(self) -> str:
        """Masks of truth values and of floating-point numbers, where the port takes them."""
        masked, batch = (
            self.subject.offers.get(MASKED),
            shapes(self.subject)["padding on the right"],
        )
        if masked is None:
            return "as integers"
        at = batch.positions if PADDED_AT in self.subject.offers else None
        usual = self._integers(batch)
        lowest = np.where(batch.real, 0, np.finfo(np.float32).min).astype(np.float32)
        taken = ["integers"]
        for name, masks in {
            "truth values": (batch.real,),
            # Zeros and ones as elsewhere, or what is added to the scores: both are usual.
            "floating-point numbers": (batch.mask.astype(np.float32), lowest),
        }.items():
            worst: Agreement | None = None
            for mask in masks:
                try:
                    made = masked(batch.tokens, mask, at)
                    got = rows_of(self.subject, batch, made)
                except Exception as error:
                    described(error)  # it does not take them
                    continue
                agreement = Agreement(self.subject)
                if compared(agreement, f"a mask of {name}", batch, got, usual):
                    taken.append(name)
                    worst = None
                    break
                worst = worst or agreement
            if worst is not None:
                why = f"a mask of {name} is read otherwise than one of integers"
                self.wrong = worst.failed(LAW, why, naming("padding-mask-type"))
                return ""
        return f"as {', '.join(taken)}"

    def _integers(self, batch: Padded) -> list[Floats]:
        padded_at = self.subject.offers.get(PADDED_AT)
        if padded_at is not None:
            made = padded_at(batch.tokens, batch.mask, batch.positions)
        else:
            made = self.subject.offers[PADDED](batch.tokens, batch.mask)
        return rows_of(self.subject, batch, made)


def rows_of(subject: Subject, batch: Padded, logits: Floats) -> list[Floats]:
    """The logits of what is no padding, row by row."""
    made = checked(subject, logits, batch.tokens, "of padded sequences", batch.real)
    return [row_TV[real] for row_TV, real in zip(made, batch.real, strict=True)]


def compared(
    agreement: Agreement,
    what: str,
    batch: Padded,
    got: Sequence[Floats],
    expected: Sequence[Floats],
) -> bool:
    """Whether all rows are what they should be, so far."""
    for row, (got_TV, expected_TV, tokens_T) in enumerate(
        zip(got, expected, batch.sequences, strict=True)
    ):
        agreement.compare(f"row {row}, {what}", got_TV, expected_TV, tokens_T)
    return agreement.holds()


def case_of(
    subject: Subject, batch: Padded, got: Sequence[Floats], alone: Sequence[Floats]
) -> Case:
    """A batch as the oracle decodes it."""
    floor_R = np.concatenate([subject.floor(tokens_T) for tokens_T in batch.sequences])
    rows = np.flatnonzero(batch.real)
    pieces = [batch.tokens.reshape(-1)]
    return Case(pieces, rows, np.concatenate(got), np.concatenate(alone), floor_R)
