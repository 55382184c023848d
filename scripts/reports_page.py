"""Public bug reports that were rebuilt as small ports, judged, as one page: docs/reports.md.

    python scripts/reports_page.py --run                  # whatever the results have not yet
    python scripts/reports_page.py --run --seconds 40     # as many as begin in that time
    python scripts/reports_page.py --run --name qkv-by-head
    python scripts/reports_page.py --page                 # the page alone, from the results
    python scripts/reports_page.py                        # exit status 1 where the page is another

Of each report of ``tests/reports/`` two ports are judged under every law: one that has just the
fault of the report, and one that has not. Results are kept as those of ``scripts/outside_page.py``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expected import SIZE, base, command, flags, judged, summary
from figures import RESULTS, ROOT, marked
from reports.cases import LOG
from reports.record import GITHUB, Report

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize, synthesize_family
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.run import environment

RESULT = ROOT / RESULTS / "reports.json"
PAGE = ROOT / "docs" / "reports.md"
PORTS = ROOT / "tests" / "reports" / "ports.py"

TEXT = """# Bug reports, rebuilt

Written by `scripts/reports_page.py`; do not edit.

{count} public reports of bugs in ports of GPT-2 and of other decoders. Each was rebuilt as a pair
of small ports ([`tests/reports/`](../tests/reports)): one has just the fault of the report, the
other has not. Both were judged under every law, on a small synthetic GPT-2 or, where a family is
named, on the checkpoint that `gpt-verify synth --family` writes, with transformers' own model.

<!-- figures: {result} -->

Of the wrong ports {refuted} are refuted and {named} named; of the right ones {verified} of {count}
are verified.

{table}

*Found at*: the first site whose operation is wrong by itself, or the first check that fails. A
verdict in bold is not what it should be, and a name in italics says something else than the
report.
"""


def checkpoint_of(case: Report, folder: Path) -> Path:
    """A checkpoint for it, written once."""
    where = folder / (case.family or "gpt2")
    if not where.exists():
        if case.family:
            synthesize_family(where, case.family, None, 0)
        else:
            synthesize(where, resolve_size(SIZE), seed=0)
    return where


def stored() -> dict[str, Any]:
    """The results so far; none that were made with other laws, numerics, versions or models."""
    here = environment()
    if RESULT.is_file():
        found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
        same = all(found["environment"][key] == here[key] for key in ("versions", "made_with"))
        if same and found["base"] == base():
            found["reports"] = {
                name: made
                for name, made in found["reports"].items()
                if name in LOG and made["digest"] == LOG[name].digest
            }
            return found
    return {"size": SIZE, "base": base(), "reports": {}, "environment": here}


def measure(names: list[str], seconds: float) -> None:
    """Judge these pairs, as many as begin in that time. A right port that several share is judged
    once."""
    begun, result = time.monotonic(), stored()
    known: dict[Any, dict[str, Any]] = {
        (LOG[name].right, LOG[name].family): made["right"]
        for name, made in result["reports"].items()
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in names or [name for name in LOG if name not in result["reports"]]:
            if time.monotonic() - begun > seconds:
                break
            case = LOG[name]
            checkpoint = checkpoint_of(case, Path(folder))
            wrong = summary(judged(f"{PORTS}:wrong__{name}", checkpoint))
            if (case.right, case.family) not in known:
                right = summary(judged(f"{PORTS}:right__{name}", checkpoint))
                known[case.right, case.family] = right
            made = {"digest": case.digest, "right": known[case.right, case.family], "wrong": wrong}
            result["reports"][name] = made
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            words = made["right"]["verdict"], wrong["verdict"], *flags(case, wrong)
            print(name, *words, wrong["explained_by"], flush=True)
    print(f"{len(LOG) - len(result['reports'])} left", flush=True)


def link(thread: str) -> str:
    owner, name, kind, number = thread.split("/")
    return f"[{owner}/{name}#{number}]({GITHUB}{owner}/{name}/{kind}/{number})"


def rows(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| report | cause | wrong port | found at | named | right port |"
    yield "|---|---|---|---|---|---|"
    for name, case in LOG.items():
        if name not in found:
            continue
        wrong, right = found[name]["wrong"], found[name]["right"]
        holds = set(flags(case, wrong))
        where = wrong["first_divergence"] or next(iter(wrong["failed"]), "–")
        marks = "" if "named" in holds else "*"
        named = ", ".join(f"{marks}`{cause['fault']}`{marks}" for cause in wrong["causes"]) or "–"
        family = f" ({case.family})" if case.family else ""
        cells = [
            "<br>".join(map(link, case.links)),
            f"`{name}`{family}: {case.cause}",
            wrong["verdict"] if "detected" in holds else f"**{wrong['verdict']}**",
            f"`{where}`" if "detected" in holds else "–",
            named,
            right["verdict"] if right["verdict"] == "verified" else f"**{right['verdict']}**",
        ]
        yield f"| {' | '.join(cells)} |"


def page() -> str:
    """The page of the committed results."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    found = {name: made for name, made in result["reports"].items() if name in LOG}
    holds = [set(flags(LOG[name], made["wrong"])) for name, made in found.items()]
    text = TEXT.format(
        count=len(found),
        result=RESULT.name,
        refuted=sum("detected" in each for each in holds),
        named=sum("named" in each for each in holds),
        verified=sum(made["right"]["verdict"] == "verified" for made in found.values()),
        table="\n".join(rows(found)),
    )
    if missing := [name for name in LOG if name not in found]:
        text += f"\nNot judged yet: {', '.join(missing)}.\n"
    return marked(ROOT, text, made_with())


if __name__ == "__main__":
    command(__doc__, PAGE, page, measure)
