"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright.

Where there is none the tests are skipped and say so; with ``GPT_VERIFY_BROWSER=required``, which is
what ``tox -e browser`` sets, they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def executable() -> str:
    """Where Chromium is; without one the test is skipped, or fails where one is required."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        refuse = pytest.fail if os.environ.get("GPT_VERIFY_BROWSER") == "required" else pytest.skip
        refuse("no Chromium: this page was not opened in a browser")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium with a fresh profile."""
    where = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=where, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A page, and whatever it said or asked for that a report must not."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def quiet(self) -> bool:
        """Nothing on the console, no exception, nothing fetched but the page itself."""
        return not self.complaints and self.requests == [self.page.url]


class Opener:
    """Opens pages, each in a context of its own."""

    def __init__(self, browser: Any, directory: Path) -> None:
        self._browser, self._directory, self._contexts = browser, directory, []

    def __call__(self, html: str, *, width: int = 1280, height: int = 900, **more: Any) -> Tab:
        """Open a page as a reader does, from a file.

        Args:
            more: of Playwright's ``new_context``: ``color_scheme``, ``java_script_enabled`` …
        """
        path = self._directory / f"page-{len(self._contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = self._browser.new_context(viewport={"width": width, "height": height}, **more)
        self._contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.complaints.append(message.text))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on(
            "request",
            lambda request: request.url.startswith("data:") or tab.requests.append(request.url),
        )
        tab.page.goto(path.as_uri())
        return tab

    def close(self) -> None:
        for context in self._contexts:
            context.close()
