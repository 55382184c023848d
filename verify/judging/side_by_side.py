"""Ports of a run, and the laws of a port, in several processes side by side.

A process builds the port anew from its specification, so that what it finds is what this process
would have found: it has its own copy of the weights, one thread, and nothing of what the others
were asked. What could not be judged elsewhere, because there was no room or the process was lost,
is judged here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_verify.errors import ReferenceChanged
from gpt_verify.findings import PortReport
from gpt_verify.judging.checking import Checked, Elsewhere, Here
from gpt_verify.judging.options import Options
from gpt_verify.judging.progress import Silent
from gpt_verify.laws.law import Part
from gpt_verify.laws.table import CHECKS, folders
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.process import pool
from gpt_verify.process.errand import Lost
from gpt_verify.reference.weights import parameter_count

if TYPE_CHECKING:
    from gpt_verify.judging.desk import Desk
    from gpt_verify.judging.selection import Request
    from gpt_verify.reference.config import Config

#: Bytes of a process: its libraries, and for each parameter the port's copy and what is judged at a
#: time of it (docs/benchmarks.md has the peaks).
LIBRARIES, EACH_PARAMETER = 10**9, 6
#: From so many parameters on, the laws of one port take longer than another process takes to start.
WORTHWHILE = 1 << 24
#: Laws in the order in which other processes take them, the longest first; the others follow.
LONGEST = ("cache", "causality", "gradient", "tying", "symmetry", "lens", "positions", "batch")


@dataclass(frozen=True)
class Task:
    """What another process is told: one port of a run.

    Attributes:
        path: of the checkpoint.
        spec: of the port.
        options: of the run.
        checks: ids of those that are asked for; all where None.
    """

    path: Path
    spec: str
    options: Options
    checks: frozenset[str] | None = None


def jobs_for(asked: Request, given: int | None) -> int:
    """How many processes judge these ports at most.

    Args:
        asked: the run.
        given: by the user; None takes what ``GPT_VERIFY_JOBS`` says, or else as many as there are
            cores, memory and work for.

    Raises:
        UsageError: ``GPT_VERIFY_JOBS`` is no number.
    """
    if asked.held or asked.options.device != "cpu":
        return 1  # what is in memory, or on a device, is there once
    given = given or pool.asked_for()
    if given is not None:
        return given
    config = asked.checkpoint.config
    room = pool.affordable(LIBRARIES + EACH_PARAMETER * parameter_count(config))
    return min(pool.cores(), room, len(asked.specs) * _shares(asked, config))


def _shares(asked: Request, config: Config) -> int:
    """How many processes one of the ports is worth. A user's own factory is called once: nobody
    knows what it starts."""
    from gpt_verify.ports.builtin import BUILTIN

    known = [BUILTIN.get(spec.partition("=")[0]) for spec in asked.specs]
    in_torch = all(port is not None and port.extra == "torch" for port in known)
    return len(groups()) if in_torch and parameter_count(config) >= WORTHWHILE else 1


def groups(processes: int | None = None) -> list[tuple[Part, ...]]:
    """The checks that may be made elsewhere, those of a law together, and with them those of a law
    that asks for the outcome of another; the longest first.

    Args:
        processes: where there are two, what uses the same runs of the port is kept together as
            well, which is less work; more than two would wait for the longest of these.
    """
    found: dict[str, list[Part]] = {}
    for name, law in folders():
        leader = law.follows or (law.shares if processes == 2 else "") or name
        found.setdefault(leader, []).extend(
            part for part in law.parts if part.check is not None and not part.history
        )
    names = sorted(found, key=lambda n: LONGEST.index(n) if n in LONGEST else len(LONGEST))
    ordered = [tuple(sorted(found[name], key=CHECKS.index)) for name in names]
    return [group for group in ordered if group]


class Beside:
    """The laws of one port, in other processes meanwhile (``checking.Elsewhere``)."""

    def __init__(self, executor: Executor, task: Task, processes: int) -> None:
        self._tasks: dict[str, Future[dict[str, Checked | None]]] = {}
        for group in groups(processes):
            ids = tuple(p.id for p in group if task.checks is None or p.id in task.checks)
            if ids:
                future = executor.submit(check_group, task, ids)
                self._tasks.update(dict.fromkeys(ids, future))

    def takes(self, part: Part) -> bool:
        future = self._tasks.get(part.id)
        return future is not None and not future.cancel()

    def checked(self, part: Part) -> Checked | None:
        try:
            return self._tasks[part.id].result().get(part.id)
        except ReferenceChanged:
            raise
        except (Exception, CancelledError):
            return None  # whatever it was shows again here

    def forget(self) -> None:
        """Nobody will ask."""
        for future in self._tasks.values():
            future.cancel()


@contextmanager
def laws_beside(jobs: int, task: Task) -> Iterator[Elsewhere]:
    """So many processes for one port, this one among them."""
    if jobs < 2:
        yield Here()
        return
    with pool.pool(jobs - 1) as executor:
        beside = Beside(executor, task, jobs)
        try:
            yield beside
        finally:
            beside.forget()


def ports_beside(
    executor: Executor, asked: Request, each: int, checks: Collection[str] | None
) -> list[Future[PortReport]]:
    """The reports of the ports of a request, each made in whichever process is free.

    Args:
        executor: of the processes.
        asked: the request.
        each: how many processes one port may take.
        checks: ids of those that are asked for; all where None.
    """
    return [
        executor.submit(judge_alone, task_of(asked, spec, checks), each) for spec in asked.specs
    ]


def task_of(asked: Request, spec: str, checks: Collection[str] | None) -> Task:
    """What another process is told of one of the ports."""
    path, chosen = asked.checkpoint.path, None if checks is None else frozenset(checks)
    return Task(path.absolute(), spec, asked.options, chosen)


def lost(spec: str, options: Options, error: Exception) -> PortReport:
    """The report of a port whose process ended without one."""
    words = "ended the process in which it ran, without a verdict"
    if isinstance(error, Lost):
        words = str(error)
    where = options.dtype or "float32", options.device, "checkpoint"
    return PortReport(spec, *where, error=f"{spec}: {words}")


_desk: Desk | None = None


def _desk_of(task: Task) -> Desk:
    """The port of a task, built once in each process."""
    from gpt_verify.judging.desk import Desk

    global _desk
    if _desk is None or _desk.task != task:
        if _desk is not None:
            _desk.close()
            _desk = None
        _desk = Desk(task)
    return _desk


def check_group(task: Task, ids: Sequence[str]) -> dict[str, Checked | None]:
    """Some checks of a port; None for one that there is no room for here.

    Raises:
        GptVerifyError: the port cannot be built, or breaks.
        Exception: the port's own.
    """
    return _desk_of(task).check(ids)


_shared: tuple[Path, SharedWeights] | None = None


def judge_alone(task: Task, jobs: int) -> PortReport:
    """The report of one port, judged in this process and its own others.

    Raises:
        GptVerifyError: the checkpoint cannot be read any more.
    """
    from gpt_verify.judging.one_port import judge_one
    from gpt_verify.judging.selection import request

    global _shared
    asked = request(task.path, [task.spec], task.options)
    if _shared is None or _shared[0] != task.path:
        _shared = task.path, SharedWeights(asked.checkpoint.tensors, record=True)
    with laws_beside(jobs, task) as elsewhere:
        report = judge_one(asked, task.spec, _shared[1], Silent(), task.checks, elsewhere)
    return replace(report, exception=None)  # a traceback stays in its process
