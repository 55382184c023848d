"""Engines that must not share a process: a request and its answer over a child's pipes.

TensorFlow and torch in one process disturb each other's results, so each runs in a process of its
own. A request is one frame (see `gpt_verify.process.wire`). Its answer is any number of ``item``
frames, as the child computes them, and then one ``end`` or one ``error`` frame, so that large
results are streamed and dropped.

The child dies with the parent, and what it has started dies with it
(`gpt_verify.process.children`). It ends by itself, too, when its stdin closes, and while it
computes a thread watches for its keeper's death.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from gpt_verify import errors
from gpt_verify.errors import LONGEST, GptVerifyError, PortError, shortened
from gpt_verify.process.children import Child, signal_name
from gpt_verify.process.leaving import end_with
from gpt_verify.process.wire import Array, Buffer, Frame, encode, receive, send

#: What a command yields: JSON values by name, and arrays.
Item = tuple[Mapping[str, Any], Iterable[Array]]
#: A command takes the request's arrays and fields, and yields items (or returns None).
Command = Callable[..., Iterable[Item] | None]

#: The child imports what the parent would, wherever that was found; nothing comes before that.
_START = (
    "import sys; sys.path[:] = {path!r}; import runpy;"
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


#: Size of the pipe from the child, the most that Linux gives without privileges.
_PIPE_BYTES = 1 << 20


class Worker:
    """The parent's end: starts ``python -m module`` and asks it. Not for use by several threads.

    Args:
        module: a module that calls `serve` when it is run.
        label: what messages call it: ``the TensorFlow worker``.
        error: the class of errors that have no class of their own here, as when the child dies.
        timeout: seconds that one frame may take before the child is killed.
        environment: additions to the environment.
    """

    def __init__(
        self,
        module: str,
        *,
        label: str = "the worker",
        error: type[GptVerifyError] = PortError,
        timeout: float = 1800.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._label, self._error, self._timeout = label, error, timeout
        self._last_id = 0
        self._answered = True
        start = _START.format(path=[str(entry) for entry in sys.path], module=module)
        try:
            # -P: the current directory may hold a module that hides one of ours.
            words = [sys.executable, "-P", "-c", start]
            self._child = Child(words, {**os.environ, **(environment or {})})
        except OSError as problem:
            raise error(f"{label} cannot be started: {problem.strerror}") from None
        self._to_child, self._from_child = self._child.stdin, self._child.stdout
        with suppress(AttributeError, OSError):  # Linux alone; without it there are more switches
            fcntl.fcntl(self._from_child, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def stream(self, command: str, *arrays: Array, **fields: Any) -> Iterator[Frame]:
        """Ask, and yield the items of the answer as they arrive.

        An answer that is not read to its end is skipped by the next request.

        Raises:
            GptVerifyError: the child reported an error, died, or took too long.
        """
        if not self._child.end.alive:
            raise self._error(f"{self._label} is closed")
        while not self._answered:
            with self._guard():
                self._answered = receive(self._from_child).kind in ("end", "error")
        self._last_id += 1
        this = self._last_id
        request = encode(Frame("request", this, {"command": command, **fields}, arrays))
        with self._guard():
            send(self._to_child, request)
        self._answered = False
        return self._items(this)

    def call(self, command: str, *arrays: Array, **fields: Any) -> Frame:
        """Ask, and return the only item of the answer; an empty frame where there is none."""
        items = list(self.stream(command, *arrays, **fields))
        if len(items) > 1:
            raise self._error(f"{self._label} gave {len(items)} answers to {command}")
        return items[0] if items else Frame("item", self._last_id)

    def close(self) -> None:
        """End the child. It keeps nothing that would need an orderly end. May be called again."""
        self._child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _items(self, this: int) -> Iterator[Frame]:
        while True:
            if this != self._last_id or not self._child.end.alive:
                raise self._error(f"{self._label}: this answer was given up")
            with self._guard():
                frame = receive(self._from_child)
            if frame.kind == "item":
                yield frame
                continue
            self._answered = True
            if frame.kind == "error":
                raise self._known(frame.fields["type"])(frame.fields["message"])
            return

    def _known(self, name: str) -> type[GptVerifyError]:
        """The class of that name, or else (the base too) the class that this worker was given."""
        kind = getattr(errors, name, None)
        if kind is GptVerifyError or not isinstance(kind, type):
            return self._error
        return kind if issubclass(kind, GptVerifyError) else self._error

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Kill the child when the time is up, and say why the pipe broke."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._child.kill()

        timer = threading.Timer(self._timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError, ValueError, KeyError) as error:
            if expired.is_set():
                self._fail(f"gave no answer within {self._timeout:g} s")
            if isinstance(error, EOFError | OSError):
                self._fail("died" + self._how())
            self._fail(f"cannot be understood: {one_line(error)}")
        finally:
            timer.cancel()

    def _how(self) -> str:
        status = self._child.wait(5)
        if status is None:
            return ""
        if status >= 0:
            return f" with exit status {status}"
        name = signal_name(-status)
        return f" of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def _fail(self, what: str) -> NoReturn:
        said = self._child.last_words(LONGEST)
        self.close()
        last = f"; it last said: {said}" if said else ""
        raise self._error(f"{self._label} {what}{last}") from None


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, and not longer than is readable."""
    return shortened(error) or type(error).__name__


def serve(commands: Mapping[str, Command]) -> NoReturn:
    """The child's end: answer requests until stdin closes, then end the process."""
    requests, answers = _take_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    end_with(os.getppid())
    try:
        while True:
            request = receive(requests)
            for buffers in _answer(commands, request):
                send(answers, buffers)
    except (EOFError, OSError):
        os._exit(0)  # nobody is left to answer; an engine's own clean-up may hang


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the pipes, and leave 0 and 1 to libraries: what they print goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _answer(commands: Mapping[str, Command], request: Frame) -> Iterator[list[Buffer]]:
    fields = dict(request.fields)
    try:
        command = commands[fields.pop("command")]
        for values, arrays in command(*request.arrays, **fields) or ():
            yield encode(Frame("item", request.id, values, tuple(arrays)))
    except Exception as error:
        known = isinstance(error, GptVerifyError)
        words = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
        yield encode(Frame("error", request.id, {"type": type(error).__name__, "message": words}))
    else:
        yield encode(Frame("end", request.id))
