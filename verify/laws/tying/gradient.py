"""The law of tying by gradient: what trains wte comes through both of its ends.

d loss / d wte = what comes through the lookup + what comes through the last product. Each is
checked against the reference's derivative through that one place only, so that an
end that is detached, or trained apart, is found and named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import Derivative
from gpt_verify.graph.directions import WTE_READERS, Direction, draw
from gpt_verify.laws.float64_copy import throughout
from gpt_verify.laws.port_gradient import PortGradient
from gpt_verify.laws.reference_gradient import known_derivatives
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.table_rows import table_rows
from gpt_verify.laws.tying.check import SITE, Tables, tables_of
from gpt_verify.laws.tying.hypotheses import TiedEnd, of_head, of_lookup
from gpt_verify.matching.match import Placement
from gpt_verify.numerics.precision import FLOAT16, FLOAT64, Precision
from gpt_verify.numerics.two_tables import last_state
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, End, Floats, Gradients, Port
from gpt_verify.reference.ops import unembed

Result = TypeVar("Result")

_LAW = "tying.gradient"
_DETACHED = "the head is detached"
#: Positions of the input, and how many random directions.
_LENGTH, _DIRECTIONS = 8, 3


@dataclass(frozen=True)
class _Part:
    """One part of the gradient along each direction: what a port says, and what is so.

    Attributes:
        name: of the part.
        got: ⟨gradient, v⟩ of the port; None where it does not tell the parts apart.
        expected: of the reference.
    """

    name: str
    got: Sequence[float] | None
    expected: Sequence[Derivative]

    def floors(self, got: Sequence[float]) -> float:
        """The direction in which something is furthest from this part, in noise floors."""
        each = zip(self.expected, got, strict=True)
        return max(derivative.floors(value) for derivative, value in each)

    def apart(self, difference: Sequence[float]) -> float:
        """How far two versions of it are from each other, in noise floors."""
        each = zip(self.expected, difference, strict=True)
        return self.floors([derivative.value + move for derivative, move in each])

    @property
    def error(self) -> float:
        return 0.0 if self.got is None else self.floors(self.got)

    @property
    def visible(self) -> bool:
        """Whether a port in which it is missing would be found."""
        return self.floors([0.0] * len(self.expected)) > LIMIT_FLOORS

    @property
    def blocked(self) -> bool:
        """Nothing comes through, where something should."""
        return self.got is not None and not any(self.got) and self.visible

    def difference(self) -> str:
        """In the grammar of all messages, of the worst direction."""
        assert self.got is not None, "it was compared"
        floors = [d.floors(x) for d, x in zip(self.expected, self.got, strict=True)]
        at = int(np.argmax(floors))
        return (
            f"{self.name} along direction {at} = {self.got[at]:.9g}, should be "
            f"{self.expected[at].value:.9g} ({floors[at]:.3g} noise floors)"
        )


#: The parts of the gradient of wte: of its two ends, and what the parameter gets in all.
_SUM: Literal["sum"] = "sum"
_Where = End | Literal["sum"]


class _Along:
    """A ``GradientSink`` that keeps ⟨part, v⟩ of each part of the gradient of wte.

    Args:
        table: the parameter that is wte.
        drawn: factors of the rows and of the columns of each v.
    """

    def __init__(self, table: Placement, drawn: Sequence[Direction]) -> None:
        self._table, self._drawn = table, drawn
        self.apart = False
        self.restart()

    def restart(self) -> None:
        self.sums: dict[_Where, NDArray[np.float64]] = {}
        #: Names of all that got something, zeros included.
        self.seen: set[str | End] = set()

    def add(self, where: str | End, value: Floats) -> None:
        self.seen.add(where)
        if isinstance(where, End):
            self._add(where, value)
        elif where == self._table.parameter:
            (direction, *_) = self._drawn
            shape_VD = (direction.rows().size, direction.right.size)
            self._add(_SUM, table_rows(np.asarray(value), shape_VD, self._table.transposed))

    def of(self, where: _Where) -> list[float] | None:
        """Of one part along each v; None where the port does not tell the parts apart."""
        if isinstance(where, End) and not self.apart:
            return None
        return [float(x) for x in self.sums.get(where, np.zeros(len(self._drawn)))]

    def _add(self, where: _Where, value_VD: Floats) -> None:
        along = np.array([direction.along(value_VD) for direction in self._drawn])
        self.sums[where] = self.sums.get(where, 0.0) + along


@dataclass(frozen=True)
class _Measured:
    """What a port computed.

    Attributes:
        along: of the gradient of the batch.
        logits: float[B, T, V], in the same arithmetic.
        precision: which that is: float64, or the declared one.
    """

    along: _Along
    logits: Floats
    precision: Precision


def check_tied_gradient(subject: Subject) -> Iterable[Finding]:
    """Both parts and their sum, along random directions."""
    tables = tables_of(subject.parameters, subject.matching)
    tokens = _tokens(subject)
    drawn = _drawn(subject)

    def measure(port: Port) -> tuple[_Along, Floats]:
        along = _Along(tables.wte, drawn)
        along.apart = port.offers()[GRADIENTS](tokens, along)
        return along, np.array(port.logits(tokens))

    (along, logits), precision = _in_finest(subject, tokens, measure)
    measured = _Measured(along, logits, precision)
    first, last, total = parts = _parts(subject, drawn, tokens, measured)
    _in_range(parts, measured.precision)
    wrong = [part for part in parts if part.error > LIMIT_FLOORS]
    reason = _reason(tables, along.seen, first, last, total)
    score = max(part.error for part in parts)
    if reason or wrong:
        if not reason:
            _same_function(subject, tokens, measured)
        message = "; ".join(part.difference() for part in wrong or [total])
        message += f": {reason}" if reason else ""
        fault = _fault(subject, tokens, measured, parts, reason)
        named = naming(fault)
        yield Finding(_LAW, Status.FAILED, message, SITE, score, LIMIT_FLOORS, named=named)
        return
    if lost := [part.name for part in (first, last) if not _seen(part, total)]:
        raise NotExamined(f"lost in the noise: the {' and the '.join(lost)} of the gradient of wte")
    told = "input part, output part and sum"
    if any(part.got is None for part in parts):
        told = "the sum of both parts, which the port does not tell apart,"
    message = f"{told} along {_DIRECTIONS} random directions: at most {score:.3g} noise floors"
    message += " (in float64)" if measured.precision is not subject.precision else ""
    yield Finding(_LAW, Status.PASSED, message, SITE, score, LIMIT_FLOORS)


def _fault(
    subject: Subject,
    tokens: NDArray[np.int64],
    measured: _Measured,
    parts: Sequence[_Part],
    reason: str | None,
) -> str | None:
    """The mistake by its name, where the numbers decide."""
    if (reason or "").endswith(_DETACHED):
        return "head-detached"
    if not measured.along.apart:
        return None

    def known(directions: Sequence[Direction]) -> list[Derivative]:
        return known_derivatives(subject, tokens, directions, measured.precision)

    def whole(port: Port) -> Gradients:
        found = Gradients()
        port.offers()[GRADIENTS](tokens, _EndsAlone(found))
        return found

    zeros_VD = np.zeros((subject.config.n_vocab, subject.config.n_embd), np.float32)
    ends = _in_finest(subject, tokens, whole)[0].ends
    lookup = TiedEnd(ends.get(End.LOOKUP, zeros_VD), parts[0].expected)
    head = TiedEnd(ends.get(End.HEAD, zeros_VD), parts[1].expected)
    if lookup.right or not head.right:
        return of_head(lookup, head)
    if not subject.config.keys.table:
        return None  # nothing else is read in the same sum, of which it could be asked
    assert subject.matching is not None, "the table of laws asks for parameters"
    matching = subject.matching
    drawn = draw(subject.config, subject.rng(*b"positions"))
    (of_wpe,) = known([d for d in drawn if d.tensor == "wpe"])

    def by_wpe(port: Port) -> float | None:
        asked = [of_wpe.direction]
        return PortGradient.of(port, matching, asked, tokens).along(of_wpe.direction)

    got = _in_finest(subject, tokens, by_wpe)[0]
    if got is None or of_wpe.floors(got) > LIMIT_FLOORS or of_wpe.floors(0.0) <= LIMIT_FLOORS:
        return None
    return of_lookup(lookup, tokens, known)


class _EndsAlone:
    """Hands on to a sink what comes through the two ends, and nothing else."""

    def __init__(self, sink: Gradients) -> None:
        self._sink = sink
        self.restart = sink.restart

    def add(self, where: str | End, value: Floats) -> None:
        if isinstance(where, End):
            self._sink.add(where, value)


def _in_range(parts: Sequence[_Part], precision: Precision) -> None:
    """float16 ends at 65,504, which is no mistake of the port's; of a wider format what is not
    finite is.

    Raises:
        NotExamined: the gradient left float16's range.
    """
    got = [value for part in parts if part.got is not None for value in part.got]
    if precision is FLOAT16 and not np.isfinite(got).all():
        raise NotExamined("its gradient is not finite in float16, whose range ends at 65504")


def _seen(part: _Part, total: _Part) -> bool:
    """Whether a port in which this part is missing would be found: in the part itself, or in the
    sum where the port tells no more."""
    if part.got is not None:
        return part.visible
    return total.apart([d.value for d in part.expected]) > LIMIT_FLOORS


def _reason(
    tables: Tables, seen: Collection[str | End], first: _Part, last: _Part, total: _Part
) -> str | None:
    """What is wrong with the tying, where the numbers say it; whatever else is wrong with the
    port, and with its derivatives therefore, says nothing of that kind."""
    if first.blocked:
        return "nothing comes through the lookup: it is detached"
    if last.blocked:
        return f"nothing comes through the last product: {_DETACHED}"
    assert total.got is not None, "the sum is always asked for"
    wte = tables.wte.parameter
    if first.got is not None and last.got is not None:
        rest = [s - a - b for s, a, b in zip(total.got, first.got, last.got, strict=True)]
        if total.apart(rest) <= LIMIT_FLOORS:
            return None
        trained = [p.parameter for p in tables.own if p.parameter in seen]
        elsewhere = f"; the rest goes to {' and '.join(trained)}" if trained else ""
        return f"what comes through both ends does not add up in {wte}{elsewhere}"
    if total.error <= LIMIT_FLOORS:
        return None
    for present, missing, end in ((first, last, "head"), (last, first, "lookup")):
        if _seen(missing, total) and present.floors(total.got) <= LIMIT_FLOORS:
            return f"{wte} has the {present.name} alone: the {end} is detached"
    return None


def _same_function(subject: Subject, tokens: NDArray[np.int64], measured: _Measured) -> None:
    """Of another function the derivatives are other ones, which is no matter of tying.

    Raises:
        NotExamined: the logits are not the reference's.
    """
    for logits_TV, tokens_T in zip(measured.logits, tokens, strict=True):
        x_TD = last_state(Widened(subject.weights), subject.config, tokens_T)
        exact_TV = unembed(x_TD, np.asarray(subject.weights["wte"], np.float64))
        finer = subject.precision.u / measured.precision.u
        floors = subject.floors_off(logits_TV - exact_TV, exact_TV, tokens_T, finer=finer)
        if floors > LIMIT_FLOORS:
            raise NotExamined(
                f"its logits are wrong ({floors:.3g} noise floors in {measured.precision.name}), "
                "and so its derivatives differ too"
            )


def _tokens(subject: Subject) -> NDArray[np.int64]:
    """Tokens that occur twice: what comes through the lookup is added up in their rows. The first
    and the last of the vocabulary are among them, which some embeddings take for padding. Not all
    occur as often: a derivative divided by how often they do is no other one that was halved."""
    config = subject.config
    if config.n_ctx < 2:
        raise NotExamined("nothing is predicted: the context is one token")
    if config.n_vocab < 2:
        raise NotExamined("nothing is learnt: the vocabulary is one token")
    tokens = subject.tokens(1, min(config.n_ctx, _LENGTH), *b"tying")
    tokens[0, :2] = config.n_vocab - 1, 0
    half = tokens.shape[1] // 2
    tokens[0, half : 2 * half] = tokens[0, :half]
    tokens[0, -1] = tokens[0, 0]
    return tokens


def _in_finest(
    subject: Subject, tokens: NDArray[np.int64], compute: Callable[[Port], Result]
) -> tuple[Result, Precision]:
    """In float64 where the port can: there is no rounding to hide in."""
    port = subject.port
    if float64 := subject.offers.get(FLOAT64_COPY):
        try:
            with float64() as float64_copy:
                if GRADIENTS in float64_copy.offers() and throughout(subject, float64_copy, tokens):
                    return compute(float64_copy), FLOAT64
        except NotExamined:
            raise
        except Exception:  # the law of architecture says that it does not run in float64
            pass
    return compute(port), subject.precision


def _drawn(subject: Subject) -> list[Direction]:
    """Random directions of wte. Sizes differ: all channels alike is a direction that layer norm
    removes."""
    rng, shape_VD = subject.rng(*b"directions"), (subject.config.n_vocab, subject.config.n_embd)
    drawn = [
        [rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 1, n) for n in shape_VD]
        for _ in range(_DIRECTIONS)
    ]
    return [Direction("wte", WTE_READERS, *v) for v in drawn]


def _parts(
    subject: Subject,
    drawn: Sequence[Direction],
    tokens: NDArray[np.int64],
    measured: _Measured,
) -> list[_Part]:
    """Input part, output part, sum."""
    directions = [replace(d, sites=(end,)) for end in WTE_READERS for d in drawn]
    known = known_derivatives(subject, tokens, directions, measured.precision)
    if not np.isfinite([(d.value, d.floor) for d in known]).all():
        raise NotExamined(f"the reference overflows in {measured.precision.name}")
    of_input, of_output = known[:_DIRECTIONS], known[_DIRECTIONS:]
    of_both = [_sum(a, b) for a, b in zip(of_input, of_output, strict=True)]
    along = measured.along
    return [
        _Part("input part", along.of(End.LOOKUP), of_input),
        _Part("output part", along.of(End.HEAD), of_output),
        # Where the loss does not depend on it, the parameter gets nothing.
        _Part("sum", along.of(_SUM), of_both),
    ]


def _sum(a: Derivative, b: Derivative) -> Derivative:
    """Of both ends along one direction. Their errors may have one cause, and are added."""
    return Derivative(
        direction=replace(a.direction, sites=WTE_READERS),
        value=a.value + b.value,
        rounding=a.rounding + b.rounding,
        floor=a.floor + b.floor,
    )
