"""``gpt-verify compare``: what moved between two runs, or between two ports of one."""

from __future__ import annotations

import argparse
import sys

from gpt_verify.command.streams import say
from gpt_verify.errors import UsageError


def compare(args: argparse.Namespace) -> int:
    """The exit status: 0 nothing is worse, 1 something is."""
    from gpt_verify.report.compare import json, terminal
    from gpt_verify.report.compare.comparison import compare_reports
    from gpt_verify.report.compare.stored import read_report
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    paths, ports = args.reports, args.port or []
    if len(paths) > 2:
        raise UsageError(f"compare takes one or two reports; {len(paths)} were given")
    if len(ports) > 2:
        raise UsageError(f"compare takes one --port or two; {len(ports)} were given")
    if len(paths) == 1 and len(ports) != 2:
        raise UsageError("of one report two ports are compared: --port A --port B")
    outputs = open_outputs({"json": args.json})
    spare_inputs(outputs, None, (), [str(path) for path in paths])
    before = read_report(paths[0])
    after = before if len(paths) == 1 else read_report(paths[1])
    compared = compare_reports(before, after, (str(paths[0]), str(paths[-1])), ports)
    unwritten = write_outputs(outputs, {"json": lambda: json.render(compared)})
    to_stdout = args.json == "-"
    text = terminal.summary(compared) + "\n" if args.quiet else terminal.render(compared)
    stream = sys.stderr if to_stdout else sys.stdout
    say(text, stream, json.render(compared) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return compared.exit_status
