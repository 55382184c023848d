"""The verdict comes from a process that no port can end.

A port runs inside the process that judges it, and may end that at any time: ``os._exit(0)`` in a
factory, a call, a thread, ``close()`` or an exit handler leaves nobody to say that nothing was
verified. So the command that was typed starts itself anew, in a fresh interpreter with the same
arguments, and waits. The child says its verdict over a pipe once everything is written; how it ends
after that, or without having said anything, is no verdict.

The child has the terminal, the standard streams and the process group of its parent, so that
Ctrl-C, progress bars and a debugger work as in one process. What a port has started and not ended
is ended with the command.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from gpt_verify.process.children import signal_name
from gpt_verify.process.keeper import inherit_orphans, kill_all
from gpt_verify.process.leaving import END_S, end_with
from gpt_verify.process.scratch import sweep

#: Tells the child the descriptor that it speaks to, and of whom: ``descriptor:process``.
_VARIABLE = "GPT_VERIFY_SUPERVISED"
#: torch then asks for pages of 2 MB, which are zeroed in a third less time. It reads this when it
#: is loaded; who has set it otherwise keeps that.
_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
#: How often the parent looks up while nothing happens, in seconds.
_LOOK_S = 0.5
#: A terminal sends Ctrl-C to both processes. One that came to the parent alone is passed on after
#: this time.
_INTERRUPT_S = 1.0
#: The child has so long for its end, after the verdict was said or a signal was passed on. It ends
#: by itself, in less; this is for one that is held up inside of a library.
_LINGER_S = END_S + 5.0

Say = Callable[[int], None]


class Ended(Exception):
    """The child ended without a verdict; the message says how.

    Attributes:
        signal: that ended it; 0 where it ended by itself.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


def possible() -> bool:
    """Whether this process was started by a command line that can be started again, and may wait
    for signals."""
    main = threading.current_thread() is threading.main_thread()
    return os.name == "posix" and main and bool(sys.executable) and len(sys.orig_argv) > 1


def supervised() -> Say | None:
    """The function with which a child of `supervise` says its verdict; None in any other process.

    The child ends when its parent has gone, and what it starts does not take itself for one.
    """
    descriptor, _, parent = os.environ.pop(_VARIABLE, "").partition(":")
    if not (descriptor.isdigit() and parent == str(os.getppid())):
        return None
    pipe, own = int(descriptor), os.getpid()
    os.set_inheritable(pipe, False)
    end_with(int(parent))

    def say(status: int) -> None:
        if os.getpid() == own:  # not a copy that a port has forked
            with suppress(OSError):
                os.write(pipe, f"{own} {status}\n".encode())

    return say


def supervise() -> int:
    """Start this command anew, and wait for its verdict: an exit status.

    Raises:
        Ended: there was none.
    """
    reader, writer = os.pipe()
    inherit_orphans()
    try:
        with _signals() as signals:
            environment = {**_HUGE_PAGES, **os.environ, _VARIABLE: f"{writer}:{os.getpid()}"}
            command = [sys.executable, *sys.orig_argv[1:]]
            process = subprocess.Popen(command, env=environment, pass_fds=[writer])
            os.close(writer)
            said = _wait(process, reader, signals)
    finally:
        os.close(reader)
        kill_all()  # what a port has started and left
    if process.returncode < 0:
        sweep()  # its directories
    for line in said.decode(errors="replace").splitlines():
        own, _, status = line.partition(" ")
        if own == str(process.pid) and status.isdigit():
            return int(status)
    # Killed because it did not end is ended by what it was sent.
    killed = process.returncode == -signal.SIGKILL and signals.ending
    raise _ended(-signals.ending if killed else process.returncode)


class _Signals:
    """What the parent was sent, and has to pass on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.interrupted: float | None = None
        self.early: list[int] = []
        self.ending = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.interrupted = self.interrupted or time.monotonic()
        else:
            self.ending = self.ending or number
            if self.process is None:
                self.early.append(number)
            else:
                self.process.send_signal(number)

    def are_of(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on what comes from now on, and what came while it was being started."""
        self.process = process
        for number in self.early:
            process.send_signal(number)

    def pass_on(self) -> None:
        since = self.interrupted
        if since is not None and time.monotonic() - since > _INTERRUPT_S:
            self.interrupted = None
            if self.process is not None:
                self.process.send_signal(signal.SIGINT)


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Signals are passed to the child meanwhile; those that this process ignores, the child ignores
    too."""
    taken = _Signals()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, taken)
    try:
        yield taken
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], reader: int, signals: _Signals) -> bytes:
    """Everything that the child says before it ends, or is ended for staying too long after it."""
    signals.are_of(process)
    said, listening, last = b"", True, None
    while process.poll() is None:
        if listening:
            if select.select([reader], [], [], _LOOK_S)[0]:
                part = os.read(reader, 4096)
                said, listening = said + part, bool(part)
        else:  # it has closed the pipe: there is nothing to wait for but its end
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
        if said.endswith(b"\n") or signals.ending:
            last = last or time.monotonic() + _LINGER_S
            if time.monotonic() > last:
                process.kill()
        signals.pass_on()
    # What a port has started may hold the pipe open; nobody waits for that.
    os.set_blocking(reader, False)
    with suppress(BlockingIOError):
        said += os.read(reader, 4096)
    return said


def _ended(status: int) -> Ended:
    if status >= 0:
        return Ended(f"a port ended the process, with exit status {status} and without a verdict")
    name = signal_name(-status)
    why = " (out of memory?)" if name == "SIGKILL" else ""
    return Ended(f"the process in which the ports ran died of {name}{why}", -status)
