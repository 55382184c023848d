"""Whether a port's weights are what they were: laws that write to them must put them back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpt_verify.errors import ToolError
from gpt_verify.port import Parameter

#: Bytes that are handed to the checksum at a time.
PIECE = 1 << 22


class Weights:
    """The checksums of a port's parameters (CRC-32C).

    Args:
        name: of the port.
        parameters: all that it shows.
    """

    def __init__(self, name: str, parameters: Iterable[Parameter]) -> None:
        self._name, self._parameters = name, list(parameters)
        self._before: dict[str, int] | None = None
        #: Those that the port's own calls have changed.
        self.written: tuple[str, ...] = ()

    def note(self) -> None:
        """As they are now, where that is not known yet."""
        if self._before is None:
            self._before = self._checksums()

    def after_calls(self) -> None:
        """Nothing but the port was called since they were noted: what has changed it has written
        to, as an embedding with ``max_norm`` does."""
        if self._before is not None:
            self.written = self._changed()

    def hold(self, law: str) -> None:
        """They are what they were.

        Raises:
            ToolError: they are not. That is no finding about the port: it was this tool, or
                something that ran at the same time, that wrote to them.
        """
        if changed := self._changed():
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ToolError(
                f"{self._name}: {changed[0]}{more} does not hold what it held before {law}, which "
                "writes to the weights and puts them back; nothing can be said of this port"
            )

    def _changed(self) -> tuple[str, ...]:
        """Those that are not what they were when last looked at."""
        before, self._before = self._before, self._checksums()
        return tuple(n for n, value in (before or {}).items() if self._before[n] != value)

    def _checksums(self) -> dict[str, int]:
        return {parameter.name: _checksum(parameter) for parameter in self._parameters}


def _checksum(parameter: Parameter) -> int:
    import google_crc32c

    raw = np.ascontiguousarray(parameter.read()).reshape(-1).view(np.uint8)
    crc = 0
    for start in range(0, len(raw), PIECE):
        crc = google_crc32c.extend(crc, raw[start : start + PIECE].tobytes())
    return crc
