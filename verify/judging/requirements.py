"""``--require``: how much must have been examined, for a run to say anything.

What a port does not show is not examined, which is no failure. Where somebody relies on its being
examined, that is said here, and a port without it is unjudged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpt_verify.errors import UsageError, shortened
from gpt_verify.findings import Finding, Status, concerns
from gpt_verify.text import count, nearest, unseen

ALL = "all"
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")


@dataclass(frozen=True)
class Requirement:
    """One of them.

    Attributes:
        text: as it was given.
        law: whose checks must all be examined; None where a part of all checks is asked for.
        least: that part.
    """

    text: str
    law: str | None = None
    least: Fraction = Fraction(1)

    def unmet(self, findings: Sequence[Finding]) -> str | None:
        """A line that says what is missing; None where nothing is."""
        asked = [f for f in findings if self.law is None or concerns(self.law, f.id)]
        missing = [f for f in asked if f.status is Status.NOT_EXAMINED]
        seen = len(asked) - len(missing)
        if asked and seen >= self.least * len(asked):
            return None
        said = f"--require {self.text}: {seen} of {count(len(asked), 'check')} examined"
        if self.law is not None:
            said += "".join(
                f"; {checks}{f' at {sites}' if sites else ''}: {why}"
                for checks, sites, why in unseen(missing)
            )
        return said


def requirements(texts: Iterable[str]) -> tuple[Requirement, ...]:
    """Each of them understood: ``all``, ``90%``, or a law, or a part of one.

    Raises:
        UsageError: none of these.
    """
    return tuple(_requirement(text.strip()) for text in texts)


def _requirement(text: str) -> Requirement:
    from gpt_verify.laws.table import PARTS

    if text == ALL:
        return Requirement(text)
    if text.endswith("%"):
        return Requirement(text, least=_part(text))
    known = dict.fromkeys(name for part in PARTS for name in (part.id.partition(".")[0], part.id))
    if text not in known:
        raise UsageError(
            f"--require {shortened(text, 40)}: not all, N%, or a law (docs/laws.md)"
            f"{nearest(text, [ALL, *known])}"
        )
    return Requirement(text, law=text)


def _part(text: str) -> Fraction:
    """``90%``, ``99.5%``: exactly, so that no rounding decides."""
    if match := _PERCENT.fullmatch(text):
        part = Fraction(match[1]) / 100
        if 0 < part <= 1:
            return part
    raise UsageError(f"--require {shortened(text, 40)}: a part is more than 0% and at most 100%")
