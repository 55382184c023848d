"""Temporary directories that do not outlive their owner for long.

A process that is killed cannot clean up. Each directory therefore holds a file that its owner keeps
locked, and a lock ends with the process, whatever ends it: what is found unlocked is an orphan, and
is removed. A process id in the name would be no such proof, because it is given out again, and
means nothing in another container that shares the directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK, _CONTENT = "gpt-verify-", "owner.lock", "content"


class Scratch:
    """A directory of one's own, ``path``, removed when it is forgotten or closed."""

    def __init__(self) -> None:
        while True:
            outer = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = os.open(outer / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(OSError):  # a file system without locks: nothing there is ever swept
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(outer / _LOCK):
                break
            os.close(lock)  # somebody swept it between the two lines above
        self.path = outer / _CONTENT
        self.path.mkdir()
        self.close = weakref.finalize(self, _remove, outer, lock, os.getpid())
        _HELD.add(self)


_HELD: weakref.WeakSet[Scratch] = weakref.WeakSet()


@contextmanager
def scratch() -> Iterator[str]:
    """A directory of one's own within the block."""
    made = Scratch()
    try:
        yield os.fspath(made.path)
    finally:
        made.close()


def remove_all() -> None:
    """Every directory of this process: it is about to end in a way that runs no finalizers."""
    for made in list(_HELD):
        made.close()


def sweep() -> None:
    """Remove the directories of processes that are no more."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with suppress(OSError):
                    _sweep_one(Path(entry.path))


def _sweep_one(outer: Path) -> None:
    status = outer.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    # Neither a link nor a pipe is followed or waited for: anybody may write there.
    lock = os.open(outer / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock stays until last, for a sweep that is itself interrupted.
        shutil.rmtree(outer / _CONTENT, ignore_errors=True)
        shutil.rmtree(outer, ignore_errors=True)
    finally:
        os.close(lock)


def _remove(outer: Path, lock: int, owner: int) -> None:
    if os.getpid() != owner:  # a copy that was forked
        return
    shutil.rmtree(outer / _CONTENT, ignore_errors=True)
    shutil.rmtree(outer, ignore_errors=True)
    os.close(lock)
