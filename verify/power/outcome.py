"""What came of one trial: a port with a fault, or a correct one, and what the suite said of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.findings import Verdict
from gpt_verify.power.injection import LOGITS, Injection


@dataclass(frozen=True)
class FaultOutcome:
    """The suite's judgement of one fault in one form.

    Attributes:
        injection: which fault, and how it was injected.
        family: of the fault.
        law: the check that must refute it; None where the fault changes nothing.
        inputs: ``short``, or ``default`` where the short ones did not show everything.
        verdict: of the suite.
        by_law: its own law was among those that failed.
        sites: where it acts, in order; empty where it has no site or hides all of them.
        first_divergence: where the suite says that it is.
        explained_by: the names that were given.
        instead: names that explain the same failures as well.
        same: of all these names, those of faults that make the very same function of this model.
        unlike: the port computed something else than the correct one does, to the last bit.
        floors: of a port that shows only logits: how far the fault moves them, in noise floors.
        baselines: the usual comparisons → whether each catches it; empty where they were not made.
        message: the first failure, or what went wrong.
        seconds: wall time.
    """

    injection: Injection
    family: str
    law: str | None
    inputs: str
    verdict: str
    by_law: bool
    sites: tuple[str, ...]
    first_divergence: str | None
    explained_by: tuple[str, ...]
    instead: tuple[str, ...]
    unlike: bool
    floors: float | None
    baselines: dict[str, bool]
    message: str
    seconds: float
    same: tuple[str, ...] = ()

    @property
    def detected(self) -> bool:
        return self.verdict == Verdict.REFUTED.value

    @property
    def localised(self) -> bool | None:
        """None where there is no site to name."""
        if not self.sites:
            return None
        return self.first_divergence in self.sites

    @property
    def explained(self) -> bool:
        """The fault is named, and nothing beside it: by its own name, or by that of another one
        that is the same function here. From logits alone it may be one of several that do the same
        to them, as far as noise lets see."""
        if len(self.explained_by) != 1:
            return False
        if self.injection.form == LOGITS and self.injection.fault in self.instead:
            return True
        return self.explained_by[0] in (self.injection.fault, *self.same)

    @property
    def wrong_names(self) -> tuple[str, ...]:
        """Names of faults that were given and are not the fault's, nor of one that is the same
        function; if it is said that the fault
        itself explains the same as well, they are not wrong, only not told apart. What was read off
        the numbers names no fault."""
        if self.injection.fault in self.instead:
            return ()
        known = {self.injection.fault, *self.same, *FORMS}
        return tuple(name for name in self.explained_by if name not in known)

    @property
    def expected(self) -> bool:
        """It must be refuted: it is a fault, and it changes something here."""
        return self.law is not None and self.unlike


@dataclass(frozen=True)
class CorrectOutcome:
    """The suite's judgement of one correct port.

    Attributes:
        variant: its name.
        seed: of the inputs.
        verdict: ``verified``, unless it is a false alarm.
        failures: what failed.
        explained_by: faults that were seen in it.
        baselines: the usual comparisons → whether each refuses it.
    """

    variant: str
    seed: int
    verdict: str
    failures: tuple[str, ...]
    explained_by: tuple[str, ...]
    baselines: dict[str, bool] = field(default_factory=dict)

    @property
    def false_alarm(self) -> bool:
        return self.verdict != Verdict.VERIFIED.value
