"""The command ``gpt-verify``.

Exit status: 0 verified, 1 refuted, 2 could not judge; 130 interrupted. A port cannot change it: it
runs in a child (``gpt_verify.process.supervisor``).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from gpt_verify.command.arguments import COULD_NOT_JUDGE, build_parser
from gpt_verify.command.commands import COMMANDS
from gpt_verify.errors import LONGEST_REFUSAL, GptVerifyError, described, shortened
from gpt_verify.process.leaving import arrive, leave

INTERRUPTED = 130
#: The commands that run what their user names: code that may end the process.
RUN_PORTS = ("run", "lens", "diagnose", "recipe")


def _complain(message: str, debug: bool) -> int:
    with contextlib.suppress(OSError):  # a standard error that takes nothing
        if debug:
            traceback.print_exc()
        # One line, whatever the message holds.
        print(f"gpt-verify: {shortened(message, LONGEST_REFUSAL)}", file=sys.stderr, flush=True)
    return COULD_NOT_JUDGE


def _dispatch(args: argparse.Namespace) -> int:
    try:
        return COMMANDS[args.command](args)
    except GptVerifyError as error:
        return _complain(str(error), args.debug)
    except BrokenPipeError:
        return COULD_NOT_JUDGE
    except SystemExit:
        # A port that calls sys.exit(0) has not been verified.
        return _complain("a port ended the process", args.debug)
    except OSError as error:
        return _complain(str(error), args.debug)
    except MemoryError:
        return _complain("not enough memory", args.debug)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _complain(
            f"{described(error)}: this is a bug in gpt-verify; --debug shows the traceback",
            args.debug,
        )


def entry() -> NoReturn:
    """The command as a process of its own: ports run in another one, which they may end."""
    arrive()
    status = COULD_NOT_JUDGE
    say: Callable[[int], None] = _unsaid
    try:
        args = _parsed(None)
        from gpt_verify.process import supervisor

        if args.command not in RUN_PORTS or not supervisor.possible():
            status = _run(args)
        elif (verdict := supervisor.supervised()) is None:
            status = _supervise(args.debug)
        else:
            say = verdict
            status = _run(args)
    except SystemExit as stop:  # argparse's own: what it has to say is said
        status = stop.code if isinstance(stop.code, int) else COULD_NOT_JUDGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException as error:
        # Python's own status for it is 1, which would be a verdict.
        _complain(f"{described(error)}: this is a bug in gpt-verify", debug=False)
    say(status)
    leave(status)


def _unsaid(status: int) -> None:
    """Nobody waits to be told."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in this process and return its exit status."""
    return _run(_parsed(argv))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign is no reason to fail after a long run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return build_parser().parse_args(argv)


def _supervise(debug: bool) -> int:
    from gpt_verify.process import supervisor

    try:
        return supervisor.supervise()
    except supervisor.Ended as ended:
        if ended.signal == signal.SIGINT:
            return INTERRUPTED
        if ended.signal in (signal.SIGTERM, signal.SIGHUP):  # as if there were but one process
            signal.signal(ended.signal, signal.SIG_DFL)
            os.kill(os.getpid(), ended.signal)
        return _complain(str(ended), debug)
    except OSError as error:
        return _complain(f"cannot start the process for the ports: {error}", debug)


def _run(args: argparse.Namespace) -> int:
    """Run a command in this process, and return its exit status when everything was printed."""
    if args.debug:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    with warnings.catch_warnings():
        if not (args.debug or sys.warnoptions):
            # What a library warns of would stand ahead of the one line that says what is wrong.
            warnings.showwarning = lambda *_, **__: None
        status = _dispatch(args)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Nothing more can be written: keep the interpreter from saying so when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # One line says why there is no verdict; where one has been said already, it is enough.
        if not isinstance(error, BrokenPipeError) and status != 2:
            return _complain(f"standard output: {error.strerror}", args.debug)
        # Nobody reads; the verdict stands all the same.
    return status
