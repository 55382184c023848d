"""The law of the gradient: what trains each tensor is what the loss says.

For each tensor, ⟨the port's gradient, v⟩ along a random direction v is checked against the central
difference of the reference's float64 loss. In float64 first, where the port can be run in it: there
a difference of 1e-9 is seen. Then in its declared precision, within the floor of that derivative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import Derivative
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.laws.float64_copy import throughout
from gpt_verify.laws.gradient.comparison import Comparison, describe, in_the_backward_pass
from gpt_verify.laws.gradient.hypotheses import Evidence
from gpt_verify.laws.port_gradient import PortGradient
from gpt_verify.laws.reference_gradient import (
    ReferenceGradient,
    backward_of,
    reference_gradient,
)
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.numerics.two_tables import last_state
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import FLOAT64_COPY, Floats, Port
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import unembed
from gpt_verify.sites import sites

_LAW = "gradient"


def at_the_weights(config: Config) -> list[str | None]:
    """The sites that read a tensor."""
    return [site.name for site in sites(config).values() if site.weights]


@dataclass(frozen=True)
class _Run:
    """What a port computed in one arithmetic.

    Attributes:
        name: of the arithmetic: ``float64``.
        gradient: of the mean loss of the batch.
        finer: its unit roundoff ÷ that of the declared precision.
    """

    name: str
    gradient: PortGradient
    finer: float


def check_gradient(subject: Subject) -> Iterable[Finding]:
    """One finding for each operation that reads a tensor."""
    reference = reference_gradient(subject)
    every = [c for run in _runs(subject, reference) for c in _compare(run, reference)]
    every = _surely(subject, every)
    compared = [c for c in every if not c.unknown]
    wrong = [c.site for c in compared if c.wrong]
    if wrong:
        in_float64 = any(c.wrong and c.arithmetic == "float64" for c in compared)
        _same_function(subject, reference.tokens, in_float64 and subject.port.dtype != "float64")
    order = [name for name in at_the_weights(subject.config) if name is not None]
    first = max(wrong, key=order.index) if wrong else None
    for site in order:
        here = [c for c in compared if c.site == site]
        if any(c.wrong for c in here):
            message = describe([c for c in here if c.wrong]) + in_the_backward_pass(
                site, wrong, order
            )
            found = _finding(Status.FAILED, site, here, message)
            yield _named(found, subject, compared) if site == first else found
        elif not here:
            why = next((c.unknown for c in every if c.site == site), None)
            why = why or "no gradient of a parameter that was matched to its tensors"
            yield Finding(_LAW, Status.NOT_EXAMINED, why, site)
        elif not any(c.visible for c in here):
            why = "lost in the noise: a gradient of zero would look no different"
            yield Finding(_LAW, Status.NOT_EXAMINED, why, site)
        else:
            yield _finding(Status.PASSED, site, here, _agreement(here))


def _surely(subject: Subject, every: list[Comparison]) -> list[Comparison]:
    """The same comparisons; where only noise of the declared precision refutes, it is measured by
    more draws first."""
    declared = subject.port.dtype
    wrong = {c.arithmetic for c in every if c.wrong and not c.unknown}
    if wrong != {declared} or declared == "float64":
        return every
    sure = reference_gradient(subject, surely=True)
    known = {(d.direction.tensor, d.direction.sites): d for d in (*sure.known, *sure.both_ends)}
    return [
        _against(c, known[c.direction.tensor, c.direction.sites]) if c.arithmetic == declared else c
        for c in every
    ]


def _against(c: Comparison, known: Derivative) -> Comparison:
    """The comparison, with other noise."""
    return replace(
        c,
        floors=known.floors(c.got),
        visible=known.floors(0.0) > LIMIT_FLOORS,
        error=known.error(),
    )


def _finding(status: Status, site: str, here: Sequence[Comparison], message: str) -> Finding:
    score = max(c.floors for c in here)
    details = {f"{c.what} in {c.arithmetic}": c.floors for c in here}
    tensors = tuple(dict.fromkeys(c.direction.tensor for c in here if c.wrong))
    return Finding(
        _LAW, status, message, site, score, LIMIT_FLOORS, tensors=tensors, details=details
    )


def _named(finding: Finding, subject: Subject, compared: Sequence[Comparison]) -> Finding:
    """With the mistake that explains it and all the others, where there is one."""
    fault = Evidence(subject.config, compared, lambda: backward_of(subject)).name()
    return replace(finding, named=naming(fault))


def _agreement(here: Sequence[Comparison]) -> str:
    largest: dict[str, float] = {}
    for c in here:
        largest[c.arithmetic] = max(largest.get(c.arithmetic, 0.0), c.floors)
    tensors = ", ".join(dict.fromkeys(c.what for c in here))
    floors = ", ".join(f"{floors:.3g} noise floors in {name}" for name, floors in largest.items())
    return f"{tensors}: within {floors}"


def _runs(subject: Subject, reference: ReferenceGradient) -> Iterator[_Run]:
    """In float64 where the port can, and as it is. One is given up before the next is made."""
    port, ran = subject.port, False
    float64 = subject.offers.get(FLOAT64_COPY)
    if float64 and port.dtype != "float64":
        run, finer = None, FLOAT64.u / subject.precision.u
        try:
            with float64() as float64_copy:
                if throughout(subject, float64_copy, reference.tokens):
                    run = _run(subject, float64_copy, reference, "float64", finer)
        except Exception:  # the law of architecture says that it does not run in float64
            pass
        if run is not None:
            ran = True
            yield run
            del run
    try:
        yield _run(subject, port, reference, port.dtype, 1.0)
    except NotExamined:
        if not ran:
            raise


def _run(
    subject: Subject, port: Port, reference: ReferenceGradient, name: str, finer: float
) -> _Run:
    if subject.matching is None:
        raise NotExamined("no parameters shown")
    subject.weights.forget()
    gradient = PortGradient.of(port, subject.matching, reference.directions, reference.tokens)
    return _Run(name, gradient, finer)


def _compare(run: _Run, reference: ReferenceGradient) -> Iterator[Comparison]:
    """Each tensor that the port has, in the order of the forward pass."""
    for known in reference.told_apart(run.gradient.tells_ends_apart):
        got = run.gradient.along(known.direction)
        if got is None:
            continue
        floors, unknown = known.floors(got, run.finer), ""
        if run.name == "float16" and not np.isfinite(got):  # no mistake of the port's
            unknown = "the gradient is not finite in float16, whose range ends at 65504"
        elif np.isnan(floors):
            unknown = f"the reference's derivative is not finite in {run.name}"
        yield Comparison(
            what=what_of(known),
            direction=known.direction,
            site=known.direction.sites[-1],
            arithmetic=run.name,
            got=got,
            expected=known.value,
            floors=floors,
            visible=known.floors(0.0, run.finer) > LIMIT_FLOORS,
            error=known.error(run.finer),
            idle=run.gradient.idle(known.direction),
            largest=run.gradient.largest(known.direction),
            unknown=unknown,
        )


def what_of(known: Derivative) -> str:
    if known.direction.tensor != "wte":
        return known.direction.tensor
    ends: dict[tuple[str, ...], str] = {("embed",): "lookup", ("logits",): "last product"}
    return f"wte ({ends.get(known.direction.sites, 'both ends')})"


def _same_function(subject: Subject, tokens: NDArray[np.int64], in_float64: bool) -> None:
    """Of another function the derivatives are others too, and that says nothing about them.

    Raises:
        NotExamined: the logits are not the reference's.
    """
    if in_float64:
        with subject.offers[FLOAT64_COPY]() as float64_copy:
            got_TV = float64_copy.logits(tokens[:1])[0]
    else:
        got_TV = subject.port.logits(tokens[:1])[0]
    x_TD = last_state(Widened(subject.weights), subject.config, tokens[0])
    exact_TV = np.empty(got_TV.shape)
    for rows in vocabulary_tiles(len(x_TD), subject.config.n_vocab):
        head_VD: Floats = np.asarray(subject.weights[subject.config.head][rows], np.float64)
        exact_TV[:, rows] = unembed(x_TD, head_VD)
    difference_TV = got_TV - exact_TV
    # A loss is blind to a constant at each position, and so are its derivatives.
    difference_TV -= difference_TV.mean(axis=-1, keepdims=True)
    finer = subject.precision.u / FLOAT64.u if in_float64 else 1.0
    floors = subject.floors_off(difference_TV, exact_TV, tokens[0], finer=finer)
    where = f" in {FLOAT64.name}" if in_float64 else ""
    if floors > LIMIT_FLOORS:
        raise NotExamined(
            f"its logits are wrong ({floors:.3g} noise floors{where}), and so its "
            "derivatives differ too"
        )
