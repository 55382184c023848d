"""``gpt-verify run``: the main job."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING

from gpt_verify.command.streams import progress_bars, say, standard_output_for_the_report
from gpt_verify.errors import UsageError

if TYPE_CHECKING:
    from gpt_verify.findings import Report
    from gpt_verify.judging.options import Options
    from gpt_verify.judging.selection import Request
    from gpt_verify.report.compare.baseline import Baseline
    from gpt_verify.report.compare.comparison import Comparison


def options_of(args: argparse.Namespace) -> Options:
    from gpt_verify.judging.options import Options

    return Options(
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        lengths=tuple(args.length) if args.length else None,
        tokens=args.tokens,
        text=args.text,
        ignore_keys=tuple(args.ignore_key),
        require=tuple(getattr(args, "require", None) or ()),  # diagnose has none
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from gpt_verify.judging.estimate import plan_of
    from gpt_verify.judging.options import Options, chosen_inputs
    from gpt_verify.judging.project import read_project
    from gpt_verify.judging.run import run_request
    from gpt_verify.judging.selection import request
    from gpt_verify.judging.side_by_side import jobs_for
    from gpt_verify.ports.named import require_all
    from gpt_verify.report import badge, github, html, json, junit, sarif, terminal
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs
    from gpt_verify.text import one_line

    project = read_project(Path.cwd())
    checkpoint, ports = args.checkpoint or project.checkpoint, args.port or project.ports
    outputs = open_outputs(
        {
            "json": args.json,
            "junit": args.junit,
            "html": args.html,
            "badge": args.badge,
            "sarif": args.sarif,
        }
    )
    spare_inputs(outputs, checkpoint, ports, [str(args.baseline or ""), "pyproject.toml"])
    asked = request(checkpoint, ports, Options(**project.completed(vars(options_of(args)))))
    require_all(asked.specs, args.device)
    chosen_inputs(asked.checkpoint, asked.options)  # what is wrong with them is said first
    baseline = _baseline(args, asked)
    jobs = 1 if args.debug else jobs_for(asked, args.jobs)  # a traceback stays in its process
    for line in asked.missing:
        print(f"gpt-verify: not compared: {line}", file=sys.stderr)

    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(standard_output_for_the_report())
        plan = partial(plan_of, asked, jobs)
        progress = stack.enter_context(progress_bars(args.quiet, plan))
        report = run_request(
            asked, progress, jobs=jobs, cluster=args.scheduler, fail_fast=args.fail_fast
        )
    for port in report.ports:
        if args.debug and port.exception is not None:
            traceback.print_exception(port.exception)
    # Ports that break for one reason, as two that miss the same files, say it once.
    for error in dict.fromkeys(port.error for port in report.ports if port.error is not None):
        print(f"gpt-verify: {one_line(error)}", file=sys.stderr)
    repeats = asked.repeats()
    unwritten = write_outputs(
        outputs,
        {
            "json": lambda: json.render(report),
            "junit": lambda: junit.render(report),
            "html": lambda: html.render(report, repeats),
            "badge": lambda: badge.render(report),
            "sarif": lambda: sarif.render(report),
        },
    )
    compared, incomparable = _against(baseline, report, asked)
    stream = sys.stderr if to_stdout else sys.stdout
    if args.quiet:
        text = terminal.summary(report) + "\n"
    else:
        text = terminal.render(report, colour=stream.isatty(), repeats=repeats)
    say(text + _describe(compared, args.quiet), stream, json.render(report) if to_stdout else "")
    if github.active():
        _tell_github(report, compared)
    if unwritten is not None:
        raise unwritten
    if incomparable is not None:
        if report.exit_status != 1:
            raise incomparable
        print(f"gpt-verify: {incomparable}", file=sys.stderr)  # what is refuted stays so
    return report.exit_status or (0 if compared is None else compared.exit_status)


def _baseline(args: argparse.Namespace, asked: Request) -> Baseline | None:
    """Read before the run, so that nobody waits for a comparison that is refused."""
    if args.baseline is None:
        return None
    from gpt_verify.report.compare.baseline import Baseline

    baseline = Baseline.read(args.baseline)
    baseline.require_comparable(asked)
    return baseline


def _against(
    baseline: Baseline | None, report: Report, asked: Request
) -> tuple[Comparison | None, UsageError | None]:
    if baseline is None:
        return None, None
    try:
        return baseline.against(report, asked.specs if asked.ports else None), None
    except UsageError as error:
        return None, error


def _tell_github(report: Report, compared: Comparison | None) -> None:
    """Print GitHub's annotations on standard error, which GitHub reads as well: standard output
    holds the report."""
    from gpt_verify.report import github

    for line in github.marks(report, compared):
        print(line, file=sys.stderr)
    if why := github.write_summary(github.summary(report, compared)):
        print(f"gpt-verify: {why}", file=sys.stderr)


def _describe(compared: Comparison | None, quiet: bool) -> str:
    if compared is None:
        return ""
    from gpt_verify.report.compare import terminal

    return f"{terminal.summary(compared)}\n" if quiet else f"\n{terminal.render(compared)}"
