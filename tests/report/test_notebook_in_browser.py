"""A result in a notebook, in a real browser: its page works, and nothing of it gets out."""

from __future__ import annotations

from typing import Any

import pytest
from browser import Opener, Tab
from report_samples import good, report, wrong

CELL = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>notebook</title>
<style>body {{ margin: 7px; }} p, td, h1 {{ color: rgb(1, 2, 3); }}</style></head>
<body><p>own words</p><table><tr><td>own cell</td></tr></table>{output}</body></html>"""

STYLES = """all => all.map(one => {
    const { color, fontSize, fontFamily, padding, border, maxWidth } = getComputedStyle(one);
    return [color, fontSize, fontFamily, padding, border, maxWidth].join();
})"""


@pytest.fixture
def notebook(open_page: Opener) -> Tab:
    return open_page(CELL.format(output=report(wrong(), good())._repr_html_()))


def frame_of(tab: Tab) -> Any:
    """The page within, once it is there."""
    tab.page.frame_locator("iframe").locator("h1").wait_for()
    (_, frame) = tab.page.frames
    return frame


def test_its_style_does_not_leak(notebook: Tab, open_page: Opener) -> None:
    frame_of(notebook)
    alone = open_page(CELL.format(output=""))
    own = "body, p, table, td"
    assert notebook.page.eval_on_selector_all(own, STYLES) == alone.page.eval_on_selector_all(
        own, STYLES
    )


def test_the_page_is_the_report(notebook: Tab) -> None:
    frame = frame_of(notebook)
    assert "Refuted: wrong is not" in frame.locator("h1, main p").first.evaluate(
        "() => document.body.innerText"
    )
    assert frame.locator("p, td, h1").first.evaluate("e => getComputedStyle(e).color") != (
        "rgb(1, 2, 3)"
    )
    assert notebook.complaints == []


def test_its_links_stay_in_it(notebook: Tab) -> None:
    frame = frame_of(notebook)
    frame.locator('a.name[href="#p0"]').first.click()
    frame.wait_for_function("location.hash === '#p0'")
    assert frame.url.startswith("data:text/html")
    assert frame.locator("#p0").count() == 1
    assert notebook.page.title() == "notebook"


def test_its_script_reaches_nothing(notebook: Tab) -> None:
    reached = frame_of(notebook).evaluate(
        "() => { try { return parent.document.title } catch (error) { return error.name } }"
    )
    assert reached == "SecurityError"
