"""Progress of a long run, on the terminal of the person who waits for it."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from gpt_verify.findings import PortReport
from gpt_verify.text import one_line


class Bars:
    """One bar for each port, on standard error; nothing of it stays when the run is over."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[port]}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

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

    def done(self, report: PortReport) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=report.verdict.value)
            self._progress.stop_task(self._task)
