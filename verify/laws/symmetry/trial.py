"""A port before and after its weights were rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.agreement import mean_squares
from gpt_verify.laws.float64_copy import throughout
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.laws.symmetry.floor import least_symmetry_floor, symmetry_floor
from gpt_verify.laws.symmetry.transforms import Symmetry, kind_of, together
from gpt_verify.laws.symmetry.writes import Stored
from gpt_verify.numerics.precision import FLOAT32, PRECISIONS
from gpt_verify.port import FLOAT64_COPY, Floats
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table

Array = NDArray[Any]
Result = TypeVar("Result")

#: Positions of the input.
_LENGTH = 16


@dataclass(frozen=True)
class Prepared:
    """One rewriting of one port.

    Attributes:
        symmetry: the rewriting.
        places: tensor → where it is, ``layer 3``, of all that are rewritten.
        left_out: tensors that are not, because they may be others.
    """

    symmetry: Symmetry
    places: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def in_one_place(self) -> list[str]:
        """The tensors of one layer."""
        last = list(self.places.values())[-1]
        return [tensor for tensor, place in self.places.items() if place == last]


@dataclass(frozen=True)
class Change:
    """What a rewriting did to the logits in one arithmetic.

    Attributes:
        floors: RMS change in noise floors; NaN where nothing can be said.
        message: of the logit that changed most.
    """

    floors: float
    message: str

    @property
    def wrong(self) -> bool:
        return self.floors > LIMIT_FLOORS


def prepare(subject: Subject, symmetry: Symmetry, stored: Stored) -> Prepared:
    """Which tensors are rewritten.

    Raises:
        NotExamined: one of them cannot be found for certain, or not be written to.
    """
    places = tensors_of(symmetry, subject.config)
    left_out = []
    for tensor in list(places):
        if not stored.doubtful(tensor):
            continue
        if not symmetry.steps[kind_of(tensor)].linear:
            left_out.append(tensor)
            del places[tensor]
        # Zeros stay zeros, whatever they are zeros of, where nothing is added.
        elif stored.original(tensor).any():
            raise NotExamined(f"{tensor} looks like another tensor, or like itself transposed")
    if not places:
        raise NotExamined("no tensor can be told from others that are all alike")
    return Prepared(symmetry, places, tuple(left_out))


def whole(some: Sequence[Prepared]) -> Prepared:
    """All of them at once."""
    places = {tensor: place for one in some for tensor, place in one.places.items()}
    return Prepared(together([one.symmetry for one in some]), places, ())


def tensors_of(symmetry: Symmetry, config: Config) -> dict[str, str]:
    """Tensor → where it is."""
    return {
        name: name if kind_of(name) == name else f"layer {name[1 : name.index('/')]}"
        for name in tensor_table(config)
        if kind_of(name) in symmetry.steps
    }


class Trial:
    """Runs a port on one sequence, with its weights as they are at the moment."""

    def __init__(self, subject: Subject, stored: Stored) -> None:
        self._subject, self._stored = subject, stored
        length = min(subject.config.n_ctx, _LENGTH)
        self._tokens = subject.tokens(1, length, *b"symmetry")
        self._in_float64 = True

    def changes(
        self, prepared: Prepared, between: Callable[[Floats], Result]
    ) -> tuple[Result, dict[str, Change]]:
        """What the rewriting changes, by arithmetic. The weights are left as they are after it.

        Args:
            prepared: the rewriting.
            between: called before it is made, with the logits in the declared precision; its
                result is handed on.

        Raises:
            NotExamined: the logits are not finite, or rounding alone may change them.
        """
        self.base(prepared)
        before = self.logits()
        result = between(before[self._subject.port.dtype])
        self.moved(prepared, prepared.places)
        after = self.logits()
        judged = [name for name in before if not self._chooses_by_rounding(name)]
        if not judged:
            raise NotExamined(f"rounding alone may choose other experts in {before.popitem()[0]}")
        every = {name: self.change(prepared, name, before[name], after[name]) for name in judged}
        changes = {name: c for name, c in every.items() if not np.isnan(c.floors)}
        if not changes:
            raise NotExamined("its logits are not finite")
        return result, changes

    def shows(self, prepared: Prepared, before_TV: Floats, tensors: Iterable[str]) -> bool:
        """Whether the logits, in the declared precision, depend on these tensors as they are in the
        port's memory. A port may compute with copies, which no rewriting reaches."""
        tensors = list(tensors)
        self._stored.rewrite(tensors, self._other)
        shown = not same_bits(before_TV, self._declared())
        self.base(prepared, tensors)
        return shown

    def where(self, prepared: Prepared, arithmetic: str) -> list[str]:
        """The places at which the rewriting alone changes the output.

        Raises:
            NotExamined: the logits change by themselves, or the port computes with copies.
        """
        self.base(prepared)
        before, again = self.logits(), self.logits()
        if self.change(prepared, arithmetic, before[arithmetic], again[arithmetic]).wrong:
            raise NotExamined("its logits are not the same twice")
        for tensor in prepared.places:
            if not self.shows(prepared, before[self._subject.port.dtype], [tensor]):
                raise NotExamined(
                    f"what is written to {tensor} does not show in its logits: it computes with "
                    "something else"
                )
        wrong = []
        for place in dict.fromkeys(prepared.places.values()):
            here = [tensor for tensor, where in prepared.places.items() if where == place]
            self.moved(prepared, here)
            after = self.logits()[arithmetic]
            if self.change(prepared, arithmetic, before[arithmetic], after).wrong:
                wrong.append(place)
            self.base(prepared, here)
        return wrong

    def base(self, prepared: Prepared, tensors: Iterable[str] | None = None) -> None:
        """Write what can be moved exactly."""
        steps = prepared.symmetry.steps
        self._stored.rewrite(
            prepared.places if tensors is None else tensors,
            lambda tensor, original: steps[kind_of(tensor)].based(original),
        )

    def moved(self, prepared: Prepared, tensors: Iterable[str]) -> None:
        """Write what that was moved to; it is what the port holds of them now (``base``)."""
        steps = prepared.symmetry.steps

        def move(tensor: str, held: Array) -> Array:
            return steps[kind_of(tensor)].after(held)

        self._stored.rewrite(tensors, move, self._stored.held)

    def logits(self) -> dict[str, Floats]:
        """By arithmetic, [T, V]."""
        port, found = self._subject.port, self._declared()
        every: dict[str, Floats] = {port.dtype: found}
        float64 = self._subject.offers.get(FLOAT64_COPY)
        if self._in_float64 and float64 and port.dtype != "float64":
            try:
                with float64() as float64_copy:
                    self._in_float64 = throughout(self._subject, float64_copy, self._tokens)
                    if self._in_float64:
                        every["float64"] = np.array(float64_copy.logits(self._tokens)[0])
            except Exception:  # the law of architecture says that it does not run in float64
                self._in_float64 = False
        return every

    def _chooses_by_rounding(self, arithmetic: str) -> bool:
        """Whether a sum in another order may give a token to another expert, every now and then."""
        experts = self._subject.config.keys.experts
        return experts is not None and PRECISIONS[arithmetic].u > FLOAT32.u

    def _declared(self) -> Floats:
        logits_TV: Floats = np.array(self._subject.port.logits(self._tokens)[0])
        return logits_TV

    def change(
        self, prepared: Prepared, arithmetic: str, before_TV: Floats, after_TV: Floats
    ) -> Change:
        """How far two runs are apart."""
        if not np.isfinite(before_TV).all():
            return Change(float("nan"), "")
        if not np.isfinite(after_TV).all():
            # float16's range ends at 65504, which is no mistake of the port's.
            floors = float("nan") if arithmetic == "float16" else float("inf")
            return Change(floors, "logits are not finite")
        difference_TV = after_TV.astype(np.float64) - before_TV
        squares_T = np.mean(difference_TV**2, axis=-1)
        size_T = np.minimum(mean_squares(before_TV), mean_squares(after_TV))
        floor_T = self._floor(prepared, arithmetic, squares_T, size_T)
        floors = _over(squares_T, floor_T)
        t, v = np.unravel_index(int(np.argmax(np.abs(difference_TV))), difference_TV.shape)
        message = (
            f"logits[{t}, {v}] = {after_TV[t, v]:.9g}, should be {before_TV[t, v]:.9g} "
            f"± {floor_T[t]:.2g} ({floors:.3g} noise floors in {arithmetic})"
        )
        return Change(floors, message)

    def _floor(
        self, prepared: Prepared, arithmetic: str, squares_T: Floats, size_T: Floats
    ) -> Floats:
        """The noise of a difference, [T]: of a large model no more than that where a change with
        these squares is within it, given logits of this mean square."""
        # Before and after are noisy, both.
        both, used = float(np.sqrt(2)), PRECISIONS[arithmetic]
        if self._subject.large:
            least_T = both * least_symmetry_floor(self._subject, size_T, used)
            if _over(squares_T, least_T) <= LIMIT_FLOORS:
                return least_T
        floor_T = symmetry_floor(self._subject, prepared.symmetry, self._tokens[0], used)
        return both * floor_T

    def _other(self, tensor: str, original: Array) -> Array:
        """Quite another tensor, none of whose numbers is the same."""
        size = float(np.sqrt(np.mean(np.square(original, dtype=np.float64)))) or 1.0
        return self._subject.precision.round(3 * size - original)


def _over(squares_T: Floats, floor_T: Floats) -> float:
    """RMS over the positions, in floors; NaN where nothing is measured by nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sqrt(np.mean(squares_T / floor_T**2)))
