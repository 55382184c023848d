"""A run beside one that was recorded earlier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_verify.findings import Report, Status
from gpt_verify.report.compare.comparison import Comparison, compare_reports, require_comparable
from gpt_verify.report.compare.stored import read_report
from gpt_verify.report.json import plain

if TYPE_CHECKING:
    from gpt_verify.judging.selection import Request

_NOW = "this run"


@dataclass(frozen=True)
class Baseline:
    """The earlier report that ``--baseline`` names."""

    name: str
    report: Report

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Raises UsageError for what is no report."""
        return cls(str(path), read_report(path))

    @property
    def names(self) -> list[str]:
        """The names of its ports."""
        return [port.name for port in self.report.ports]

    def lost(self, ports: Sequence[str]) -> list[str]:
        """Those that are not among these."""
        return [name for name in self.names if name not in ports]

    def passed(self, name: str) -> int:
        """How many checks a port of it passed."""
        found = (f for port in self.report.ports if port.name == name for f in port.findings)
        return sum(finding.status is Status.PASSED for finding in found)

    def require_comparable(self, asked: Request) -> None:
        """Refuse a comparison before a long run, by all that is known of it by then.

        Raises:
            UsageError: the comparison would be refused.
        """
        from gpt_verify.judging.run import chosen_inputs, described

        config = asked.checkpoint.config
        checkpoint: Mapping[str, Any] = {
            "config": config.as_dict(),
            "architecture": config.architecture,
            "tied": config.tied,
        }
        inputs = described(chosen_inputs(asked.checkpoint, asked.options), asked.options)
        require_comparable(self.report, plain(checkpoint), plain(inputs), (self.name, _NOW))

    def against(self, report: Report, ports: Sequence[str] | None) -> Comparison:
        """Compare the run with the baseline.

        Args:
            report: of the run.
            ports: those that the run was asked for; None where it took the default ones, of which
                none may be lost.

        Raises:
            UsageError: the two cannot be compared.
        """
        return compare_reports(self.report, report, (self.name, _NOW), asked=ports)
