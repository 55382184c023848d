"""What a check says: measured, worded, and not yet judged by anybody else.

A check returns findings; it raises nothing and prints nothing. The verdict is drawn from them in
one place, and each report shows them in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gpt_verify.explanation import Explanation
from gpt_verify.shown import Shown


class Status(StrEnum):
    """What came of one check; a string as well."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_EXAMINED = "not_examined"


class Verdict(StrEnum):
    """What came of one port, or of a run; a string as well."""

    VERIFIED = "verified"
    REFUTED = "refuted"
    UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Named:
    """The known faults that explain a failure.

    Attributes:
        faults: their names in the catalogue (``gpt-verify power`` lists them); several where what
            was measured does not tell them apart.
        words: what was found out about it.
    """

    faults: tuple[str, ...]
    words: str = field(default="", compare=False)

    @property
    def fault(self) -> str | None:
        """The one that it is; None where it may be one of several."""
        return self.faults[0] if len(self.faults) == 1 else None


def naming(*faults: str | None, words: str = "") -> Named | None:
    """These faults; None where there is none among them."""
    known = tuple(fault for fault in faults if fault)
    return Named(known, words) if known else None


@dataclass(frozen=True)
class Finding:
    """One check at one place.

    Attributes:
        id: the check, ``law`` or ``law.part``: ``weights.values``, ``activations.local``.
        status: passed, failed, or not examined (and then the message says what was not shown).
        site: where, or None where the check has no place.
        score: the number that was compared with ``limit``; None where there is no number.
        limit: the largest score that a correct port reaches.
        message: one line; for a failure ``what[index] = got, should be expected ± budget``.
        named: the known faults that explain a failure; None where the check knows of none.
        tensors: of a failure, the tensors that are wrong, or have an incorrect derivative;
            ``lm_head`` for a head that is none of the checkpoint's.
        details: further numbers for the JSON report (scores by position, head, channel …).
        seconds: its share of the time that was spent on its check.
    """

    id: str
    status: Status
    message: str
    site: str | None = None
    score: float | None = None
    limit: float | None = None
    named: Named | None = field(default=None, kw_only=True)
    tensors: tuple[str, ...] = field(default=(), kw_only=True)
    details: dict[str, Any] = field(default_factory=dict, compare=False)
    seconds: float = field(default=0.0, compare=False, kw_only=True)

    @property
    def law(self) -> str:
        """The law that the check belongs to: ``activations`` of ``activations.local``."""
        return self.id.partition(".")[0]

    @property
    def part(self) -> str | None:
        """Which part of its law the check is: ``local``; None where the law has no parts."""
        return self.id.partition(".")[2] or None

    @property
    def fault(self) -> str | None:
        """The name of the one known fault that explains a failure, or None."""
        return None if self.named is None else self.named.fault

    def saying(self, before: str = "", after: str = "") -> Finding:
        """The same finding with more words around its message."""
        return replace(self, message=f"{before}{self.message}{after}")

    def explained(self, words: str) -> Finding:
        """The same failure with what explains it."""
        details = self.details | {"explanation": words}
        return replace(self.saying(after=f"; {words}"), details=details)

    def explained_by(self, other: Finding) -> Finding:
        """The same failure with what another finding says of it."""
        found = self.explained(other.message)
        return replace(found, details=other.details | found.details)

    def __str__(self) -> str:
        return f"{self.id} {self.site or ''}: {self.message}"


def concerns(law: str, check: str) -> bool:
    """Whether a name stands for a check: ``tying`` and ``tying.value`` both do for
    ``tying.value``."""
    return check == law or check.startswith(f"{law}.")


@dataclass(frozen=True)
class Cause:
    """One known fault, and the failures that it explains.

    Attributes:
        fault: its name in the catalogue (``gpt-verify power`` lists them).
        note: what else was found out about it: ``mantissa bit 3 of element [5]``; often empty.
        sites: whose operation is wrong by itself.
        tensors: that differ.
        laws: ids of checks that fail and name it.
        instead: other faults that explain the same failures as well.
        layers: of a fault that was found in the logits alone, where it is; None in all layers.
    """

    fault: str
    note: str = ""
    sites: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    @property
    def where(self) -> tuple[str, ...]:
        """All that it explains, each name once."""
        return tuple(dict.fromkeys((*self.laws, *self.tensors, *self.sites)))


def _some(places: tuple[str, ...]) -> str:
    """The first of them, and how many more there are."""
    more = len(places) - 1
    return f"{places[0]} and {more} more" if more else places[0]


@dataclass(frozen=True)
class Waiver:
    """A law that a port declares not to bind it.

    Attributes:
        law: ``law`` or ``law.part``.
        reason: the port's own.
        failures: how many failed checks it excuses.
    """

    law: str
    reason: str
    failures: int


#: The check that compares a port with the reference from one end to the other. Every other one
#: compares a part, or the port with itself, and could pass on another model.
END_TO_END = "logits"


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Refuted by one failure; verified only if its logits passed; otherwise unjudged."""
    found = list(findings)
    if any(finding.status is Status.FAILED for finding in found):
        return Verdict.REFUTED
    passed = (f.id == END_TO_END and f.status is Status.PASSED for f in found)
    return Verdict.VERIFIED if any(passed) else Verdict.UNJUDGED


def unanchored(findings: Iterable[Finding]) -> str | None:
    """Why nothing is verified, although something passed and nothing failed; None where that is
    not so."""
    found = list(findings)
    statuses = {finding.status for finding in found}
    if verdict(found) is not Verdict.UNJUDGED or Status.PASSED not in statuses:
        return None
    why = next((f.message for f in found if f.id == END_TO_END), "no logits were compared")
    return f"nothing is verified without its logits: {why}"


def layer_of(tensor: str) -> int | None:
    """The layer of ``h3/mlp/c_fc/w``; None of an embedding, the last norm or a head."""
    scope, slash, _ = tensor.partition("/")
    return int(scope[1:]) if slash and scope[1:].isdigit() else None


@dataclass(frozen=True)
class Place:
    """The place of a port's parameter in the checkpoint, for the report.

    Attributes:
        tensor: the checkpoint's name; None of a parameter that is no tensor.
        note: words that follow it: the layout, and how the tensor was found.
        sure: the values alone said which tensor it is, bit for bit.
    """

    tensor: str | None
    note: str = ""
    sure: bool = True

    @property
    def layer(self) -> int | None:
        return None if self.tensor is None else layer_of(self.tensor)

    def __str__(self) -> str:
        return f"{self.tensor or ''}{self.note}"


@dataclass(frozen=True)
class PortReport:
    """Everything that was found about one port.

    Attributes:
        name: as the report prints it.
        dtype: the precision that the port declares, and is judged in.
        device: ``cpu`` or ``cuda``.
        weights_from: ``"checkpoint"`` where they were converted from the checkpoint under test,
            ``"port"`` where they are the port's own, ``"both"``, or the directory or hub id that
            the port loaded them from.
        findings: every check, at every site.
        waived: the laws that the port declares not to bind it.
        remarks: what the port says of itself.
        error: why the port could not be judged (one line), or None.
        unmet: what had to be examined (``--require``) and was not, a line each.
        first_divergence: the earliest site at which an operation is wrong by itself, or None.
        explained_by: names of faults that explain the divergence.
        causes: the same, each with what it explains.
        explanations: what was tried at each site and tensor that is wrong by itself.
        mapping: the port's parameter name → what it is in the checkpoint.
        logits_floors: RMS error of the logits in noise floors, the distance to which rounding in
            the port's precision takes the logits of this input; None where they were not compared.
        seconds: wall time spent on this port.
        exception: what ``error`` words, with its traceback; not part of any report file.
    """

    name: str
    dtype: str
    device: str
    weights_from: str
    findings: tuple[Finding, ...] = ()
    waived: tuple[Waiver, ...] = ()
    remarks: tuple[str, ...] = ()
    error: str | None = None
    first_divergence: str | None = None
    explained_by: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    mapping: Mapping[str, Place] = field(default_factory=dict)
    logits_floors: float | None = None
    seconds: float = 0.0
    unmet: tuple[str, ...] = ()
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def explained(self) -> str | None:
        """The names in one line. Where none of them explains the first divergence, it is in part
        only, and each stands beside what it explains."""
        if not self.explained_by:
            return None
        first = self.first_divergence
        there = [f for f in self.findings if f.status is Status.FAILED and f.site == first]
        wrong = {*(f.id for f in there), *(name for f in there for name in f.tensors), first}
        whole = any(wrong.intersection((*c.sites, *c.tensors, *c.laws)) for c in self.causes)
        if first is None or whole or not self.causes:
            return f"explained by: {', '.join(self.explained_by)}"
        parts = [f"at {_some(c.where)} by {c.fault}" if c.where else c.fault for c in self.causes]
        return f"explained in part: {'; '.join(dict.fromkeys(parts))}"

    @property
    def verdict(self) -> Verdict:
        """Refuted by a finding; otherwise an error, or what was required, leaves it unjudged."""
        found = verdict(self.findings)
        if found is Verdict.VERIFIED and (self.error or self.unmet):
            return Verdict.UNJUDGED
        return found


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """One run: a checkpoint, the ports that were judged against it, and how to repeat it.

    Attributes:
        checkpoint: ``path``, ``format``, ``config``, ``parameters``, ``files`` (name → sha256).
        ports: what was found about each.
        inputs: ``lengths`` and ``seed``, or ``text``/``tokens``; enough to repeat the run.
        environment: versions and platform.
        repeat: the command line that repeats the run; a line of Python where a port was handed over
            in memory.
    """

    checkpoint: dict[str, Any]
    ports: tuple[PortReport, ...]
    inputs: dict[str, Any]
    environment: dict[str, Any]
    repeat: str

    @property
    def verdict(self) -> Verdict:
        """One refuted port refutes; all must be verified to verify; no port is no verdict."""
        verdicts = [port.verdict for port in self.ports]
        if Verdict.REFUTED in verdicts:
            return Verdict.REFUTED
        if verdicts and all(v is Verdict.VERIFIED for v in verdicts):
            return Verdict.VERIFIED
        return Verdict.UNJUDGED

    @property
    def exit_status(self) -> int:
        """0 verified, 1 refuted, 2 could not judge."""
        return {Verdict.VERIFIED: 0, Verdict.REFUTED: 1, Verdict.UNJUDGED: 2}[self.verdict]
