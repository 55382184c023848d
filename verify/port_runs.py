"""Runs each port once, when somebody first asks for its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.errors import GptVerifyError, PortError
from verify.findings import PortReport, Report

if TYPE_CHECKING:
    from verify.checkpoint import Checkpoint
    from verify.run import Options


class PortRuns:
    """What is asked for, and the reports of the ports that have run so far.

    Args:
        checkpoint: the directory, or None for the default checkpoint.
        ports: specifications, or None for every built-in port that is installed.
        options: keyword arguments of ``verify.run.Options``.
    """

    def __init__(
        self, checkpoint: Path | None, ports: Sequence[str] | None, **options: Any
    ) -> None:
        self._checkpoint = checkpoint
        self._ports = ports
        self._options = options
        self._reports: dict[str, Report | GptVerifyError] = {}

    @property
    def path(self) -> Path:
        from verify.checkpoint import default_checkpoint

        return self._checkpoint or default_checkpoint()

    @property
    def options(self) -> Options:
        from verify.run import Options

        return Options(**self._options)

    def open(self) -> Checkpoint:
        from verify.checkpoint import open_checkpoint

        return open_checkpoint(self.path)

    def ports(self) -> list[str]:
        """Specifications, each of exactly one port."""
        from verify.ports.registry import expand
        from verify.selection import config_of, default_ports

        given = self._ports or default_ports(self.path, self._options.get("dtype"))[0]
        config = config_of(self.path)
        architecture = {} if config is None else {"architecture": config.architecture}
        return list(dict.fromkeys(expand(list(given), **architecture)))

    def expected(self) -> list[tuple[str, str | None]]:
        from verify.checks import expected_checks

        return expected_checks(self.open().config)

    def report(self, port: str) -> PortReport:
        """Run a port, the first time that it is asked for.

        Raises:
            GptVerifyError: nothing could be judged.
        """
        if port not in self._reports:
            self._reports[port] = self._run(port)
        outcome = self._reports[port]
        if isinstance(outcome, GptVerifyError):
            raise outcome
        if len(outcome.ports) != 1:
            raise PortError(f"{port}: {len(outcome.ports)} ports were judged instead of one")
        return outcome.ports[0]

    def _run(self, port: str) -> Report | GptVerifyError:
        from verify.run import run

        try:
            return run(self._checkpoint, [port], self.options)
        except GptVerifyError as error:
            return error

    def repeat(self, port: str) -> str:
        """The command line that judges this port again."""
        from verify.report.repeat import repeat_command

        return repeat_command(self._checkpoint, [port], self.options)

    def _done(self) -> dict[str, Report]:
        """The ports that have run, in that order."""
        return {k: report for k, report in self._reports.items() if isinstance(report, Report)}

    def repeats(self) -> list[str]:
        """For each port of ``merged`` the command line that judges it alone."""
        return [self.repeat(port) for port in self._done()]

    def merged(self) -> Report | None:
        """One report of every port that has run, or None where none has."""
        from verify.report.repeat import repeat_command

        done = self._done()
        if not done:
            return None
        return dataclasses.replace(
            next(iter(done.values())),
            ports=tuple(port for report in done.values() for port in report.ports),
            repeat=repeat_command(self._checkpoint, list(done), self.options),
        )
