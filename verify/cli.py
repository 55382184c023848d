"""The command ``gpt-verify``.

Exit status: 0 verified, 1 refuted, 2 could not judge; 130 interrupted. Everything that is slow to
import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from verify import __version__
from verify.errors import GptVerifyError, UsageError

if TYPE_CHECKING:
    from verify.run import Options, Progress

COULD_NOT_JUDGE = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of this command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(COULD_NOT_JUDGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def _natural(text: str) -> int:
    return _whole(text, 0)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(_natural(part.strip()) for part in text.split(","))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gpt-verify",
        description="Prove or refute that an implementation of GPT-2 is the model that OpenAI "
        "released.",
        epilog="Exit status: 0 verified, 1 refuted, 2 could not judge.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpt-verify {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog, allow_abbrev=False
        )
        command.add_argument(
            "--debug", action="store_true", help="show the traceback of what went wrong"
        )
        return command

    run = add("run", "Judge ports against a checkpoint.", epilog=parser.epilog)
    run.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="default: the one that ships with this tool"
    )
    run.add_argument(
        "--port",
        action="append",
        metavar="SPEC",
        help="FILE.py:factory, package.module:factory, a built-in name (gpt-verify ports), or "
        "huggingface=DIR|HUB-ID; repeatable; default: every built-in port that is installed",
    )
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    inputs = run.add_mutually_exclusive_group()
    inputs.add_argument(
        "--length",
        action="append",
        type=_positive,
        metavar="N",
        help="judge on seeded samples of this many tokens; repeatable",
    )
    inputs.add_argument("--tokens", type=_token_ids, metavar="IDS", help="judge on 1,2,3")
    inputs.add_argument("--text", metavar="TEXT", help="judge on this text")
    run.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the samples")
    run.add_argument("--json", metavar="OUT", help="write the JSON report; - is standard output")
    run.add_argument("--junit", metavar="OUT", help="write a JUnit XML report")
    run.add_argument("--quiet", action="store_true", help="print the verdict alone")
    run.set_defaults(function=_run)

    synth = add("synth", "Write a synthetic checkpoint, or convert one to Hugging Face's format.")
    what = synth.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", metavar="SIZE", help="124M, 355M, 774M, 1558M, or V,P,D,H,L")
    what.add_argument(
        "--convert", type=Path, metavar="OPENAI_DIR", help="convert this checkpoint instead"
    )
    synth.add_argument("--seed", type=_natural, default=0, metavar="N")
    synth.add_argument("--format", choices=("openai", "huggingface", "both"), default="openai")
    synth.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    synth.set_defaults(function=_synth)

    add("ports", "List the built-in ports.").set_defaults(function=_ports)
    add("doctor", "Say what this installation can do.").set_defaults(function=_doctor)
    return parser


def _options(args: argparse.Namespace) -> Options:
    from verify.run import Options

    return Options(
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        lengths=tuple(args.length) if args.length else None,
        tokens=args.tokens,
        text=args.text,
    )


@contextlib.contextmanager
def _standard_output_for_the_report() -> Iterator[None]:
    """Whatever a port prints goes to standard error, also from C, so that the JSON stays whole."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from verify.report.progress import Bars

    with Bars() as bars:
        yield bars


def _run(args: argparse.Namespace) -> int:
    from verify.checkpoint import default_checkpoint
    from verify.report import json, junit, terminal
    from verify.report.output import OutputFile
    from verify.run import run
    from verify.selection import default_ports

    if args.json and args.json != "-" and args.json == args.junit:
        raise UsageError(f"{args.json}: --json and --junit cannot share a file")
    if args.junit == "-":
        raise UsageError("--junit needs a file")
    # Before the long run: a report that cannot be written is no reason to have waited.
    outputs = [
        (OutputFile(Path(out)), render)
        for out, render in ((args.json, json.render), (args.junit, junit.render))
        if out is not None and out != "-"
    ]
    options = _options(args)
    checkpoint = args.checkpoint if args.checkpoint is not None else default_checkpoint()
    ports, missing = (args.port, []) if args.port else default_ports(checkpoint)
    for line in missing:
        print(f"gpt-verify: not compared: {line}", file=sys.stderr)

    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(_standard_output_for_the_report())
        progress = stack.enter_context(_progress(args.quiet))
        report = run(checkpoint, ports, options, progress)
    for output, render in outputs:
        output.write(render(report))
    stream = sys.stderr if to_stdout else sys.stdout
    if args.quiet:
        text = terminal.summary(report) + "\n"
    else:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
        text = terminal.render(report, width=columns or terminal.WIDTH, colour=columns is not None)
    # The verdict stands, whether or not anybody reads on.
    with contextlib.suppress(BrokenPipeError):
        print(text, end="", file=stream, flush=True)
        if to_stdout:
            sys.stdout.buffer.write(json.render(report).encode())
            sys.stdout.flush()
    return report.exit_status


def _synth(args: argparse.Namespace) -> int:
    from verify.checkpoint import synthetic

    if args.out_dir.exists() and (not args.out_dir.is_dir() or any(args.out_dir.iterdir())):
        raise UsageError(f"{args.out_dir}: exists and is not an empty directory")
    if args.convert is not None:
        synthetic.convert(args.convert, args.out_dir)
        print(f"{args.out_dir}: converted from {args.convert}")
    else:
        config = synthetic.resolve_size(args.size)
        synthetic.synthesize(args.out_dir, config, args.seed, format=args.format)
        print(f"{args.out_dir}: {args.size}, seed {args.seed}")
    return 0


def _ports(args: argparse.Namespace) -> int:
    from verify.ports.registry import builtin_ports

    ports = builtin_ports()
    width = max(len(port.name) for port in ports)
    for port in ports:
        state = "" if port.missing is None else f" (not available: {port.missing})"
        print(f"{port.name:<{width}}  {port.summary}{state}")
    print(f"{'huggingface':<{width}}  both of the above that begin so")
    print("\nhuggingface=DIR|HUB-ID  the same with weights of its own")
    print("FILE.py:factory, package.module:factory  a port of yours")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from verify.doctor import doctor

    lines, well = doctor()
    print("\n".join(lines))
    return 0 if well else COULD_NOT_JUDGE


def _complain(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # One line, whatever the message holds.
    print(f"gpt-verify: {' '.join(message.split())}", file=sys.stderr)
    return COULD_NOT_JUDGE


def _dispatch(args: argparse.Namespace) -> int:
    try:
        status: int = args.function(args)
        sys.stdout.flush()
        return status
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
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign is no reason to fail after a long run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    if args.debug:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
        logging.getLogger("verify").setLevel(logging.DEBUG)
    status = _dispatch(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads: keep the interpreter from saying so when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
