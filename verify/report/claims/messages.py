"""Wording that every form of the ledger shares."""

from __future__ import annotations

from pathlib import Path

from gpt_verify.claims.claim import Decided, Source, Verdict
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.judging.selection import is_default
from gpt_verify.text import one_line


def verdict(decided: Decided) -> str:
    """The verdict of the evidence, in a word or two."""
    return decided.verdict.value if decided.verdict else "not judged"


def state(decided: Decided) -> str:
    """``passed``, ``failed`` or ``not_examined``: whether the ledger stands."""
    if decided.contradicted:
        return "failed"
    return "passed" if decided.measured else "not_examined"


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
        return f"the evidence says {verdict(decided)}; expected was {decided.claim.expected.value}"
    said = "should hold" if decided.claim.released else "should not hold"
    return f"it {said} on the released weights, and the evidence says otherwise"


def answer(decided: Decided) -> str:
    """The paragraph; where it does not stand, what was found instead."""
    return complaint(decided) or decided.answer


def source(of: Source) -> str:
    return f"{of.author}, {of.title}" + (f", {of.link}" if of.link else "")


def sources(decided: Decided) -> str:
    return "; ".join(source(of) for of in decided.claim.sources) or "common; no one source"


def summary(report: ClaimsReport) -> str:
    """``73 claims: 40 true, …; all as expected``."""
    counts = {v: sum(d.verdict is v for d in report.claims) for v in Verdict}
    parts = [f"{n} {v.value}" for v, n in counts.items() if n]
    parts += [f"{len(report.unjudged)} not judged"] * bool(report.unjudged)
    wrong = len(report.contradicted)
    end = "all as expected" if not wrong else f"{wrong} not as expected"
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
