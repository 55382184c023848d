"""The ledger in a terminal: a line for each claim, or the answers where a few were asked for.

The mark before a claim is its verdict: ✗ is a claim that is false, and that is a good result. A
claim about which the evidence says something else than the ledger expects is announced in words.
"""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Protocol

from rich.color import ColorSystem
from rich.style import Style

from gpt_verify.claims.claim import Decided, Verdict
from gpt_verify.claims.debates import Debate
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims.messages import (
    ALARM,
    MARKS,
    SHOWN,
    answer,
    asked,
    checkpoint,
    complaint,
    notes,
    settled,
    sign,
    source,
    sources,
    state,
    summary,
    verdict,
)

COLOUR: dict[Verdict | None, str] = {
    Verdict.TRUE: "green",
    Verdict.FALSE: "bold red",
    Verdict.CORRECTED: "yellow",
    Verdict.DEPENDS: "cyan",
    Verdict.UNDECIDABLE: "magenta",
    None: "dim",
}
#: In a list there is less room than in an answer, which has the words of every other form.
_SHORT = {
    Verdict.CORRECTED: "true, corrected",
    Verdict.DEPENDS: "weights",
    Verdict.UNDECIDABLE: "undecidable here",
}
_WIDTH_OF_VERDICT = len("~ weights: not so here")


class Paint(Protocol):
    def __call__(self, text: str, style: str) -> str: ...


def _painted(text: str, style: str, *, colour: bool) -> str:
    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD) if colour else text


def render(report: ClaimsReport, *, full: bool, width: int = 100, colour: bool = False) -> str:
    """The report as text.

    Args:
        report: of a finished run.
        full: the answers too.
        width: in characters.
        colour: whether to use escape sequences.
    """
    paint = partial(_painted, colour=colour)
    blocks = [_heading(debate, report, width, paint) for debate in report.debates if full]
    if full:
        blocks += [_answer(decided, width, paint) for decided in report.claims]
    else:
        width_of_id = max((len(d.claim.id) for d in report.claims), default=0)
        lines = [_line(decided, width, width_of_id, paint) for decided in report.claims]
        blocks += ["\n".join(lines)]
    more = [] if full else [f"Marks: {MARKS}", *map(_pointer, report.debates), _MORE]
    end = "\n".join([paint(summary(report), _style_of(report)), *more])
    return "\n\n".join([checkpoint(report), *blocks, end]) + "\n"


_MORE = "The answers: gpt-verify claims ID …, or --markdown, --html, --json OUT"


def _pointer(debate: Debate) -> str:
    return f"{debate.question} gpt-verify claims {debate.id}"


def _style_of(report: ClaimsReport) -> str:
    if report.contradicted:
        return "bold reverse red"
    return "yellow" if report.unjudged else "bold"


def _heading(debate: Debate, report: ClaimsReport, width: int, paint: Paint) -> str:
    lines = [
        paint(debate.question, "bold"),
        "",
        *(line for part in settled(debate, report) for line in _filled(part, width)),
        "",
        "  To check it without gpt-verify, with torch and transformers:",
        "",
        *(f"    {line}".rstrip() for line in debate.snippet.splitlines()),
    ]
    return "\n".join(lines)


def _verdict(decided: Decided, paint: Paint) -> str:
    return paint(f"{sign(decided)} {verdict(decided)}", COLOUR[decided.verdict])


def _short(decided: Decided, paint: Paint) -> str:
    words = verdict(decided)
    if decided.verdict in _SHORT:
        words = words.replace(SHOWN[decided.verdict][1], _SHORT[decided.verdict])
    return paint(f"{sign(decided)} {words}".ljust(_WIDTH_OF_VERDICT), COLOUR[decided.verdict])


def _complaint(decided: Decided, paint: Paint) -> str:
    if state(decided) == "failed":
        return f"{paint(ALARM, 'bold reverse red')}: {complaint(decided)}"
    return complaint(decided)


def _line(decided: Decided, width: int, width_of_id: int, paint: Paint) -> str:
    left = width - width_of_id - _WIDTH_OF_VERDICT - 4
    said = textwrap.shorten(decided.claim.statement, max(20, left), placeholder=" …")
    lines = [f"{decided.claim.id:<{width_of_id}}  {_short(decided, paint)}  {said}"]
    if complaint(decided):
        lines.append(f"  {_complaint(decided, paint)}")
    return "\n".join(lines)


def _answer(decided: Decided, width: int, paint: Paint) -> str:
    claim = decided.claim
    below = {
        "asked": asked(decided),
        **{
            heading.split()[0].lower(): "; ".join(map(source, texts))
            for heading, texts in sources(decided).items()
        },
        "test": decided.test,
        "repeat": decided.repeat,
    }
    text = [f"  {_complaint(decided, paint)}"] * bool(complaint(decided)) or _filled(
        answer(decided), width
    )
    lines = [
        f"{claim.id}: {_verdict(decided, paint)}",
        *_filled(f"“{claim.statement}”", width),
        "",
        *text,
        *(line for note in notes(decided) for line in _filled(note, width)),
        "",
        *(f"  {f'{name}:':<7} {note}" for name, note in below.items() if note),
    ]
    return "\n".join(lines)


def _filled(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
