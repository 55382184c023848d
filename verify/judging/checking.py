"""The laws of one port, one by one: here, or in other processes meanwhile."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from gpt_verify.errors import GptVerifyError, Refused, described
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.law import Part
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.table import CHECKS
from gpt_verify.laws.unchanged import Weights
from gpt_verify.process.memory import give_back, require
from gpt_verify.reference.config import Config
from gpt_verify.text import listing


@dataclass(frozen=True)
class Checked:
    """What came of one check.

    Attributes:
        findings: what it found; none where it was not examined.
        why: it was not.
    """

    findings: tuple[Finding, ...] = ()
    why: str | None = None


class Elsewhere(Protocol):
    """Other processes, which check some of the laws of this port meanwhile."""

    def takes(self, part: Part) -> bool:
        """Whether it is checked there: somebody has begun it. What nobody has begun is ours."""

    def checked(self, part: Part) -> Checked | None:
        """What came of it; None where it could not be checked there.

        Raises:
            ReferenceChanged: the port has changed the reference there.
        """


class Here:
    """No other process."""

    def takes(self, part: Part) -> bool:
        return False

    def checked(self, part: Part) -> Checked | None:
        return None


def check_laws(
    subject: Subject, held: Weights, asked: Collection[str] | None, elsewhere: Elsewhere
) -> Iterator[tuple[Part, Checked]]:
    """Every check, as it is done. What is found does not depend on where it is checked.

    Args:
        subject: the port.
        held: its weights, which the checks that write must leave as they were.
        asked: ids of the checks that are asked for; all where None. The others are left out.
        elsewhere: where some of them are checked.
    """
    late = []
    for part in CHECKS:
        if asked is not None and part.id not in asked:
            continue
        if elsewhere.takes(part):
            late.append(part)
        else:
            yield part, check(part, subject, held)
    for part in late:
        yield part, elsewhere.checked(part) or check(part, subject, held)


def check(part: Part, subject: Subject, held: Weights, room: bool = True) -> Checked:
    """One check, timed; each of its findings has taken as long as the others.

    Args:
        room: whether memory is asked for first.
    """
    start = time.perf_counter()
    done = _check(part, subject, held, room)
    give_back()
    spent = (time.perf_counter() - start) / max(len(done.findings), 1)
    return replace(done, findings=tuple(replace(f, seconds=spent) for f in done.findings))


def _check(part: Part, subject: Subject, held: Weights, room: bool) -> Checked:
    if why := part.lacking(subject):
        return Checked(why=why)
    if part.writes:
        if held.written:
            return Checked(why=f"its own calls write to its weights: {listing(held.written)}")
        held.note()
    try:
        if room:
            require(part.takes(subject.config))
        done = Checked(tuple(part.hold(subject)))
    except NotExamined as missing:
        done = Checked(why=str(missing))
    except (GptVerifyError, KeyboardInterrupt, SystemExit) as e:
        if not isinstance(e, Refused):
            raise
        done = Checked((_raised(part, subject.config, e),))
    except BaseException as e:
        done = Checked((_raised(part, subject.config, e),))
    if part.writes:
        held.hold(part.id)
    return done


def _raised(part: Part, config: Config, e: BaseException) -> Finding:
    """What a port raises on the inputs of a law fails it."""
    places = part.sites(config)
    site = places[0] if len(places) == 1 else None
    return Finding(part.id, Status.FAILED, f"the port raised {described(e)}", site)
