"""Ports that raise on an input that every GPT-2 takes: a finding, and the other inputs are judged.

An exception may also mean that the port is gone, that a line was cut, or that there is no room:
then nothing is known of the port, and the run ends. So the input is tried once more, and another
one, on which it ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from gpt_verify.errors import GptVerifyError, Refused, described
from gpt_verify.findings import Finding, Status
from gpt_verify.inputs import Input, Tokens
from gpt_verify.judging.last_position import LastPositionOnly
from gpt_verify.port import NotExamined

#: By which libraries say that there is no room, in the type of an exception or in its words.
_NO_ROOM = ("outofmemory", "out of memory", "resourceexhausted", "resource_exhausted", "t allocate")


class Raising:
    """The inputs on which a port raises.

    Args:
        run: the port, as it is run on tokens without being watched.

    Attributes:
        ran: the inputs on which it did not.
    """

    def __init__(self, run: Callable[[Tokens], object]) -> None:
        self._run = run
        self.ran: list[Input] = []
        self._raised: list[tuple[Input, Exception]] = []

    @contextmanager
    def on(self, item: Input) -> Iterator[None]:
        """The port runs on this input meanwhile. What it raises is noted.

        Raises:
            Exception: the port's own, where it is not the input that is at fault.
        """
        try:
            yield
        except Exception as error:
            if not is_refusal(error) or not self._is_at_fault(item):
                raise
            self._raised.append((item, error))
        else:
            self.ran.append(item)

    def settled(self) -> None:
        """All inputs were tried. One that raises on all of them is broken, and cannot be judged."""
        if self._raised and not self.ran:
            raise self._raised[0][1]

    def findings(self, of_the_others: Sequence[Finding]) -> list[Finding]:
        """Those of the logits, which are failed where the port raised."""
        if not self._raised:
            return list(of_the_others)
        item, error = self._raised[0]
        rows, length = item.tokens.shape
        batch = f" in {rows} rows" if rows > 1 else ""
        more = f" (and on {len(self._raised) - 1} more inputs)" if len(self._raised) > 1 else ""
        words = f"the port raised {described(error)} [{item.name}: {length} tokens{batch}]{more}; "
        return [
            replace(finding.saying(before=words), status=Status.FAILED) for finding in of_the_others
        ]

    def _is_at_fault(self, item: Input) -> bool:
        """It raises again, and where the port has run, it still does."""
        if self.ran and not self._runs(self.ran[-1].tokens):
            return False
        return not self._runs(item.tokens)

    def _runs(self, tokens: Tokens) -> bool:
        try:
            self._run(tokens)
        except Exception:
            return False
        return True


def is_refusal(error: Exception) -> bool:
    """Whether an exception may be what a port makes of an input: not an error of ours, of the
    system or of the network, and no want of memory."""
    if isinstance(error, Refused):
        return True
    if isinstance(error, (GptVerifyError, NotExamined, LastPositionOnly, MemoryError, OSError)):
        return False
    words = described(error).lower()
    return not any(said in words for said in _NO_ROOM)
