"""Reading and writing by which time is never lost: one deadline for a whole question."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from gpt_verify.process.children import ready

#: Bytes that are read at a time.
_PIECE = 1 << 16


class Deadline:
    """A point in time."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def rest(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: none are.
        """
        rest = self._until - time.monotonic()
        if rest <= 0:
            raise TimeoutError
        return rest


class TimedPipes:
    """Both pipes of a program. They may be held open by whatever it has started, and its end
    therefore ends no waiting; the deadline does.

    Args:
        to, back: descriptors; ``to`` becomes non-blocking.
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        os.set_blocking(to, False)
        self._read = bytearray()
        self.deadline = Deadline(0)

    def write(self, data: bytes) -> None:
        """All of it; TimeoutError, or BrokenPipeError where nobody reads any more."""
        rest = memoryview(data)
        while rest:
            if not ready(self._to, self.deadline.rest(), to_write=True):
                raise TimeoutError
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes, or fewer at the end."""
        while len(self._read) < count and self._more():
            pass
        return self._take(count)

    def readline(self, limit: int) -> bytes:
        """The bytes up to and with a line's end, or ``limit`` of them, or the rest at the end."""
        looked = 0
        while (found := self._read.find(b"\n", looked)) < 0:
            looked = len(self._read)
            if looked >= limit or not self._more():
                return self._take(limit)
        return self._take(min(found + 1, limit))

    def _more(self) -> bool:
        if not ready(self._back, self.deadline.rest()):
            raise TimeoutError
        data = os.read(self._back, _PIECE)
        self._read += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._read)[:count])
        del self._read[:count]
        return taken


class TimedSocket:
    """The part of a socket that ``http.client`` uses. A socket's own timeout is for each piece: a
    server that sends a byte now and then would never exceed it."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(self._deadline.rest())
        self._socket.sendall(data)  # for all of it, its documentation says

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._deadline.rest))

    def close(self) -> None:
        """Nothing: ``http.client`` closes it before it has read the body. Its owner closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, connected: socket.socket, rest: Callable[[], float]) -> None:
        self._socket, self._rest = connected, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._rest())
        return self._socket.recv_into(buffer)
