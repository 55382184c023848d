"""``gpt-verify compare``: what moved between two runs, or between two ports of one."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt_verify.command.streams import progress_bars, say, standard_output_for_the_report
from gpt_verify.errors import UsageError

if TYPE_CHECKING:
    from gpt_verify.findings import Report
    from gpt_verify.judging.attribute import Attributed
    from gpt_verify.judging.selection import Request

#: In which two correct ports differ by more than the order of their sums.
HALVES = {"bfloat16", "float16"}


def compare(args: argparse.Namespace) -> int:
    """The exit status: 0 nothing is worse, 1 something is."""
    from gpt_verify.report import attribution
    from gpt_verify.report.compare import json, terminal
    from gpt_verify.report.compare.comparison import compare_reports
    from gpt_verify.report.compare.stored import read_report
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    paths, ports = args.reports, args.port or []
    if len(paths) > 2:
        raise UsageError(f"compare takes one or two reports; {len(paths)} were given")
    if len(ports) > 2:
        raise UsageError(f"compare takes one --port or two; {len(ports)} were given")
    if len(paths) < 2 and len(ports) != 2:
        which = "of one report" if paths else "without reports"
        raise UsageError(f"{which} two ports are compared: --port A --port B")
    if args.html and paths:
        raise UsageError("--html shows why two ports differ: without reports, --port A --port B")
    outputs = open_outputs({"json": args.json, "html": args.html})
    spare_inputs(outputs, args.checkpoint, ports, [str(path) for path in paths])
    attributed: Attributed | None = None
    if paths:
        before = read_report(paths[0])
        after = before if len(paths) == 1 else read_report(paths[1])
        names = str(paths[0]), str(paths[-1])
    else:
        asked = _asked(args)
        before = after = _judged(asked, args)
        names = (ports[0], ports[1])
        if {port.dtype for port in after.ports} & HALVES:
            attributed = _attributed(asked, args)
    compared = compare_reports(before, after, names, ports)
    if args.html and attributed is None:
        raise UsageError("--html shows why two ports differ in half precision (--dtype bfloat16)")
    accounted = None if attributed is None else attribution.as_dict(attributed)
    texts = {
        "json": lambda: json.render(compared, accounted),
        "html": lambda: attribution.page(attributed) if attributed is not None else "",
    }
    unwritten = write_outputs(outputs, texts)
    to_stdout = args.json == "-"
    text = terminal.summary(compared) + "\n" if args.quiet else terminal.render(compared)
    if attributed is not None and not args.quiet:
        text = f"{attribution.terminal(attributed)}\n{text}"
    stream = sys.stderr if to_stdout else sys.stdout
    say(text, stream, json.render(compared, accounted) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return compared.exit_status


def _asked(args: argparse.Namespace) -> Request:
    """The request for both ports.

    Raises:
        UsageError: not two of them.
    """
    from gpt_verify.command.run import options_of
    from gpt_verify.judging.selection import request
    from gpt_verify.ports.named import require_all

    asked = request(args.checkpoint, args.port, options_of(args), by_default=False)
    if len(asked.specs) != 2:
        raise UsageError(f"compare takes two ports; these are {', '.join(asked.specs)}")
    require_all(asked.specs, args.device)
    return asked


def _judged(asked: Request, args: argparse.Namespace) -> Report:
    """Both ports against the reference, on the same inputs.

    Raises:
        UsageError: one of them could not be judged.
    """
    from gpt_verify.judging.run import run_request

    with contextlib.ExitStack() as stack:
        if args.json == "-":
            stack.enter_context(standard_output_for_the_report())
        report = run_request(asked, stack.enter_context(progress_bars(args.quiet)))
    for port in report.ports:
        if port.error is not None:
            raise UsageError(f"{port.name} could not be judged: {port.error}")
    # Two of one kind may call themselves alike.
    named = zip(report.ports, args.port, strict=True)
    return replace(report, ports=tuple(replace(port, name=name) for port, name in named))


def _attributed(asked: Request, args: argparse.Namespace) -> Attributed:
    """What makes the difference between them."""
    from gpt_verify.judging.attribute import attribute_run

    with contextlib.ExitStack() as stack:
        if args.json == "-":
            stack.enter_context(standard_output_for_the_report())
        return attribute_run(asked)
