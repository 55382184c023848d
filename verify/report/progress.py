"""Progress of a long run, on the terminal of the person who waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from gpt_verify.findings import Finding, PortReport
from gpt_verify.judging.estimate import about
from gpt_verify.text import one_line


class _Words(ProgressColumn):
    """Words that are asked for whenever the bars are drawn."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())


class Bars:
    """One bar for each port, on standard error; nothing of it stays when the run is over.

    Args:
        plan: one line that stands above the bars.
        seconds: how long it will take in all, estimated; None where nobody knows.
    """

    def __init__(self, plan: str = "", seconds: float | None = None) -> None:
        self._plan, self._seconds, self._start = plan, seconds, time.monotonic()
        self._progress = Progress(
            TextColumn("{task.fields[port]}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Elapsed(),
            _Words(self._left),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        if self._plan:
            self._progress.console.print(one_line(self._plan), markup=False, highlight=False)
        return self

    def _left(self) -> str:
        """How long it will go on, by the estimate."""
        if self._seconds is None:
            return ""
        left = self._seconds - (time.monotonic() - self._start)
        return f"{about(left)} left" if left > 0 else "longer than estimated"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def port(self, name: str, steps: int) -> None:
        self._task = self._progress.add_task("", total=steps, port=one_line(name))

    def step(self, what: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, description=one_line(what))

    def fails(self, finding: Finding) -> None:
        words = f"{finding.id} fails at {finding.site}: {one_line(finding.message)}"
        self._progress.console.print(words, markup=False, highlight=False)

    def done(self, report: PortReport) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=report.verdict.value)
            self._progress.stop_task(self._task)
