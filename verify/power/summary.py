"""What a campaign shows, in numbers, and whether they are as good as they must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_verify.power.baselines import COMPARISONS
from gpt_verify.power.campaign import Campaign, distinct
from gpt_verify.power.injection import EVERYWHERE, LOGITS, ONE_LAYER, TENSORFLOW
from gpt_verify.power.outcome import CorrectOutcome, FaultOutcome

#: Least part that must be explained, where the sites are shown and where only logits are.
EXPLAINED, EXPLAINED_LOGITS = 0.95, 0.80
#: Largest part that may be given a wrong name.
WRONG = 0.01


@dataclass(frozen=True)
class Counts:
    """How many of some faults there are, and for how many something is true in every form.

    Attributes:
        faults: distinct ones.
        detected: refuted.
        sited: have a site.
        localised: of these, how many are named at a correct one.
        explained: named, and nothing beside them.
        wrong: were given a wrong name.
    """

    faults: int
    detected: int
    sited: int
    localised: int
    explained: int
    wrong: int

    def as_dict(self) -> dict[str, int]:
        return {
            "faults": self.faults,
            "detected": self.detected,
            "with_a_site": self.sited,
            "localised": self.localised,
            "explained": self.explained,
            "wrong_names": self.wrong,
        }


def counts(outcomes: Sequence[FaultOutcome]) -> Counts:
    """A fault counts as detected (localised, explained) where it is in every form of these."""
    sited = [o for o in outcomes if o.sites]

    def always(of: Iterable[FaultOutcome], true: Callable[[FaultOutcome], bool]) -> int:
        of = list(of)
        not_so = {o.injection.fault for o in of if not true(o)}
        return len([name for name in distinct(of) if name not in not_so])

    return Counts(
        len(distinct(outcomes)),
        always(outcomes, lambda o: o.detected),
        len(distinct(sited)),
        always(sited, lambda o: bool(o.localised)),
        always(outcomes, lambda o: o.explained),
        len(distinct(o for o in outcomes if o.wrong_names)),
    )


def shown(campaign: Campaign) -> list[FaultOutcome]:
    """Faults that must be refuted, in torch ports that show everything."""
    injected = [o for o in campaign.injected if o.injection.form in (EVERYWHERE, ONE_LAYER)]
    quiet = {o.injection.fault for o in injected if not o.expected}
    return [o for o in injected if o.injection.fault not in quiet]


def harmless(campaign: Campaign) -> list[FaultOutcome]:
    """Faults that change nothing, here or anywhere, in ports that show everything."""
    return [
        o
        for o in campaign.injected
        if o.injection.form in (EVERYWHERE, ONE_LAYER) and o.law is None
    ]


def without_effect(campaign: Campaign) -> list[FaultOutcome]:
    """Faults that need something that this checkpoint does not have."""
    injected = [o for o in campaign.injected if o.injection.form != LOGITS]
    return [o for o in injected if o.law is not None and not o.unlike]


def unseen(campaign: Campaign) -> list[FaultOutcome]:
    """Faults that do not move the logits, or only by what softmax is blind to."""
    injected = [o for o in campaign.injected if o.injection.form == LOGITS]
    return [o for o in injected if o.law is not None and not o.unlike]


def in_logits(campaign: Campaign, visible: bool) -> list[FaultOutcome]:
    """Faults of ports that show only logits, which they move by a noise floor or more; or less."""
    return [
        o
        for o in campaign.injected
        if o.injection.form == LOGITS and o.expected and ((o.floors or 0.0) >= 1.0) == visible
    ]


def in_tensorflow(campaign: Campaign) -> list[FaultOutcome]:
    return [o for o in campaign.injected if o.injection.form == TENSORFLOW and o.expected]


def false_alarms(campaign: Campaign) -> list[CorrectOutcome]:
    return [o for o in campaign.correct if o.false_alarm]


@dataclass(frozen=True)
class Statement:
    """One number that must hold.

    Attributes:
        description: what it says.
        got: the number.
        of: of how many.
        least: at least this part of them.
        most: at most this part of them.
    """

    description: str
    got: int
    of: int
    least: float = 0.0
    most: float = 1.0

    @property
    def holds(self) -> bool:
        return self.least * self.of <= self.got <= self.most * self.of

    def __str__(self) -> str:
        limit = f"at least {self.least:.0%}" if self.least else f"at most {self.most:.0%}"
        limit = {"at least 100%": "all", "at most 0%": "none"}.get(limit, limit)
        verdict = "" if self.holds else ": DOES NOT HOLD"
        return f"{self.description}: {self.got} of {self.of} (must: {limit}){verdict}"


def statements(campaign: Campaign) -> list[Statement]:
    """Everything that is claimed of the suite; what was not tried is not claimed."""
    torch = counts(shown(campaign))
    logits = counts(in_logits(campaign, visible=True))
    tensorflow = counts(in_tensorflow(campaign))
    quiet = harmless(campaign)
    alarms = len(false_alarms(campaign))
    wrong = [o for o in campaign.injected if o.wrong_names]
    found = [
        Statement("faults detected", torch.detected, torch.faults, least=1),
        Statement("faults localised", torch.localised, torch.sited, least=1),
        Statement("faults explained", torch.explained, torch.faults, least=EXPLAINED),
        Statement("trials with a wrong name", len(wrong), len(campaign.injected), most=WRONG),
        Statement("from logits alone, detected", logits.detected, logits.faults, least=1),
        Statement(
            "from logits alone, explained", logits.explained, logits.faults, least=EXPLAINED_LOGITS
        ),
        Statement("in TensorFlow, detected", tensorflow.detected, tensorflow.faults, least=1),
        Statement(
            "what changes nothing, refuted", sum(o.detected for o in quiet), len(quiet), most=0
        ),
        Statement("false alarms in correct runs", alarms, len(campaign.correct), most=0),
    ]
    return [statement for statement in found if statement.of]


def holds(campaign: Campaign) -> bool:
    """All of it. Nothing tried is nothing shown."""
    claimed = statements(campaign)
    return bool(claimed) and all(statement.holds for statement in claimed)


def caught_by_baselines(outcomes: Sequence[FaultOutcome | CorrectOutcome]) -> dict[str, int]:
    """Usual comparison → how many of these it refuses."""
    return {name: sum(o.baselines.get(name, False) for o in outcomes) for name in COMPARISONS}


def compared(campaign: Campaign) -> list[FaultOutcome]:
    """The faults that the usual comparisons were tried on."""
    return [o for o in shown(campaign) if o.baselines]


def summary(campaign: Campaign) -> dict[str, Any]:
    """The numbers, by name."""
    torch = counts(shown(campaign)).as_dict()
    visible, below = in_logits(campaign, True), in_logits(campaign, False)
    logits = counts(visible)
    faults, correct = compared(campaign), campaign.correct
    by_baselines, alarms = caught_by_baselines(faults), caught_by_baselines(correct)
    return {
        **torch,
        "trials": len(campaign.injected),
        "wrong_name_trials": sum(bool(o.wrong_names) for o in campaign.injected),
        "harmless": len(distinct(harmless(campaign))),
        "harmless_refuted": len(distinct(o for o in harmless(campaign) if o.detected)),
        "without_effect": distinct(without_effect(campaign)),
        "correct_variants": len({o.variant for o in correct}),
        "correct_runs": len(correct),
        "false_alarms": len(false_alarms(campaign)),
        "logits_only": {
            "visible": logits.faults,
            "detected": logits.detected,
            "explained": logits.explained,
            "wrong_names": logits.wrong,
            "below_the_floor": len(below),
            "below_the_floor_explained": sum(o.explained for o in below),
        },
        "tensorflow": counts(in_tensorflow(campaign)).as_dict(),
        "peers": {
            name: {
                "caught": by_baselines[name],
                "of": len(faults),
                "false_alarms": alarms[name],
                "correct_runs": len(correct),
            }
            for name in by_baselines
        },
        "holds": holds(campaign),
    }
