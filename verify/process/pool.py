"""Processes side by side: how many there may be, and how each of them is held to one thread.

Every part of this tool that runs tasks in several processes takes them from here, so that there are
never more threads than cores. A task is a function of a module and arguments that can be pickled.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

from gpt_verify.errors import MissingDependency, UsageError, install
from gpt_verify.numerics.parallel import alone, work_alone
from gpt_verify.process.memory import available_bytes

#: How many processes a command takes where nobody says so: a number.
VARIABLE = "GPT_VERIFY_JOBS"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ROOT = Path("/")


def cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: those that it is bound to, or fewer where its control group
    has less time than that.

    Args:
        root: of the file system in which ``sys`` lies.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [_quota(root / "sys/fs/cgroup/cpu.max"), _quota_v1(root / "sys/fs/cgroup/cpu")]
    return max(1, math.ceil(min(bound or 1, *quotas)))


def _quota(file: Path) -> float:
    """Cores of version 2 of control groups: ``max 100000`` or ``200000 100000``."""
    try:
        quota, period = file.read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def asked_for() -> int | None:
    """The number in ``GPT_VERIFY_JOBS``; None where it is not set.

    Raises:
        UsageError: it is no number.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"{VARIABLE}={text}: a whole number from 1 on")
    return int(text)


def affordable(bytes_each: int) -> int:
    """How many processes of that size the memory that is free takes; at least one."""
    free = available_bytes()
    return sys.maxsize if free is None else max(1, free // max(1, bytes_each))


@contextmanager
def pool(jobs: int) -> Iterator[Executor]:
    """So many processes, which take tasks as they are free.

    They end with this block, whether or not they are done, and with this process.

    Args:
        jobs: how many.
    """
    context = multiprocessing.get_context("spawn")
    with one_thread():
        made = ProcessPoolExecutor(jobs, context, _prepare)
        try:
            yield made
        except BaseException:
            made.shutdown(wait=False, cancel_futures=True)
            raise
        made.shutdown(cancel_futures=True)


@contextmanager
def scheduler(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster, which take tasks as they are free. A task whose worker is lost
    is done again by another one.

    Args:
        address: of its scheduler, ``tcp://host:8786``.

    Raises:
        MissingDependency: Dask is not installed.
        UsageError: nobody answers at that address.
    """
    try:
        from distributed import Client
    except ImportError:
        raise MissingDependency(f"distributed is not installed: {install('cluster')}") from None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {address}: {error}") from error
    with client:
        yield client.get_executor(pure=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Libraries that are loaded meanwhile, and processes that are started, have one thread each;
    this process does one thing after the other. torch, where it is loaded, has one meanwhile."""
    kept = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(kept, "1"))
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(1)
    try:
        with alone():
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prepare() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process of a pool is prepared"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    work_alone()


def _end_with(parent: int) -> None:
    """A pool whose owner was killed would work on for nobody."""
    wait([parent])
    os._exit(1)
