"""How far a run is, for whoever waits for it."""

from __future__ import annotations

from typing import Protocol

from gpt_verify.findings import Finding, PortReport


class Progress(Protocol):
    """Told how far a run is."""

    def port(self, name: str, steps: int) -> None:
        """A port starts, with so many steps to come."""

    def step(self, what: str) -> None:
        """One step is done."""

    def fails(self, finding: Finding) -> None:
        """The first site of a port that is wrong, as soon as it is known."""

    def done(self, report: PortReport) -> None:
        """A port is judged."""


class Silent:
    """Progress for nobody."""

    def port(self, name: str, steps: int) -> None: ...

    def step(self, what: str) -> None: ...

    def fails(self, finding: Finding) -> None: ...

    def done(self, report: PortReport) -> None: ...
