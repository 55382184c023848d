"""The command ``gpt-verify``.

Exit status: 0 verified, 1 refuted, 2 could not judge; 130 interrupted. A port cannot change it: it
runs in a child (``verify.supervisor``).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from verify.arguments import COULD_NOT_JUDGE, build_parser
from verify.commands import COMMANDS
from verify.errors import GptVerifyError

INTERRUPTED = 130
#: The commands that run what their user names: code that may end the process.
RUN_PORTS = ("run", "lens", "diagnose")


def _complain(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # One line, whatever the message holds.
    print(f"gpt-verify: {' '.join(message.split())}", file=sys.stderr)
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
            f"{type(error).__name__}: {error}: this is a bug in gpt-verify; "
            "--debug shows the traceback",
            args.debug,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: None takes the arguments of this process, and then ports run in another one, which
            they may end. With a list they run here, in the process of whoever calls.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign is no reason to fail after a long run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    if argv is not None or args.command not in RUN_PORTS:
        return _run(args)
    from verify import supervisor

    if not supervisor.possible():
        return _run(args)
    say = supervisor.supervised()
    if say is None:
        return _supervise(args.debug)
    status = _run(args)
    say(status)
    return status


def _supervise(debug: bool) -> int:
    from verify import supervisor

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
    """In this process: the exit status, when everything that is to be said was said."""
    if args.debug:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
        logging.getLogger("verify").setLevel(logging.DEBUG)
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
