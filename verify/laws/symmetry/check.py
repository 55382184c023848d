"""The law of symmetry: weights that are rewritten so that they mean the same give the same output.

A port is compared with itself, before and after, so this is a witness that knows no reference: that
it holds of GPT-2 follows from the paper. Only the noise floor is the oracle's, of the very weights
that were written. What is rewritten is exact in the port's format (``symmetry_transforms``), so
that in float64 a difference of 1e-12 is seen.

All rewritings are made at once at first, which takes as long as one. If the output stays the same,
each leaves it the same: two that do not could cancel only if they were made to. Otherwise each is
made alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.symmetry.families import family_symmetries
from gpt_verify.laws.symmetry.transforms import (
    Symmetry,
    heads,
    neurons,
    rotate,
    scale,
    shift,
    written,
)
from gpt_verify.laws.symmetry.trial import Change, Prepared, Trial, prepare, whole
from gpt_verify.laws.symmetry.writes import Stored
from gpt_verify.port import Floats


def check_heads(subject: Subject) -> Iterable[Finding]:
    """The order of the heads does not matter."""
    return [_held(subject, "heads")]


def check_neurons(subject: Subject) -> Iterable[Finding]:
    """The order of the MLP's neurons does not matter."""
    return [_held(subject, "neurons")]


def check_scale(subject: Subject) -> Iterable[Finding]:
    """Queries may be multiplied by what keys are divided by."""
    return [_held(subject, "scale")]


def check_rotate(subject: Subject) -> Iterable[Finding]:
    """Values may be rotated within a head, where c_proj rotates back."""
    return [_held(subject, "rotate")]


def check_shift(subject: Subject) -> Iterable[Finding]:
    """Nothing reads the mean of the residual stream."""
    return [_held(subject, "shift")]


def symmetries(subject: Subject) -> dict[str, Symmetry | str]:
    """By name; in the place of one that a model of this size does not have, why."""
    config, precision = subject.config, subject.precision
    if config.own is not None:
        names = (b"scale", b"rotate", b"heads", b"neurons")
        rng = {name.decode(): subject.rng(*name) for name in names}
        return family_symmetries(config, subject.weights, precision, rng)
    found: dict[str, Symmetry | str] = {
        "scale": scale(config, precision, subject.rng(*b"scale")),
        "rotate": rotate(config, precision, subject.rng(*b"rotate")),
        "heads": heads(config, subject.rng(*b"heads")),
        "neurons": neurons(config, subject.rng(*b"neurons")),
        "shift": shift(subject.weights, precision, written(config)),
    }
    if config.n_ctx == 1:
        found["scale"] = "one position attends to itself, whatever its query and key"
    if config.n_head == 1:
        found["heads"] = "one head has no other order"
    return found


@dataclass(frozen=True)
class AtOnce:
    """All rewritings of one port at once.

    Attributes:
        each: by name; in the place of what cannot be made, why.
        changes: of the logits, by arithmetic.
        unseen: those whose tensors the port computes with copies of.
    """

    each: dict[str, Prepared | str]
    changes: dict[str, Change]
    unseen: set[str]

    @property
    def wrong(self) -> bool:
        return any(change.wrong for change in self.changes.values())


def at_once(subject: Subject) -> AtOnce:
    """All rewritings at once, made once for all laws.

    Raises:
        NotExamined: none can be made, or the logits are not finite.
    """
    remembered = subject.memo
    if "symmetry" not in remembered:
        remembered["symmetry"] = _at_once(subject)
    result: AtOnce | str = remembered["symmetry"]
    if isinstance(result, str):
        raise NotExamined(result)
    return result


def _held(subject: Subject, name: str) -> Finding:
    result = at_once(subject)
    prepared = result.each[name]
    if isinstance(prepared, str):
        raise NotExamined(prepared)
    if result.wrong:
        return _alone(subject, prepared)
    if name in result.unseen:
        raise NotExamined("what is written to its weights does not show in its logits")
    return _finding(prepared, result.changes, at_once=True)


def _at_once(subject: Subject) -> AtOnce | str:
    """The result, or why there is none."""
    each: dict[str, Prepared | str] = {}
    try:
        stored = Stored(subject)
        with stored.put_back():
            for name, symmetry in symmetries(subject).items():
                try:
                    each[name] = (
                        symmetry
                        if isinstance(symmetry, str)
                        else prepare(subject, symmetry, stored)
                    )
                except NotExamined as reason:
                    each[name] = str(reason)
            some = {name: one for name, one in each.items() if isinstance(one, Prepared)}
            if not some:
                return AtOnce(each, {}, set())
            trial, every = Trial(subject, stored), whole(list(some.values()))

            def hidden(declared: Floats) -> set[str]:
                return {
                    name
                    for name, one in some.items()
                    if not trial.shows(every, declared, one.in_one_place)
                }

            unseen, changes = trial.changes(every, hidden)
            return AtOnce(each, changes, unseen)
    except NotExamined as reason:
        return str(reason)


def _alone(subject: Subject, prepared: Prepared) -> Finding:
    stored = Stored(subject)
    with stored.put_back():
        trial = Trial(subject, stored)

        def shown(declared: Floats) -> bool:
            return trial.shows(prepared, declared, prepared.places)

        seen, changes = trial.changes(prepared, shown)
        if not any(change.wrong for change in changes.values()):
            if not seen:
                raise NotExamined("what is written to its weights does not show in its logits")
            return _finding(prepared, changes)
        worst = max(changes, key=lambda name: changes[name].floors)
        where = trial.where(prepared, worst)
    return _finding(prepared, changes, where)


def _finding(
    prepared: Prepared,
    changes: dict[str, Change],
    where: Sequence[str] | None = None,
    at_once: bool = False,
) -> Finding:
    """Failed where there is a ``where``, of which nothing may be known."""
    symmetry = prepared.symmetry
    worst = max(changes, key=lambda name: changes[name].floors)
    score, details = changes[worst].floors, {name: c.floors for name, c in changes.items()}
    if where is None:
        within = ", ".join(f"{c.floors:.3g} noise floors in {n}" for n, c in changes.items())
        rest = ", and all else with it" if at_once else ""
        message = f"{symmetry.done}{rest}: within {within}"
        if prepared.left_out:
            message += f" (left out, being all alike: {', '.join(prepared.left_out)})"
    else:
        message = f"{changes[worst].message} after {symmetry.done}: {symmetry.wrong}"
        alone = {n: c.wrong for n, c in changes.items()}
        if len(alone) > 1 and not alone.pop("float64"):
            message += f", or it computes more coarsely than in {worst}"
        message += f"{symmetry.seen} {', '.join(where)}" if where else ""
    status = Status.PASSED if where is None else Status.FAILED
    law = f"symmetry.{symmetry.name}"
    return Finding(law, status, message, None, score, LIMIT_FLOORS, details)
