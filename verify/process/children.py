"""Programs that we start. Each ends with all that it has started: when it is told to, when it is
forgotten, and when this process ends, however that comes about (see ``keeper.py``)."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_KEEPER = os.fspath(Path(__file__).with_name("keeper.py"))
#: Seconds that the keeper may take for its work before it is killed as well.
_KEEPER_S = 10.0


class Child:
    """A running program, its standard input and output pipes without buffers, its standard error a
    file.

    Args:
        words: the program and its arguments.
        environment: in place of that of this process.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # the finalizer closes it
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", _KEEPER, str(theirs.fileno()), *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.stderr,
                    bufsize=0,
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    # Ctrl-C, and the end of a terminal, are for this process, which then ends them.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            self.stderr.close()
            raise
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self.stdin: IO[bytes] = self._keeper.stdin
        self.stdout: IO[bytes] = self._keeper.stdout
        self._control, self._said = ours, b""
        self._status: int | None = None
        self._lock = threading.Lock()
        # Also runs when the object is forgotten and when the interpreter exits.
        self.end = weakref.finalize(
            self, _end, self._keeper, ours, (self.stdin, self.stdout, self.stderr), os.getpid()
        )
        word, _, number = self._line(None).partition(" ")
        if word != "pid":
            self.end()
            code = int(number) if word == "failed" else 0
            raise OSError(code, os.strerror(code) if code else "no process could be made")
        self.pid = int(number)

    def wait(self, timeout: float) -> int | None:
        """Exit status of the program, negative for a signal; None while it runs."""
        with self._lock:
            if self._status is None and self.end.alive:
                word, _, number = self._line(timeout).partition(" ")
                self._status = int(number) if word == "status" else None
            return self._status

    def kill(self) -> None:
        """The program and all that it started, now; from any thread."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def last_words(self, longest: int) -> str:
        """The last line of its standard error, or nothing."""
        # Not by seeking: where the program writes next is where we would have left off.
        end = os.fstat(self.stderr.fileno()).st_size
        said = os.pread(self.stderr.fileno(), 4096, max(0, end - 4096)).replace(b"\0", b"")
        text = said.decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:longest] if lines else ""

    def _line(self, timeout: float | None) -> str:
        """What the keeper says next; nothing where it says nothing in time, or is gone."""
        until = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._said:
            rest = None if until is None else max(0.0, until - time.monotonic())
            if not ready(self._control.fileno(), rest):
                return ""
            data = self._control.recv(4096)
            if not data:
                return ""
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()


def signal_name(number: int) -> str:
    """``SIGSEGV``."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def ready(file: int, seconds: float | None, *, to_write: bool = False) -> bool:
    """Wait until a descriptor can be read (or written) without waiting, or has come to its end."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(file, select.POLLOUT if to_write else select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(0.0, 1000 * seconds)))


def _end(
    keeper: subprocess.Popen[bytes],
    control: socket.socket,
    streams: tuple[IO[bytes], ...],
    owner: int,
) -> None:
    if os.getpid() != owner:  # a copy that was forked; the child is not its to end
        return
    with suppress(OSError):
        control.shutdown(socket.SHUT_WR)  # and not close: others may hold a copy of it
    for stream in streams:
        with suppress(OSError):  # a question that was never read
            stream.close()
    try:
        keeper.wait(_KEEPER_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
    control.close()


def output_of(
    words: Sequence[str],
    timeout: float,
    environment: Mapping[str, str] | None = None,
    largest: int = 1 << 26,
) -> tuple[int, str, str]:
    """Run a program to its end: its exit status, its output, and the end of what it says.

    Args:
        words: the program and its arguments.
        timeout: seconds.
        environment: its environment variables; this process's where None.
        largest: bytes of output.

    Raises:
        OSError: it cannot be started, or writes more than ``largest`` bytes.
        TimeoutError: it takes longer than ``timeout`` seconds, or something that it has started
            keeps its output open for so long.
    """
    child = Child(words, environment)
    try:
        child.stdin.close()
        until, pieces, size = time.monotonic() + timeout, list[bytes](), 0
        while True:
            rest = max(0.0, until - time.monotonic())
            if not ready(child.stdout.fileno(), rest):
                raise TimeoutError(f"no end within {timeout:g} s")
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                break
            pieces.append(data)
            if (size := size + len(data)) > largest:
                raise OSError(f"more than {largest} bytes of output")
        status = child.wait(max(0.0, until - time.monotonic()))
        if status is None:
            raise TimeoutError(f"no end within {timeout:g} s")
        return status, b"".join(pieces).decode(errors="replace"), child.last_words(4096)
    finally:
        child.end()
