"""What is free for this process, read from trees of files as the kernel writes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_verify.port import NotExamined
from gpt_verify.process import memory
from gpt_verify.process.memory import available_bytes, require

MEGABYTE = 2**20
#: What a version 1 group without a limit says.
UNLIMITED = 9223372036854771712


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def machine(megabytes: int) -> dict[str, object]:
    kilobytes = megabytes * 1024
    return {"proc/meminfo": f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {kilobytes} kB"}


def group(path: str, limit: object, usage: int, inactive: int = 0) -> dict[str, object]:
    """Version 2."""
    return {
        f"sys/fs/cgroup{path}/memory.max": limit,
        f"sys/fs/cgroup{path}/memory.current": usage * MEGABYTE,
        f"sys/fs/cgroup{path}/memory.stat": f"anon 5\ninactive_file {inactive * MEGABYTE}\nx 1",
    }


def old_group(path: str, limit: object, usage: int, inactive: int = 0) -> dict[str, object]:
    """Version 1."""
    return {
        f"sys/fs/cgroup/memory{path}/memory.limit_in_bytes": limit,
        f"sys/fs/cgroup/memory{path}/memory.usage_in_bytes": usage * MEGABYTE,
        f"sys/fs/cgroup/memory{path}/memory.stat": (
            f"inactive_file 7\ntotal_inactive_file {inactive * MEGABYTE}"
        ),
    }


@pytest.mark.parametrize(
    ("files", "megabytes"),
    [
        (machine(300), 300),
        # Version 2: its own group, one around it, one without a limit.
        (
            {
                **machine(900),
                "proc/self/cgroup": "0::/a/b",
                **group("/a/b", 500 * MEGABYTE, 100),
                **group("/a", "max", 800),
            },
            400,
        ),
        (
            {
                **machine(900),
                "proc/self/cgroup": "0::/a/b",
                **group("/a/b", "max", 100),
                **group("/a", 500 * MEGABYTE, 450),
            },
            50,
        ),
        # Files that can be given up are not in the way.
        (
            {
                **machine(900),
                "proc/self/cgroup": "0::/",
                **group("", 500 * MEGABYTE, 450, inactive=200),
            },
            250,
        ),
        # A container that sees the path of the world outside.
        (
            {
                **machine(900),
                "proc/self/cgroup": "0::/docker/abc",
                **group("", 500 * MEGABYTE, 200),
            },
            300,
        ),
        # Version 1, beside other controllers and an empty version 2.
        (
            {
                **machine(900),
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a/b\n5:cpuset:/z\n0::/",
                **old_group("/a/b", UNLIMITED, 100),
                **old_group("/a", 700 * MEGABYTE, 650, inactive=10),
                **old_group("", UNLIMITED, 100),
            },
            60,
        ),
        # More than the limit is in use, as may be for a moment.
        (
            {**machine(900), "proc/self/cgroup": "0::/", **group("", 5 * MEGABYTE, 6)},
            0,
        ),
        # The machine has less than the group allows.
        (
            {**machine(20), "proc/self/cgroup": "0::/", **group("", 500 * MEGABYTE, 6)},
            20,
        ),
    ],
)
def test_the_least_of_all(tmp_path: Path, files: dict[str, object], megabytes: int) -> None:
    assert available_bytes(tree(tmp_path, files)) == megabytes * MEGABYTE


def test_where_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_bytes(tmp_path) is None
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    require(10**15)


def test_this_machine() -> None:
    free = available_bytes()
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("needed", "free", "words"),
    [
        (18 * 10**9, 9 * 10**9, "needs 18 GB, 9 are free"),
        (123_400_000_000, 16_700_000_000, "needs 124 GB, 16 are free"),
        (1_010_000_000, 1_000_000_000, "needs 1.1 GB, 1 are free"),
        (1_000_000, 0, "needs 0.1 GB, 0 are free"),
    ],
)
def test_too_much_is_refused(
    needed: int, free: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    with pytest.raises(NotExamined, match=f"^{words}$"):
        require(needed)
    require(free)


_BLOCKS = """
import ctypes, sys

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def block(size):
    made = libc.malloc(size)
    libc.memset(made, 1, size)
    return made
"""

#: Blocks that are freed between others that are not, after one that is larger than any of them:
#: from then on glibc takes them from its heap, where they stay. Prints what is left of them.
_FREED = (
    _BLOCKS
    + """
from gpt_verify.process.memory import give_back

libc.free(block(31 << 20))
before, size = resident(), int(sys.argv[1])
blocks = [(block(size), block(100_000)) for _ in range((96 << 20) // size)]
for large, _ in blocks:
    libc.free(large)
if "give_back" in sys.argv:
    give_back()
print((resident() - before) / (96 << 20))
"""
)


#: Three blocks that are taken and freed ten times. Prints how much memory was taken from the system
#: after the first time, in units of what the three take.
_TAKEN = (
    _BLOCKS
    + """
from gpt_verify.process.memory import reuse
import resource

if "reuse" in sys.argv:
    reuse()
size = int(sys.argv[1])

def take():
    for taken in [block(size) for _ in range(3)]:
        libc.free(taken)

take()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(9):
    take()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults * 4096 / (3 * size))
"""
)

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")


def printed(program: str, *arguments: object) -> float:
    """In a process of its own, because the settings stay, and with none of the user's."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ours)
    return float(done.stdout)


@of_glibc
@pytest.mark.parametrize("size", [16 << 20, 1 << 20])
def test_what_was_freed_is_given_back(size: int) -> None:
    assert printed(_FREED, size, "give_back") < 0.5 < printed(_FREED, size)


@of_glibc
def test_what_was_freed_is_taken_again() -> None:
    """Up to 32 MB, and not without the call."""
    size = 31 << 20
    assert printed(_TAKEN, size, "reuse") < 1 < 8 < printed(_TAKEN, size)
    assert printed(_TAKEN, 33 << 20, "reuse") > 8
