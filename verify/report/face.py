"""The files and the text of a result, for whoever has it in memory."""

from __future__ import annotations

from gpt_verify.claims.run import ClaimsReport
from gpt_verify.errors import UsageError
from gpt_verify.findings import Report
from gpt_verify.judging.lens import LensReport
from gpt_verify.report import html as report_html
from gpt_verify.report import json as report_json
from gpt_verify.report import terminal as report_terminal
from gpt_verify.report.claims import html as claims_html
from gpt_verify.report.claims import json as claims_json
from gpt_verify.report.claims import terminal as claims_terminal
from gpt_verify.report.compare import json as compare_json
from gpt_verify.report.compare import terminal as compare_terminal
from gpt_verify.report.compare.comparison import Comparison
from gpt_verify.report.lens import html as lens_html
from gpt_verify.report.lens import json as lens_json
from gpt_verify.report.lens import picture
from gpt_verify.report.lens import terminal as lens_terminal
from gpt_verify.shown import Printed, Shown

#: What cells of a lens are shaded by at first; the page has a menu of all.
_STATISTIC = "probability"


def html(result: Shown) -> str:
    """Make the page that ``--html`` writes: one file, whole, that fetches nothing.

    Args:
        result: what ``run``, ``lens`` or ``claims`` returned.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        UsageError: there is no page of such a thing.

    Example:
        >>> report = gv.run(port, lengths=[5])
        >>> Path("report.html").write_text(gv.html(report), encoding="utf-8") > 0
        True
    """
    match result:
        case Report():
            return report_html.render(result)
        case LensReport():
            return lens_html.render(result, picture.view(_STATISTIC))
        case ClaimsReport():
            return claims_html.render(result)
    raise UsageError(f"there is no page of {_kind(result)}")


def json(result: Printed) -> str:
    """Make the JSON that ``--json`` writes; ``compare`` reads that of a report.

    Args:
        result: what ``run``, ``lens``, ``claims`` or ``compare`` returned.

    Returns:
        One JSON object. Its keys are described in docs/report.md, of the lens in
        docs/lens-pictures.md, of claims in docs/ledger.md; ``schema`` returns that of a report.

    Raises:
        UsageError: there is no JSON of such a thing.

    Example:
        >>> report = gv.run(port, lengths=[5])
        >>> Path("report.json").write_text(gv.json(report), encoding="utf-8") > 0
        True
        >>> gv.compare("report.json", report).worse
        0
    """
    match result:
        case Report():
            return report_json.render(result)
        case LensReport():
            return lens_json.render(result)
        case ClaimsReport():
            return claims_json.render(result)
        case Comparison():
            return compare_json.render(result)
    raise UsageError(f"there is no JSON of {_kind(result)}")


def words(result: Printed) -> str:
    """What the command prints, without colours; a result's ``repr`` is the same."""
    match result:
        case Report():
            return report_terminal.render(result)
        case LensReport():
            return lens_terminal.render(result, picture.view(_STATISTIC))
        case ClaimsReport():
            return claims_terminal.render(result, full=len(result.claims) == 1)
        case Comparison():
            return compare_terminal.render(result)
    raise UsageError(f"there are no words for {_kind(result)}")


def _kind(result: object) -> str:
    return f"an object of type {type(result).__name__}"
