"""The comparison for whoever has reports in memory, or their files."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from gpt_verify.findings import Report
from gpt_verify.report.compare.comparison import Comparison, compare_reports
from gpt_verify.report.compare.stored import read_report


def compare(
    old: Report | str | PathLike[str],
    new: Report | str | PathLike[str],
    ports: Sequence[str] = (),
) -> Comparison:
    """Say what moved between two reports of one checkpoint and the same inputs.

    Args:
        old, new: what ``run`` returned, or the file of a JSON report.
        ports: none compares the ports of one name; one name compares that port of both sides, two
            the first of the old with the second of the new side.

    Returns:
        The comparison; ``comparison.worse`` counts what is worse, ``comparison.ports`` has every
        check of both sides.

    Raises:
        UsageError: a file that is no report, or two reports that say nothing of each other.

    Example:
        >>> before = gv.run(port, lengths=[5])
        >>> gv.compare(before, gv.run(port, lengths=[5])).worse
        0
    """
    reports = [r if isinstance(r, Report) else read_report(Path(r)) for r in (old, new)]
    names = [
        default if isinstance(r, Report) else str(r)
        for r, default in ((old, "the old report"), (new, "the new report"))
    ]
    return compare_reports(reports[0], reports[1], (names[0], names[1]), ports)
