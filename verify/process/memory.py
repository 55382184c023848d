"""How much memory this process may still take, and a refusal in plain words to take more.

What is free is the least of what the machine has and what each control group around the process
leaves it: a container is killed at its own limit, however much the machine has.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpt_verify.port import NotExamined

_ROOT = Path("/")
_GIGABYTE = 10**9
#: What is larger is taken from the system by itself: the most that glibc can be told. A matrix of
#: 124M in float64 is smaller.
LARGE_BYTES = 32 << 20
#: Of what was freed, so much is kept for what comes next.
SPARE_BYTES = 128 << 20
#: glibc's ``malloc.h``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class _Version:
    """The files in which one version of control groups keeps its numbers.

    Attributes:
        mounts: where it may be mounted.
        limit, usage: files of a group.
        reclaimable: the key in ``memory.stat`` of what the kernel gives up when memory is short.
    """

    mounts: tuple[str, ...]
    limit: str
    usage: str
    reclaimable: str


_V1 = _Version(
    ("sys/fs/cgroup/memory",),
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
_V2 = _Version(
    ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "memory.max", "memory.current", "inactive_file"
)


def available_bytes(root: Path = _ROOT) -> int | None:
    """The bytes that may still be taken; None where the system does not say (macOS, Windows).

    Args:
        root: of the file system in which ``proc`` and ``sys`` lie.
    """
    known = [*_of_machine(root), *_of_groups(root)]
    return max(0, min(known)) if known else None


def require(needed: int) -> None:
    """Ask for memory before something large is begun.

    Args:
        needed: bytes, estimated.

    Raises:
        NotExamined: fewer are free. Where nobody knows how many are, nothing is refused.
    """
    free = available_bytes()
    if free is not None and needed > free:
        # Rounded apart, so that the two never read alike.
        raise NotExamined(
            f"needs {_gigabytes(math.ceil, needed)} GB, {_gigabytes(math.floor, free)} are free"
        )


def reuse() -> None:
    """Have the C library keep some of what is freed, for as long as this process lives; nothing
    where it has no such setting.

    By itself glibc returns nearly all of it, and each page that is taken again is zeroed first: of
    the laws at 124M that was measured to be a sixth of the time. What is kept lies between other
    blocks, until ``give_back``; the peak of these laws is the same with it and without.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, SPARE_BYTES)


def give_back() -> None:
    """Return to the system what was freed; nothing where the C library has no such call.

    glibc keeps what lies between blocks that are in use: after a forward pass in float64 that was
    measured to be half a gigabyte.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _gigabytes(rounded: Callable[[float], int], size: int) -> str:
    """The size in GB, with one decimal where there are few."""
    scale = 10 if size < 10 * _GIGABYTE else 1
    return f"{rounded(size * scale / _GIGABYTE) / scale:g}"


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """The bytes that are free in the process's own group and in each around it, in either
    version."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _V1 if controllers else _V2
        for mount in version.mounts:
            # In a container the path may be that of the world outside: then the mount is its group.
            group = root / mount / path.lstrip("/")
            while group != root / mount:
                yield from _of_group(group, version)
                group = group.parent
            yield from _of_group(group, version)


def _of_group(group: Path, version: _Version) -> Iterator[int]:
    limit, usage = (_number(group / name) for name in (version.limit, version.usage))
    if limit is None or usage is None:
        return
    stats = dict(line.split() for line in _lines(group / "memory.stat"))
    yield limit - usage + int(stats.get(version.reclaimable, 0))


def _number(file: Path) -> int | None:
    """None where there is no such file, or it says ``max``."""
    for line in _lines(file):
        return int(line) if line.isdigit() else None
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
