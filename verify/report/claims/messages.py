"""Wording that every form of the ledger shares."""

from __future__ import annotations

from pathlib import Path

from gpt_verify.claims.claim import Decided, Kind, Source, Verdict
from gpt_verify.claims.debates import Debate
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.judging.selection import is_default
from gpt_verify.text import one_line

#: A verdict as it is shown: a mark, words, and the same where several are counted.
SHOWN = {
    Verdict.TRUE: ("✓", "true", "true"),
    Verdict.FALSE: ("✗", "false", "false"),
    Verdict.CORRECTED: ("≈", "true with a correction", "true with a correction"),
    Verdict.DEPENDS: ("~", "depends on weights", "depend on weights"),
    Verdict.UNDECIDABLE: ("?", "cannot be decided here", "cannot be decided here"),
}
#: A key to the marks, for those who meet them for the first time.
MARKS = ", ".join(f"{mark} {words}" for mark, words, _ in SHOWN.values())
#: What stands before a claim whose evidence says something else than the ledger expects.
ALARM = "NOT AS EXPECTED"
#: What the models that are asked are, where the name alone would mislead.
_ASKED = {"openai-tf": "openai-tf (OpenAI's graph, written anew)"}


def verdict(decided: Decided) -> str:
    """The verdict of the evidence, in a few words."""
    if decided.measured is None:
        return "not judged"
    words, holds = SHOWN[decided.measured.verdict][1], decided.measured.holds
    return words if holds is None else f"{words}: {'holds here' if holds else 'not so here'}"


def sign(decided: Decided) -> str:
    """The mark of the verdict: it says whether the claim is true, not whether the test passed."""
    return SHOWN[decided.verdict][0] if decided.verdict else "–"


def kinds(report: ClaimsReport) -> dict[str, str]:
    """The letter of each kind of claim that is there, and what it means in this run."""
    size = report.checkpoint["released"]
    if size:
        weights = f"measured and asserted, this being OpenAI's {size} (by sizes and vocabulary)"
    else:
        weights = (
            "measured, but not asserted in this run, which was not given a checkpoint that "
            "OpenAI released; given one by --checkpoint, it also asserts what the claim says"
        )
    meanings = {
        Kind.ARCHITECTURE.value: "follows from the architecture: decided on any checkpoint",
        Kind.WEIGHTS.value: f"depends on trained weights: {weights}",
        Kind.DOCUMENT.value: "about code or a document: decided on that code, or on code written "
        "anew after it, where the answer says so",
        Kind.NOT_DECIDABLE.value: "cannot be decided by running the model",
    }
    here = {decided.claim.kind.value for decided in report.claims}
    return {letter: words for letter, words in meanings.items() if letter in here}


def asked(decided: Decided) -> str:
    """The models and libraries that the evidence comes from."""
    names = decided.measured.asked if decided.measured else ()
    return ", ".join(_ASKED.get(name, name) for name in names)


def notes(decided: Decided) -> list[str]:
    """What an answer does not say: a proof, a criterion, and what was not asserted."""
    claim = decided.claim
    return [
        *([f"Proof: {claim.proof}"] if claim.proof else []),
        *([f"Our criterion: it is taken to hold where {claim.criterion}"] * bool(claim.criterion)),
        *([unasserted(decided)] if decided.unasserted else []),
    ]


def unasserted(decided: Decided) -> str:
    """What would be asserted of OpenAI's own weights; empty where it is, or there is nothing."""
    if not decided.unasserted:
        return ""
    said = "holds" if decided.claim.released else "does not hold"
    return f"Given OpenAI's released weights, the test asserts that this {said}; here it did not."


def state(decided: Decided) -> str:
    """``passed``, ``failed`` or ``not_examined``: whether the ledger stands."""
    if decided.contradicted:
        return "failed"
    return "passed" if decided.measured else "not_examined"


def settled(debate: Debate, report: ClaimsReport) -> tuple[str, ...]:
    """The answer to a debate, in two lines; what it lacks where that does not stand."""
    doubts = debate.doubts(report.claims)
    if not doubts:
        return debate.answer
    return (f"Not settled by this run. See {', '.join(doubts)}.",)


def complaint(decided: Decided) -> str:
    """Why a claim is not as expected; empty where it is."""
    measured = decided.measured
    if measured is None:
        return f"not judged: {one_line(decided.missing)}"
    if not decided.contradicted:
        return ""
    if measured.dissent:
        return f"the models disagree: {measured.dissent}"
    if decided.verdict is not decided.claim.expected:
        expected = SHOWN[decided.claim.expected][1]
        return f"the evidence says: {verdict(decided)}; expected was: {expected}"
    said = "should hold" if decided.claim.released else "should not hold"
    return f"it {said} on the released weights, and the evidence says otherwise"


def answer(decided: Decided) -> str:
    """The paragraph; where it does not stand, what was found instead."""
    return complaint(decided) or decided.answer


def source(of: Source) -> str:
    return f"{of.author}, {of.title}" + (f", {of.link}" if of.link else "")


def sources(decided: Decided) -> dict[str, list[Source]]:
    """Where it is said, and where it can be looked up: heading → texts, none of them empty."""
    said = [of for of in decided.claim.sources if of.said]
    see = [of for of in decided.claim.sources if not of.said]
    return {heading: found for heading, found in (("Said in", said), ("See", see)) if found}


def summary(report: ClaimsReport) -> str:
    """``73 claims: 40 true, …; all verdicts as expected``."""
    counts = {v: sum(d.verdict is v for d in report.claims) for v in Verdict}
    parts = [f"{n} {SHOWN[v][2 if n > 1 else 1]}" for v, n in counts.items() if n]
    parts += [f"{len(report.unjudged)} not judged"] * bool(report.unjudged)
    wrong = len(report.contradicted)
    end = f"{wrong} {ALARM}" if wrong else "all verdicts as expected"
    if report.unasserted:
        end += f"; {len(report.unasserted)} not asserted without OpenAI's released weights"
    n = len(report.claims)
    return f"{n} claim{'s' * (n != 1)}: {', '.join(parts)}; {end}"


def checkpoint(report: ClaimsReport) -> str:
    """The model's name, which is the same wherever it lies, if it is the default one."""
    c = report.checkpoint["config"]
    sizes = (
        f"{report.checkpoint['parameters']:,} parameters (vocab {c['n_vocab']}, ctx {c['n_ctx']}, "
        f"embd {c['n_embd']}, head {c['n_head']}, layer {c['n_layer']})"
    )
    if report.checkpoint["released"]:
        return f"OpenAI's {report.checkpoint['released']}: {sizes}"
    if is_default(Path(report.checkpoint["path"])):
        return f"default checkpoint: {sizes}"
    return f"{one_line(report.checkpoint['path'])}: {sizes}"
