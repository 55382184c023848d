"""An iterator that is read ahead by a thread, so that its maker works while its user does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")
_END = object()
#: How often a full queue looks whether anybody still reads, in seconds.
_LOOK_S = 0.1


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, at most ``depth`` of them waiting.

    What the iterator raises is raised here, after the items before it. Where the user stops early,
    the thread ends after the item that it is at.
    """
    queue: Queue[object] = Queue(depth)
    failure: list[BaseException] = []
    stopped = threading.Event()

    def fill() -> None:
        try:
            for item in items:
                if not _put(queue, item, stopped):
                    return
        except BaseException as error:
            failure.append(error)
        _put(queue, _END, stopped)

    thread = threading.Thread(target=fill, name="gpt-verify-prefetch", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            yield item  # type: ignore[misc]  # what is not the end came from items
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()


def _put(queue: Queue[object], item: object, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            queue.put(item, timeout=_LOOK_S)
        except Full:
            continue
        return True
    return False
