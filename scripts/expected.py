"""What came of a port that is wrong on purpose, beside what was expected of it.

For ``outside_page.py`` and ``reports_page.py``, which judge such ports and keep what is said here.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from figures import ROOT

from gpt_verify import run
from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.findings import PortReport, Status
from gpt_verify.laws.catalogue import CATALOGUE

sys.path.insert(0, str(ROOT / "tests"))

#: V, P, D, H, L: no two are equal, and an id does not fit into eight bits.
SIZE = "389,40,24,4,3"
BASES = ("gpt2.py", "picogpt.py")


class Expected(Protocol):
    """Of a fault, regular expressions that were written before it was judged."""

    @property
    def law(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def words(self) -> str: ...


def judged(port: str, checkpoint: Path) -> PortReport:
    """The report of one port, and the process as it was before."""
    import torch

    try:
        return run(port, checkpoint).ports[0]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)


def summary(report: PortReport) -> dict[str, Any]:
    """What is kept of a report."""
    failures = [f for f in report.findings if f.status is Status.FAILED]
    first: dict[str, str] = {}
    for finding in failures:
        # No directory of this machine stands in a result.
        message = finding.message.replace(f"{ROOT}/", "")
        first.setdefault(finding.id, message[:400])
    return {
        "verdict": report.verdict.value,
        "error": report.error and report.error.replace(f"{ROOT}/", ""),
        "first_divergence": report.first_divergence,
        "failed": first,
        "explained_by": list(report.explained_by),
        "causes": [
            {
                "fault": cause.fault,
                "note": cause.note,
                "sentence": sentence(cause.fault),
                "where": list(cause.where),
            }
            for cause in report.causes
        ],
        "not_examined": sorted({f.id for f in report.findings if f.status is Status.NOT_EXAMINED}),
        "seconds": round(report.seconds, 1),
    }


def sentence(name: str) -> str:
    """What a report says of a name."""
    return CATALOGUE[name].summary if name in CATALOGUE else FORMS.get(name, "")


def chance(words: str) -> float:
    """The share of the catalogue's names that these words would be found in."""
    sentences = [f"{name} {fault.summary}" for name, fault in CATALOGUE.items()]
    return sum(bool(re.search(words, each, re.I)) for each in sentences) / len(sentences)


def base() -> str:
    """A digest of the models that are altered, and of the checkpoint's size."""
    texts = [(ROOT / "tests/outside" / name).read_text(encoding="utf-8") for name in BASES]
    return hashlib.sha256("\n".join([SIZE, *texts]).encode()).hexdigest()[:12]


def said(cause: Mapping[str, Any]) -> str:
    return " ".join([cause["fault"], cause["sentence"], cause["note"]])


def flags(fault: Expected, made: Mapping[str, Any]) -> Iterator[str]:
    """What holds of one fault: ``detected``, ``placed``, ``named``, ``wrong``, ``also``."""
    if made["verdict"] != "refuted":
        return
    yield "detected"
    law = not fault.law or any(re.fullmatch(fault.law, check) for check in made["failed"])
    site = not fault.site or re.fullmatch(fault.site, made["first_divergence"] or "")
    if law and site:
        yield "placed"
    right = [bool(re.search(fault.words, said(cause), re.I)) for cause in made["causes"]]
    if any(right):
        yield "named"
        if not all(right):
            yield "also"
    elif right:
        yield "wrong"


def command(
    doc: str | None,
    path: Path,
    page: Callable[[], str],
    measure: Callable[[list[str], float], None],
) -> None:
    """Both scripts' command line: ``--run``, ``--name``, ``--seconds`` and ``--page``. Without any
    of them it is said whether the page is that of the results.

    Args:
        doc: of the script.
        path: of its page.
        page: makes it from the results.
        measure: judges those of these names, or what is not there yet, as many as begin in so
            many seconds.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--run", action="store_true", help="judge what is not there yet, and write the page"
    )
    parser.add_argument("--name", action="append", default=[], help="judge these, there or not")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--page", action="store_true", help="write the page from the results")
    arguments = parser.parse_args()
    if arguments.run or arguments.name:
        measure(arguments.name, arguments.seconds)
    if arguments.run or arguments.name or arguments.page:
        path.write_text(page(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != page():
        raise SystemExit(f"{path.name}: not the table of the results; --page")
