"""What several processes need is made by the first that asks; the others wait and read it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # not on Windows, where each process makes its own
    fcntl = None  # type: ignore[assignment]  # asked for below

T = TypeVar("T")


def once(folder: Path, name: str, make: Callable[[], T]) -> T:
    """What ``make`` returns, in whichever process it is called first.

    Args:
        folder: of the processes that share, and of nobody else: what lies there is unpickled. Where
            it does not exist (another machine), or files have no locks, each process makes its own.
        name: what is shared.
        make: makes it. What cannot be pickled is not shared.
    """
    if fcntl is None or not folder.is_dir():
        return make()
    with _file(folder, name).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which ends with this process, however that ends
        try:
            with contextlib.suppress(FileNotFoundError):
                return found(folder, name)  # type: ignore[return-value]  # as it was made
            made = make()
            with contextlib.suppress(Exception):  # whatever a class raises that is not pickled
                part = _file(folder, name).with_suffix(".part")
                part.write_bytes(pickle.dumps(made))
                os.replace(part, _file(folder, name))
            return made
        finally:
            # By hand: a child that was forked meanwhile holds the file, and would hold the lock.
            fcntl.flock(lock, fcntl.LOCK_UN)


def found(folder: Path, name: str) -> object:
    """What was made under this name.

    Raises:
        FileNotFoundError: nothing was, or it cannot be shared.
    """
    return pickle.loads(_file(folder, name).read_bytes())


def _file(folder: Path, name: str) -> Path:
    return folder / hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
