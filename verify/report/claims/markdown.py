"""The ledger as a page of the documentation: the same bytes each time on the same checkpoint.

No times, no versions of what happens to be installed beyond what an answer is about, no paths.
"""

from __future__ import annotations

from gpt_verify.claims.claim import Decided, Kind
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.report.claims.messages import answer, checkpoint, state, summary, verdict

KINDS = {
    Kind.ARCHITECTURE: "follows from the architecture: decided on any checkpoint",
    Kind.WEIGHTS: "depends on trained weights: measured here, asserted on OpenAI's released ones",
    Kind.DOCUMENT: "about code or a document: decided on that code",
    Kind.NOT_DECIDABLE: "cannot be decided by running the model",
}


def render(report: ClaimsReport) -> str:
    """The page."""
    lines = [
        "# What people say of GPT-2, settled by tests",
        "",
        f"Written by `gpt-verify claims --markdown docs/claims.md`. {summary(report)}.",
        "",
        f"Measured on: {checkpoint(report)}.",
        "",
        *(f"- **{kind.value}**: {words}" for kind, words in KINDS.items()),
        "",
        "| claim | kind | verdict | what is said |",
        "|---|---|---|---|",
        *(
            f"| [{d.claim.id}](#{d.claim.id}) | {d.claim.kind.value} | {verdict(d)} "
            f"| {_cell(d.claim.statement)} |"
            for d in report.claims
        ),
    ]
    for decided in report.claims:
        lines += ["", *_section(decided)]
    return "\n".join(lines) + "\n"


def _section(decided: Decided) -> list[str]:
    claim = decided.claim
    mark = "" if state(decided) == "passed" else " (not as expected)"
    said = "; ".join(
        f"[{s.author}, {s.title}]({s.link})" if s.link else f"{s.author}, {s.title}"
        for s in claim.sources
    )
    return [
        f"## {claim.id}",
        "",
        f"> {claim.statement}",
        "",
        f"**{verdict(decided)}**{mark}. {answer(decided)}",
        "",
        *([f"Said in: {said}.", ""] if said else []),
        f"Test: `{decided.test}`. Repeat: `{decided.repeat}`.",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
