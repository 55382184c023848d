"""How the command begins and ends as a process: with three streams, and with the status that it
has found and no other, whatever a port has left behind."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from gpt_verify.process.keeper import kill_all
from gpt_verify.process.scratch import remove_all

#: Seconds that what was registered for the end may take: the engines and directories of this tool
#: take none; what a port has registered may never end.
END_S = 10.0
#: Seconds between looks whether a parent is still there.
_LOOK_S = 0.5


def arrive() -> None:
    """Prepare this process; call it before anything else.

    A standard stream that is closed becomes one that takes nothing. Otherwise the next file that is
    opened would have its number, and what a port prints would land in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # Opened for reading, so that to write is an error that is noticed.
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            stream = open(number, mode, buffering=1, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _ended_by)


def _ended_by(number: int, _: FrameType | None) -> None:
    """End this process as the signal would have; what it has started ends by itself then."""
    remove_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def end_with(parent: int) -> None:
    """This process ends when that one has gone, which is its parent."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.name != "posix" or os.getppid() == parent:  # elsewhere a launcher may stand between
        time.sleep(_LOOK_S)
    with suppress(Exception):
        remove_all()
    with suppress(Exception):
        kill_all()
    os._exit(1)


def leave(status: int) -> NoReturn:
    """End the process with this status, and do not wait for threads that a port has left running.

    What was registered for the end still runs, for a time.
    """
    late = threading.Timer(END_S, _end, (status,))
    late.daemon = True
    late.start()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(BaseException):
        atexit._run_exitfuncs()
    _end(status)


def _end(status: int) -> NoReturn:
    with suppress(Exception):
        remove_all()
    os._exit(status)
