"""What a command that runs ports does with its standard streams."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from gpt_verify.errors import UsageError

if TYPE_CHECKING:
    from gpt_verify.judging.run import Progress


@contextlib.contextmanager
def standard_output_for_the_report() -> Iterator[None]:
    """Whatever a port prints goes to standard error, also from C, so that the JSON stays whole."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def progress_bars(
    quiet: bool, plan: Callable[[], tuple[str, float]] | None = None
) -> Iterator[Progress | None]:
    """Bars for whoever waits at a terminal; for nobody else.

    Args:
        quiet: nobody wants to see them.
        plan: what will be done, and how many seconds it will take; asked for where it is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from gpt_verify.report.progress import Bars

    with Bars(*plan()) if plan is not None else Bars() as bars:
        yield bars


def say(text: str, stream: TextIO, written: str) -> None:
    """Print words, and a report that was asked for on standard output.

    A reader that goes away changes nothing: the verdict stands.
    """
    name = "standard error" if stream is sys.stderr else "standard output"
    try:
        print(text, end="", file=stream, flush=True)
        name = "standard output"
        if written:
            sys.stdout.buffer.write(written.encode())
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
