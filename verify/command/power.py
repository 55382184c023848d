"""The command ``gpt-verify power``: see ``gpt_verify.command.cli``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from gpt_verify.checkpoint import default_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.synthetic import synthesize_family
from gpt_verify.power.campaign import QUICK_SEEDS, SEEDS, Plan, run_campaign
from gpt_verify.power.summary import holds, statements
from gpt_verify.report import power as report
from gpt_verify.report.output import open_outputs, write_outputs
from gpt_verify.report.progress import Bars


def power(args: argparse.Namespace) -> int:
    """Exit status 0: everything that is claimed holds; 1: it does not; 2: nothing was tried."""
    model = next((name for name in args.family or () if name in FAMILIES), None)
    if args.checkpoint is not None or model is None:
        return _power(args, args.checkpoint or default_checkpoint())
    with tempfile.TemporaryDirectory(prefix="gpt-verify-") as directory:
        checkpoint = Path(directory) / model
        synthesize_family(checkpoint, model, None, 0)
        return _power(args, checkpoint)


def _power(args: argparse.Namespace, checkpoint: Path) -> int:
    outputs = open_outputs({"json": args.json, "markdown": args.markdown})
    plan = Plan(
        checkpoint,
        args.seed,
        args.seeds or (QUICK_SEEDS if args.quick else SEEDS),
        args.quick,
        args.every_law,
        tuple(args.family or ()),
        tuple(args.fault or ()),
        args.correct,
        ignore_keys=tuple(args.ignore_key),
        scheduler=args.scheduler,
        **({"jobs": args.jobs} if args.jobs else {}),
    )
    if sys.stderr.isatty() and not args.quiet:
        with Bars() as bars:
            campaign = run_campaign(plan, _Steps(bars))
    else:
        campaign = run_campaign(plan)
    unwritten = write_outputs(
        outputs,
        {
            "json": lambda: report.json(campaign),
            "markdown": lambda: report.markdown(campaign),
        },
    )
    to_stdout = args.json == "-"
    stream = sys.stderr if to_stdout else sys.stdout
    text = report.terminal(campaign, colour=stream.isatty())
    with contextlib.suppress(BrokenPipeError):
        print(report.verdict(campaign) if args.quiet else text.rstrip("\n"), file=stream)
        if to_stdout:
            sys.stdout.buffer.write(report.json(campaign).encode())
            sys.stdout.flush()
    if unwritten is not None:
        raise unwritten
    if not statements(campaign):
        return 2
    return 0 if holds(campaign) else 1


class _Steps:
    """The bar appears with the first trial that is done."""

    def __init__(self, bars: Bars) -> None:
        self._bars, self._begun = bars, False

    def __call__(self, what: str, trials: int) -> None:
        if not self._begun:
            self._bars.port("power", trials)
            self._begun = True
        self._bars.step(what)
