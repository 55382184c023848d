"""What is checked for one port, in order: its weights, its sites, its logits, and every law."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.diagnosis.logits import forget_deviations
from gpt_verify.diagnosis.port import Diagnosis, diagnose
from gpt_verify.errors import (
    described,
)
from gpt_verify.findings import END_TO_END, Finding, Place, Status, concerns
from gpt_verify.inputs import Input
from gpt_verify.judging.calls import again, kept, returned, visited
from gpt_verify.judging.checking import Elsewhere, Here, check_laws
from gpt_verify.judging.last_position import (
    REMARKS,
    LastPositionOnly,
    after,
    ask_by_prefixes,
    asked,
    looks_so,
    returns_the_last_only,
)
from gpt_verify.judging.prepare import Prepared, prepare
from gpt_verify.judging.raising import Raising
from gpt_verify.laws.activations.check import SiteComparison
from gpt_verify.laws.activations.constants import with_constants
from gpt_verify.laws.determinism.check import Determinism
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.laws.subject import FirstCall, NotExamined, Subject
from gpt_verify.laws.table import CHECKS, PARTS, expected_checks
from gpt_verify.laws.tying.check import with_stored_graph
from gpt_verify.laws.unchanged import Weights
from gpt_verify.laws.weights.check import check_weights
from gpt_verify.laws.weights.unplaced import with_unplaced
from gpt_verify.matching.folding import NOT_TIED
from gpt_verify.numerics.precision import FLOAT64, PRECISIONS, Precision
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY, LAST, META_GRAPH
from gpt_verify.process.memory import give_back
from gpt_verify.process.state import Loading
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.port import Port, Tokens


Floats = NDArray[np.floating]


#: Why something was not examined that the caller left out.
NOT_ASKED = "not asked for"
#: Why something was not examined after the first failure.
STOPPED = "stopped at the first failure (--fail-fast)"
#: Of the findings, whichever process was the first to find one.
_ORDER = {part.id: at for at, part in enumerate(PARTS)}


class Steps(Protocol):
    """The part of ``gpt_verify.judging.progress.Progress`` that is needed here."""

    def port(self, name: str, steps: int) -> None: ...

    def step(self, what: str) -> None: ...

    def fails(self, finding: Finding) -> None: ...


def _failures(findings: Sequence[Finding]) -> list[Finding]:
    """What had failed when a run broke off; the rest was not examined in full."""
    return [finding for finding in findings if finding.status is Status.FAILED]


class _Stopped(Exception):
    """Something failed, and that is all that was asked for."""


class Examination:
    """One port, held to every law: what was found so far, and why the rest was not.

    Attributes:
        findings: so far.
        mapping: parameter → what it is.
        remarks: what a reader must know of how the port was judged.
        logits_floors: how far its logits are from the reference's, RMS, in noise floors.
        exception: what ended it early.
        diagnosis: why it failed.
        sites: whether its sites are compared, where it shows them.
        loading: the state of the process before and after the port was built.
        glance: called at every site: has anybody replaced the reference?
        fail_fast: nothing is examined after the first failure.
        waived: laws whose failures the port has excused: they stop nothing.
        build: builds another port as this one was built; None where nobody knows how.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        inputs: Sequence[Input],
        progress: Steps,
        seed: int,
        laws: Collection[str] | None = None,
        shared: SharedWeights | None = None,
        sites: bool = True,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.sites = sites
        self._elsewhere = elsewhere or Here()
        self.shared = shared or SharedWeights(checkpoint.tensors, record=False)
        self.checkpoint, self.inputs, self.progress = checkpoint, inputs, progress
        self.seed, self.laws = seed, laws
        self.findings: list[Finding] = []
        self.mapping: dict[str, Place] = {}
        self.remarks: tuple[str, ...] = ()
        self.tied = checkpoint.config.tied
        self.logits_floors: float | None = None
        self.exception: BaseException | None = None
        self.diagnosis = Diagnosis()
        self.loading: Loading | None = None
        self._first_call: FirstCall | None = None
        self.glance: Callable[[], None] = lambda: None
        self.fail_fast = self._told = False
        self.waived: Collection[str] = ()
        self.build: Callable[[], Port] | None = None
        self._comparisons: dict[str, SiteComparison] = {}
        self._why: dict[str, str] = {}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What is found meanwhile has taken that long, each finding as long as the others."""
        start, before = time.perf_counter(), len(self.findings)
        try:
            yield
        finally:
            new = self.findings[before:]
            spent = (time.perf_counter() - start) / max(len(new), 1)
            self.findings[before:] = [replace(finding, seconds=spent) for finding in new]

    def forget(self) -> None:
        """What was found by a reference that was changed is worth nothing, to this port and to
        the next."""
        self.findings, self.logits_floors, self.diagnosis = [], None, Diagnosis()
        self.shared.forget()
        forget_deviations()

    def _on_site(self, site: str) -> None:
        self.glance()
        self.progress.step(site)

    def steps(self, port: Port) -> int:
        """How often ``progress.step`` will be called."""
        offers = port.offers()
        sited = len(sites(self.checkpoint.config)) if ACTIVATIONS in offers else 0
        laws = len(CHECKS) if self.laws is None else sum(p.id in self.laws for p in CHECKS)
        passes = len(self.inputs) * max(1, sited) + laws
        if FLOAT64_COPY in offers:
            passes += sited * sum(item.in_float64 for item in self.inputs)
        return passes

    def examine(self, port: Port) -> None:
        """Weights, then architecture in float64, then the numbers in the declared precision; then
        everything that follows from them alone, the laws."""
        prepared = prepare(port, self.checkpoint, self.shared)
        self.checkpoint = prepared.checkpoint
        subject = prepared.subject(self.seed, self.loading)
        try:
            self._all_of(port, prepared, subject)
        except _Stopped:
            self._why |= {part.id: STOPPED for part in PARTS if part.id not in self._why}
        self.findings.sort(key=lambda found: _ORDER.get(found.id, len(_ORDER)))
        if self.checkpoint.config.tied != self.tied:
            self._why |= {law.id: NOT_TIED for law in CHECKS if concerns("tying", law.id)}
        self.diagnosis = diagnose(subject, self._comparisons, tuple(self.findings))
        with self._timed():
            self._stored_graph(port, prepared.weights)

    def _all_of(self, port: Port, prepared: Prepared, subject: Subject) -> None:
        """Everything but the diagnosis.

        Raises:
            _Stopped: something failed, and no more was asked for.
        """
        weights = prepared.weights
        with self._timed():
            self._weights(prepared)
        held = Weights(port.name, prepared.parameters)
        if self.laws is None or self.laws:
            held.note()
        if {ACTIVATIONS, FLOAT64_COPY} <= set(port.offers()):
            self._recognise(port)
        with self._timed():
            self._architecture(port, weights)
        self._go_on()
        give_back()
        with self._timed():
            try:
                self._numbers(port, weights, subject)
            except LastPositionOnly:
                self._numbers(port, weights, subject)
        if prepared.matching is not None:
            self.findings = with_unplaced(
                self.findings, prepared.parameters, prepared.matching, self.checkpoint.config
            )
        self._go_on()
        give_back()
        subject.first_call, subject.build = self._first_call, self.build
        ends = [found.status for found in self.findings if found.id == END_TO_END]
        subject.logits_right = bool(ends) and set(ends) == {Status.PASSED}
        held.after_calls()
        subject.written = held.written
        if self.laws is not None:
            self._why |= {part.id: NOT_ASKED for part in CHECKS if part.id not in self.laws}
        for part, done in check_laws(subject, held, self.laws, self._elsewhere):
            self.findings += done.findings
            if done.why is not None:
                self._why[part.id] = done.why
            self.progress.step(part.id)
            self._go_on()

    def _go_on(self) -> None:
        """Nothing has failed yet, or all is asked for. A weight that was not found is no failure
        until the logits are known."""
        failed = [f for f in self._standing(self.findings) if not concerns("weights", f.id)]
        if failed and not self._told:
            self._told = True
            self.progress.fails(failed[0])
        if failed and self.fail_fast:
            raise _Stopped

    def _enough(self, findings: Callable[[], Sequence[Finding]]) -> bool:
        """Whether no further input is asked for."""
        return self.fail_fast and bool(self._standing(findings()))

    def _standing(self, findings: Sequence[Finding]) -> list[Finding]:
        """The failures that are not excused."""
        failed = _failures(findings)
        return [f for f in failed if not any(concerns(law, f.id) for law in self.waived)]

    def _weights(self, prepared: Prepared) -> None:
        """Compare the port's weights with the checkpoint's."""
        matching, folding = prepared.matching, prepared.folding
        if matching is None:
            self._why["weights"] = "the port does not show its weights"
            return
        self.mapping = matching.places()
        if folding is not None:
            self.remarks += (folding.remark,)
            self.mapping |= folding.places(matching)
        config, weights = self.checkpoint.config, prepared.weights
        self.findings += check_weights(prepared.parameters, matching, config, weights, folding)

    def _recognise(self, port: Port) -> bool:
        """Whether it turns out to return the logits of the last position only. Then it is asked
        for the others prefix by prefix from now on."""
        if port.by_prefixes or not returns_the_last_only(port, self.checkpoint.config):
            return False
        ask_by_prefixes(port)
        self.remarks += REMARKS
        return True

    def _architecture(self, port: Port, weights: DeclaredWeights) -> None:
        law = "architecture"
        if not self.sites:
            self._why[law] = NOT_ASKED
            return
        float64 = port.offers().get(FLOAT64_COPY)
        if float64 is None or ACTIVATIONS not in port.offers():
            why = port.not_in_float64 if float64 is None else ""
            self._why[law] = why or "the port cannot be run in float64 with its sites shown"
            return
        comparison = self._comparison(weights, port, FLOAT64, cascaded=False)
        try:
            with float64() as float64_copy:
                activations, raising = (
                    float64_copy.offers()[ACTIVATIONS],
                    Raising(float64_copy.logits),
                )
                for item in self.inputs:
                    if item.in_float64:
                        comparison.begin(item.tokens, item.name)
                        with raising.on(item):
                            activations(item.tokens, comparison)
                        if self._enough(partial(comparison.local_findings, law)):
                            break
                raising.settled()
        except NotExamined as missing:
            self._why[law] = str(missing)
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:
            self._why[law] = f"the port does not run in float64: {described(e)}"
            self.findings += _failures(comparison.local_findings(law))
            return
        self._comparisons[law] = comparison
        self.findings += with_constants(
            comparison.local_findings(law), port.odd_constants, self.checkpoint.config
        )

    def _numbers(self, port: Port, weights: DeclaredWeights, subject: Subject) -> None:
        repeats, raising = Determinism(subject), Raising(partial(returned, port))
        activations = port.offers().get(ACTIVATIONS)
        if activations is None or not self.sites:
            shown = "the port shows nothing but logits"
            self._why["activations"] = NOT_ASKED if self.sites is False else shown
            logits = LogitsComparison(self.checkpoint.config, weights, PRECISIONS[port.dtype])
            for item in self.inputs:
                logits.begin()
                with raising.on(item):
                    first = self._first(port, item, partial(returned, port))
                    self._begun(item, first)
                    if not port.by_prefixes:
                        logits.add_again(item.tokens, first)
                    again(port, item, first, repeats, logits)
                    if last := port.offers().get(LAST):
                        at = asked(item.tokens.shape[1])
                        logits.add_again(item.tokens, after(last, item.tokens, at), at=at)
                self.progress.step(item.name)
                if self._enough(logits.findings):
                    break
            raising.settled()
        else:
            comparison = self._comparison(weights, port, PRECISIONS[port.dtype], cascaded=True)
            logits = comparison.logits
            watched = partial(visited, activations, comparison)
            try:
                for item in self.inputs:
                    comparison.begin(item.tokens, item.name)
                    with raising.on(item):
                        first = self._first(port, item, watched)
                        self._begun(item, first)
                        comparison.returned(first)
                        if last := port.offers().get(LAST):
                            at = asked(item.tokens.shape[1])
                            comparison.returned(after(last, item.tokens, at), at)
                        # The second run is not watched: an instrument that changes what it
                        # measures would show here.
                        again(port, item, first, repeats, logits)
                    if self._enough(partial(comparison.local_findings, "activations.local")):
                        break
                raising.settled()
            except LastPositionOnly:
                raise
            except BaseException:
                self.findings += _failures(comparison.local_findings("activations.local"))
                raise
            self._comparisons["activations.local"] = comparison
            self.findings += comparison.local_findings("activations.local")
            self.findings += comparison.cascaded_findings("activations.cascaded")
        self.logits_floors = logits.floors
        self.inputs = raising.ran
        shortest = min(self.inputs, key=lambda item: item.tokens.size)
        self.findings += raising.findings(logits.findings())
        self.findings += repeats.findings(port, shortest.tokens)

    def _begun(self, item: Input, logits_BTV: Floats) -> None:
        """What the very first call returned is asked for once more at the end."""
        if self._first_call is None and logits_BTV.shape[:2] == item.tokens.shape:
            tokens_T = np.asarray(item.tokens[0], np.int64)
            self._first_call = FirstCall(tokens_T, np.array(logits_BTV[0, -1]))

    def _first(self, port: Port, item: Input, run: Callable[[Tokens], object]) -> Floats:
        """The logits of a port's first run on an input.

        Raises:
            LastPositionOnly: they are those of the last position, which was not known until now.
        """
        first = kept(port, run(item.tokens))
        config = self.checkpoint.config
        if looks_so(first.shape, item.tokens, config) and self._recognise(port):
            raise LastPositionOnly
        return first[:, None] if port.by_prefixes and first.ndim == 2 else first

    def _stored_graph(self, port: Port, weights: DeclaredWeights) -> None:
        """A forward graph that came with the checkpoint computes the same logits, and is tied."""
        meta_graph = port.offers().get(META_GRAPH)
        if meta_graph is None:
            return
        law, item = "graph.meta", max(self.inputs, key=lambda item: item.tokens.shape[1])
        graph = meta_graph(item.tokens)
        self.findings = with_stored_graph(self.findings, graph)
        if not graph.found or graph.logits is None:
            self.findings.append(Finding(law, Status.NOT_EXAMINED, graph.description, "logits"))
            return
        logits = LogitsComparison(self.checkpoint.config, weights, PRECISIONS[port.dtype])
        logits.add(item.tokens, graph.logits)
        self.findings += [
            replace(finding.saying(before=f"{graph.description}: "), id=law)
            for finding in logits.findings()
        ]

    def _comparison(
        self, weights: DeclaredWeights, port: Port, precision: Precision, cascaded: bool
    ) -> SiteComparison:
        return SiteComparison(
            self.checkpoint.config,
            weights,
            precision,
            declared=PRECISIONS[port.dtype],
            cascaded=cascaded,
            on_site=self._on_site,
            last_only=port.by_prefixes,
        )

    def complete(self, error: str | None) -> list[Finding]:
        """Every expected check has its finding: what was not reached is named as such."""
        found = {(f.id, f.site): f for f in self.findings}
        complete = []
        for check in expected_checks(self.checkpoint.config):
            law, site = check
            if check in found:
                complete.append(found.pop(check))
                continue
            of_law = (why for name, why in self._why.items() if concerns(name, law))
            why = self._why.get(law) or next(of_law, error)
            complete.append(
                Finding(
                    law, Status.NOT_EXAMINED, why or "this part of the run was not reached", site
                )
            )
        return complete + list(found.values())
