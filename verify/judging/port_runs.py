"""Runs each port once, when somebody first asks for its report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_verify.errors import GptVerifyError, PortError
from gpt_verify.findings import PortReport, Report
from gpt_verify.process.once import found, once

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint
    from gpt_verify.judging.selection import Request


class PortRuns:
    """A request, and the reports of the ports that have run so far.

    Args:
        checkpoint: the directory, or None for the default checkpoint.
        ports: specifications, or None for every built-in port that is installed.
        options: keyword arguments of ``gpt_verify.judging.options.Options``.

    Attributes:
        checks: specification → ids of the checks that are asked for; a port that is not in it is
            judged by all of them.
        shared: a folder through which processes share what they have judged, or None.
        made: the ports that this process has judged itself.
    """

    def __init__(
        self, checkpoint: Path | None, ports: Sequence[str] | None, **options: Any
    ) -> None:
        self._path, self._ports = checkpoint, tuple(ports or ())
        self._options = options
        self._reports: dict[str, Report | GptVerifyError] = {}
        self.checks: Mapping[str, Collection[str]] = {}
        self.shared: Path | None = None
        self.made: set[str] = set()

    @cached_property
    def request(self) -> Request:
        """The checkpoint and the ports.

        Raises:
            GptVerifyError: the checkpoint cannot be read, or no port can run.
        """
        from gpt_verify.judging.options import Options
        from gpt_verify.judging.selection import request

        return request(self._path, self._ports, Options(**self._options), opened=self.checkpoint)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint under test; it is there also where no port can run."""
        from gpt_verify.checkpoint import open_checkpoint
        from gpt_verify.checkpoint.finite import need_finite

        opened = open_checkpoint(self._path, self._options.get("ignore_keys", ()))
        need_finite(opened)
        return opened

    @property
    def named(self) -> bool:
        """Whether ports were asked for; otherwise the default ones are taken."""
        return bool(self._ports)

    def ports(self) -> list[str]:
        """Specifications, each of exactly one port."""
        return list(dict.fromkeys(self.request.specs))

    def asked(self) -> list[str] | None:
        """The ports that were asked for; None where the default ones are taken."""
        return self.ports() if self._ports else None

    def expected(self) -> list[tuple[str, str | None]]:
        from gpt_verify.laws.table import expected_checks

        return expected_checks(self.checkpoint.config)

    def report(self, port: str) -> PortReport:
        """Run a port, the first time that it is asked for.

        Raises:
            GptVerifyError: nothing could be judged.
        """
        outcome = self.whole(port)
        if len(outcome.ports) != 1:
            raise PortError(f"{port}: {len(outcome.ports)} ports were judged instead of one")
        return outcome.ports[0]

    def whole(self, port: str) -> Report:
        """The same with its checkpoint, inputs and environment."""
        if port not in self._reports:
            run = partial(self._run, port)
            self._reports[port] = run() if self.shared is None else once(self.shared, port, run)
        outcome = self._reports[port]
        if isinstance(outcome, GptVerifyError):
            # Whoever asks again would find the traceback of all who have asked before.
            raise outcome.with_traceback(None)
        return outcome

    def _run(self, port: str) -> Report | GptVerifyError:
        from gpt_verify.judging.run import run_request

        self.made.add(port)
        alone, checks = self.request.alone(port), self.checks.get(port)
        try:
            report = run_request(alone) if checks is None else run_request(alone, None, checks)
        except GptVerifyError as error:
            return error
        if self.shared is None:
            return report
        # A traceback stays in its process.
        ports = tuple(dataclasses.replace(port, exception=None) for port in report.ports)
        return dataclasses.replace(report, ports=ports)

    def gather(self) -> None:
        """Take over what other processes have judged."""
        if self.shared is None:
            return
        with contextlib.suppress(GptVerifyError):  # no checkpoint: nothing was judged
            for port in self.ports():
                with contextlib.suppress(FileNotFoundError):
                    self._reports.setdefault(port, found(self.shared, port))  # type: ignore[arg-type]

    def repeat(self, port: str) -> str:
        """The command line that judges this port again."""
        return self.request.alone(port).repeat()

    def _done(self) -> dict[str, Report]:
        """The ports that have run, in that order."""
        return {k: report for k, report in self._reports.items() if isinstance(report, Report)}

    def repeats(self) -> list[str]:
        """The command line that judges each port of ``merged`` alone."""
        return [self.repeat(port) for port in self._done()]

    def merged(self) -> Report | None:
        """One report of every port that has run, or None where none has."""
        done = self._done()
        if not done:
            return None
        asked = dataclasses.replace(self.request, ports=tuple(done))
        return dataclasses.replace(
            next(iter(done.values())),
            ports=tuple(port for report in done.values() for port in report.ports),
            repeat=asked.repeat(),
        )
