"""Tables of several reports in a real browser: a matrix of versions, and a history."""

from __future__ import annotations

import pytest
from browser import Opener
from report_samples import broken, good, report, wrong
from test_html_report import HOSTILE
from test_html_report_in_browser import CONTRAST
from test_report_history import made, scored

from gpt_verify.report.history.course import History
from gpt_verify.report.history.html import render
from gpt_verify.report.matrix import Matrix
from gpt_verify.report.matrix import html as matrix_html


def history(reports: int = 30) -> str:
    """A port that grows worse slowly, and then at once; another one that comes and breaks."""
    days = []
    for n in range(reports):
        port = wrong("port") if n > 20 else scored(good("port"), 1 + n / 20)
        more = [broken("a-port-with-a-long-name.py:factory")] if n % 3 else []
        days.append((f"night-{n}", made(port, *more, day=1 + n, torch=f"2.{n // 7}")))
    return render(History.of(days))


PAGES = {
    "history": history(),
    "hostile": render(
        History.of([(HOSTILE, made(good(HOSTILE), day=1)), ("b", made(wrong(HOSTILE), day=2))])
    ),
    "matrix": matrix_html(
        Matrix(("a.json", "b.json"), (report(good(), wrong()), report(broken())))
    ),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("name", PAGES)
def test_fits_the_window_and_can_be_read(
    open_page: Opener, name: str, width: int, scheme: str
) -> None:
    tab = open_page(PAGES[name], width=width, color_scheme=scheme)
    assert tab.quiet(), (tab.complaints, tab.requests)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.evaluate(CONTRAST) == []


def test_a_wide_table_is_scrolled_by_the_keyboard(open_page: Opener) -> None:
    page = open_page(PAGES["history"], width=420).page
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "port: each report"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_a_line_has_a_mark_for_each_report(open_page: Opener) -> None:
    page = open_page(PAGES["history"]).page
    marks = page.locator("svg.course").first.locator("circle, path")
    assert marks.count() == 30
    titles = page.locator("table.scores th[scope=row]").all_inner_texts()
    assert {"logits", "activations.local", "activations.cascaded", "weights.values"} <= {*titles}
