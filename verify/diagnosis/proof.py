"""Proof of a diagnosis: the port against a reference that has the faults which were named.

If the names are right and nothing else is wrong, the port follows that reference from the tokens to
the logits as a correct port follows the correct one: to within its noise floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.port import damaged_tensors
from gpt_verify.faults.fault import OUTSIDE
from gpt_verify.findings import PortReport, Status
from gpt_verify.graph.call import Override
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.run import right, run
from gpt_verify.inputs import Input
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, Precision
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY, Port
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

Floats = NDArray[np.floating]
Tokens = NDArray[np.integer]

#: Tokens of the largest input that is compared, and how many inputs at most: every site of two
#: whole runs of one sequence is in memory at a time.
LARGEST, INPUTS = 160, 4
OWN = ("architecture", "activations.local")


@dataclass(frozen=True)
class Injected:
    """A named fault, and where the port has it.

    Attributes:
        fault: its name.
        layers: the blocks; None where it lies in none of them.
        sites: what it changes.
        tensors: of a damaged checkpoint: which.
        everywhere: it is in all layers.
    """

    fault: str
    layers: tuple[int, ...] | None
    sites: Mapping[str, Override] = field(compare=False)
    tensors: tuple[str, ...] = ()
    everywhere: bool = False

    def __str__(self) -> str:
        if self.tensors:
            return f"{self.fault} of {_listed(self.tensors)}"
        if self.layers is None:
            return self.fault
        if self.everywhere:
            return f"{self.fault} in all layers"
        which = "layer" if len(self.layers) == 1 else "layers"
        return f"{self.fault} in {which} {_listed(map(str, self.layers))}"


@dataclass(frozen=True)
class Proof:
    """How far the port is from the reference with the faults.

    Attributes:
        injected: the faults.
        floors: of each site, in noise floors of that reference.
        precision: what the port was run in.
        limit: largest distance of a correct port.
    """

    injected: tuple[Injected, ...]
    floors: dict[str, float]
    precision: str
    limit: float = LIMIT_FLOORS

    @property
    def worst(self) -> str:
        """The site that is farthest off."""
        return max(self.floors, key=self.floors.__getitem__)

    @property
    def holds(self) -> bool:
        return self.floors[self.worst] <= self.limit


def named_faults(report: PortReport, config: Config) -> list[Injected]:
    """The faults of a report that change what a forward pass computes, each with its place."""
    examined = {
        f.site for f in report.findings if f.id in OWN and f.status is not Status.NOT_EXAMINED
    }
    found = []
    for cause in report.causes:
        fault = CATALOGUE.get(cause.fault)
        if cause.tensors:
            found.append(Injected(cause.fault, None, {}, cause.tensors))
            continue
        if fault is None or not cause.sites:
            continue  # of a law, or unknown to the catalogue
        if not examined:  # it was found in the logits
            overrides = fault.overrides(config, cause.layers)
            found.append(_injected(cause.fault, _layers(overrides, config), overrides, config))
            continue
        layers = _layers(cause.sites, config)
        overrides = fault.overrides(config, layers) | {
            kind: act for kind, act in fault.sites.operations.items() if kind in OUTSIDE
        }
        overrides = {n: a for n, a in overrides.items() if n in cause.sites or n not in examined}
        found.append(_injected(cause.fault, layers, overrides, config))
    order = {site: i for i, site in enumerate(sites(config))}
    return sorted(found, key=lambda p: min((order[site] for site in p.sites), default=-1))


def _layers(names: Iterable[str], config: Config) -> list[int]:
    """The layers in which some sites lie."""
    layers = {sites(config)[name].layer for name in names}
    return sorted(layer for layer in layers if layer is not None)


def _injected(
    name: str, layers: Sequence[int], overrides: Mapping[str, Override], config: Config
) -> Injected:
    return Injected(
        name, tuple(layers) or None, overrides, everywhere=len(layers) == config.n_layer > 1
    )


def prove(subject: Subject, injected: Sequence[Injected], inputs: Sequence[Input]) -> Proof:
    """Run the port and the reference with the faults, and compare every site that both have.

    In float64 where the port can be run so: then nothing hides. Where a fault rounds coarsely, a
    difference in the last bit before it becomes a step after it; the reference goes on from what
    the port has there, which the diagnosis has explained from the port's own input.

    Args:
        subject: the port, with its parameters and their matching.
        injected: what the reference has.
        inputs: the longest of those that are short enough are used.

    Raises:
        NotExamined: a fault rounds coarsely, and the port does not show where.
    """
    _, own = damaged_tensors(subject)
    wanted = {tensor for fault in injected for tensor in fault.tensors}
    own = {name: value for name, value in own.items() if name in wanted}
    overrides = {site: act for fault in injected for site, act in fault.sites.items()}
    if "lm_head" in own:
        overrides["logits"] = lambda call: call.x @ call.w("lm_head").T
    quantising = {site for fault in injected if is_quantising(fault) for site in fault.sites}
    port = subject.port
    offers = port.offers()
    if quantising and ACTIVATIONS not in offers:
        raise NotExamined("a fault that rounds coarsely cannot be followed through the logits")
    float64 = offers.get(FLOAT64_COPY) if ACTIVATIONS in offers else None
    precision = FLOAT64 if float64 else subject.precision
    distances: dict[str, _Distance] = {}
    with float64() if float64 else nullcontext(port) as shown, np.errstate(all="ignore"):
        for item in _chosen(inputs):
            for row in item.tokens:
                steps = _shown(shown, quantising, row) if quantising else {}
                reference = _Faulted(subject, own, overrides | steps, precision, row)

                def visit(
                    site: str,
                    value: Floats,
                    narrowest: str | None = None,
                    reference: _Faulted = reference,
                ) -> None:
                    distance = distances.setdefault(site, _Distance())
                    distance.add(value[0], *reference.sites[site], precision.u)

                if activations := shown.offers().get(ACTIVATIONS):
                    activations(row[None], visit)
                else:
                    visit("logits", shown.logits(row[None]))
    floors = {site: distance.floors for site, distance in distances.items()}
    return Proof(tuple(injected), floors, precision.name)


def is_quantising(injected: Injected) -> bool:
    """It rounds coarsely (``AtSites.quantising``)."""
    return injected.fault in CATALOGUE and CATALOGUE[injected.fault].sites.quantising


def _shown(port: Port, places: set[str], tokens_T: Tokens) -> dict[str, Override]:
    """What the port has at some sites, in place of what the reference would compute there."""
    values: dict[str, Floats] = {}

    def keep(site: str, value: Floats, narrowest: str | None = None) -> None:
        if site in places:
            values[site] = np.array(value[0], np.float64)

    port.offers()[ACTIVATIONS](tokens_T[None], keep)

    def given(value: Floats) -> Override:
        return lambda call: value

    return {site: given(value) for site, value in values.items()}


def _chosen(inputs: Sequence[Input]) -> list[Input]:
    short = [item for item in inputs if item.tokens.size <= LARGEST]
    short = short or [min(inputs, key=lambda item: item.tokens.size)]
    return sorted(short, key=lambda item: -item.tokens.size)[:INPUTS]


class _Faulted:
    """Every site of a reference with faults: exact, and with the rounding of a precision."""

    def __init__(
        self,
        subject: Subject,
        own: Mapping[str, Floats],
        overrides: Mapping[str, Override],
        precision: Precision,
        tokens_T: Tokens,
    ) -> None:
        narrow = FLOAT32 if precision.name == "float64" else precision
        exact, stored = Widened(subject.weights), subject.weights

        def among(tensors: Callable[[str], Floats]) -> Callable[[str], Floats]:
            return lambda name: own[name] if name in own else tensors(name)

        def rounded(act: Override) -> Override:
            return lambda call: narrow.round(act(call))

        config = subject.config
        noisy_overrides = {name: rounded(overrides.get(name, right)) for name in sites(config)}
        runs = (
            run(among(exact.__getitem__), config, tokens_T, overrides, keep=None),
            run(
                among(stored.__getitem__), config, tokens_T, noisy_overrides, np.float32, keep=None
            ),
        )
        scale = precision.u / narrow.u
        self.sites = {
            site: (value, (np.asarray(noisy, np.float64) - value) * scale)
            for (site, value), (_, noisy) in zip(*runs, strict=True)
        }


class _Distance:
    """Squared error and squared floor of one site over some sequences."""

    def __init__(self) -> None:
        self._error = self._floor = 0.0

    def add(self, got: Floats, exact: Floats, noise: Floats, u: float) -> None:
        """One rounding of each element is allowed where the noise happens to be none."""
        error = np.asarray(got, np.float64) - exact
        error = np.where(np.isfinite(error) | (got == exact), error, np.inf)
        floor = noise**2 + (u * exact) ** 2
        if error.ndim == 3:  # what is masked may be anything
            below = np.tri(*error.shape[-2:], dtype=np.bool_)
            error, floor = np.where(below, error, 0.0), np.where(below, floor, 0.0)
        self._error += float(np.sum(error**2))
        self._floor += float(np.sum(floor))

    @property
    def floors(self) -> float:
        if self._error == 0.0:
            return 0.0
        return float(np.sqrt(self._error / self._floor)) if self._floor > 0 else float("inf")


def _listed(names: Iterable[str]) -> str:
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last
