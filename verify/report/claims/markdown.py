"""The ledger as a page of the documentation: the same bytes each time on the same checkpoint.

No times, no versions of what happens to be installed beyond what an answer is about, no paths.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_verify.claims.claim import Decided, Source
from gpt_verify.claims.debates import Debate
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims.messages import (
    ALARM,
    MARKS,
    answer,
    checkpoint,
    kinds,
    notes,
    settled,
    sign,
    sources,
    state,
    summary,
    verdict,
)


def render(report: ClaimsReport) -> str:
    """The page."""
    about = report.debate
    lines = [f"# {about.question if about else 'What people say of GPT-2, settled by tests'}"]
    if about:
        lines += ["", *_debate(about, report)]
    lines += [
        "",
        f"Written by `{report.repeat} --markdown OUT`. {summary(report)}. "
        "What is expected was written down beforehand ([ledger.md](ledger.md#verdicts)).",
        "",
        f"Measured on: {checkpoint(report)}.",
        "",
        f"The mark says whether the claim is true: {MARKS}. "
        "The letter says what the verdict rests on:",
        "",
        *(f"- **{letter}**: {words}" for letter, words in kinds(report).items()),
    ]
    for debate in report.debates if about is None else ():
        lines += ["", f"## {debate.question}", "", *_debate(debate, report)]
        lines += ["", f"The claims: those below that begin with `{debate.id}-`."]
    lines += [
        *([] if about else ["", "## All claims"]),
        "",
        "| claim | kind | verdict | what is said |",
        "|---|---|---|---|",
        *(
            f"| [{d.claim.id}](#{d.claim.id}) | {d.claim.kind.value} | {sign(d)} {verdict(d)} "
            f"| {_cell(d.claim.statement)} |"
            for d in report.claims
        ),
    ]
    for decided in report.claims:
        lines += ["", *_section(decided)]
    return "\n".join(lines) + "\n"


def _debate(debate: Debate, report: ClaimsReport) -> list[str]:
    return [
        "  \n".join(settled(debate, report)),
        "",
        "To check it without gpt-verify, with torch and transformers:",
        "",
        "```python",
        *debate.snippet.splitlines(),
        "```",
    ]


def _section(decided: Decided) -> list[str]:
    claim = decided.claim
    mark = f" ({ALARM})" if state(decided) == "failed" else ""
    return [
        f"## {claim.id}",
        "",
        f"> {claim.statement}",
        "",
        f"{sign(decided)} **{verdict(decided)}**{mark}. {answer(decided)}",
        "",
        *(line for note in notes(decided) for line in (note, "")),
        *(line for heading, texts in sources(decided).items() for line in _texts(heading, texts)),
        f"Test: `{decided.test}`. Repeat: `{decided.repeat}`.",
    ]


def _texts(heading: str, texts: Sequence[Source]) -> list[str]:
    linked = (
        f"[{s.author}, {s.title}]({s.link})" if s.link else f"{s.author}, {s.title}" for s in texts
    )
    return [f"{heading}: {'; '.join(linked)}.", ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
