"""A function run in a process of its own, which is kept for the next one.

A worker of a cluster has threads of its own, which draw random numbers and switch settings while a
task runs: what a port does to its process could not be told from that. So its tasks run in another.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from gpt_verify.errors import PortError
from gpt_verify.process.pool import THREADS
from gpt_verify.process.worker import Item, Worker, serve

T = TypeVar("T")

#: Seconds that one function may take.
_TIMEOUT = 24 * 3600.0
_kept = threading.local()


class Lost(PortError):
    """The process ended before the function did."""


def errand(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns, or raises, in a process of its own with one thread.

    Args:
        function: of a module.
        arguments: can be pickled, as what is returned can.

    Raises:
        Lost: the process ended.
    """
    worker: Worker | None = getattr(_kept, "worker", None)
    if worker is None:
        one_each = dict.fromkeys(THREADS, "1")
        worker = Worker(
            __name__, label="the process", error=Lost, timeout=_TIMEOUT, environment=one_each
        )
        _kept.worker = worker
    try:
        answer = worker.call("run", _packed((function, arguments)))
    except Lost:
        _kept.worker = None
        raise
    made, raised = _unpacked(answer.arrays[0])
    if raised is not None:
        raise raised
    result: T = made
    return result


def _run(request: Any) -> Iterator[Item]:
    function, arguments = _unpacked(request)
    made, raised = None, None
    try:
        made = function(*arguments)
    except Exception as error:
        raised = error
    yield {}, (_packed((made, raised)),)


def _packed(thing: object) -> Any:
    """As an array of bytes. Both ends are this tool's, and run what the same user asks for."""
    return np.frombuffer(pickle.dumps(thing), np.uint8)


def _unpacked(packed: Any) -> Any:
    return pickle.loads(packed.tobytes())


if __name__ == "__main__":
    serve({"run": _run})
