"""What each command of ``gpt-verify`` does.

Everything that is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from functools import partial

from gpt_verify.command.arguments import COULD_NOT_JUDGE
from gpt_verify.command.run import options_of
from gpt_verify.command.streams import progress_bars, say, standard_output_for_the_report
from gpt_verify.errors import UsageError


def _run(args: argparse.Namespace) -> int:
    from gpt_verify.command.run import run

    return run(args)


def _lens(args: argparse.Namespace) -> int:
    from gpt_verify.judging.lens import lens_run
    from gpt_verify.judging.options import Options
    from gpt_verify.ports.named import require_all
    from gpt_verify.ports.registry import expand
    from gpt_verify.report.lens import html, json, picture, png, terminal
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs
    from gpt_verify.text import one_line

    view = picture.view(args.statistic)
    require_all(expand(args.port or []), args.device)
    if args.png is not None:
        png.require()
    outputs = open_outputs({"json": args.json, "html": args.html, "png": args.png})
    spare_inputs(outputs, args.checkpoint, args.port or (), [args.decoder])
    options = Options(
        args.device,
        args.dtype,
        tokens=args.tokens,
        text=args.text,
        ignore_keys=tuple(args.ignore_key),
    )
    more = [f"--statistic={args.statistic}"] * (args.statistic != "probability")
    more += ["--sub-blocks"] * args.sub_blocks
    more += [f"--attribution={args.attribution}"] * (args.attribution is not None)
    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(standard_output_for_the_report())
        report = lens_run(
            args.checkpoint, args.port or (), options, args.top, args.decoder, more, args.attention
        )
    for reading in report.readings:
        if args.debug and reading.exception is not None:
            traceback.print_exception(reading.exception)
        if reading.error is not None:
            print(f"gpt-verify: {one_line(reading.error)}", file=sys.stderr)
    unwritten = write_outputs(
        outputs,
        {
            "json": lambda: json.render(report),
            "html": lambda: html.render(report, view),
            "png": lambda: png.render(report, view, sub_blocks=args.sub_blocks),
        },
    )
    stream = sys.stderr if to_stdout else sys.stdout
    text = ""
    if not args.quiet:
        text = terminal.render(
            report,
            view,
            colours=terminal.colours_of(stream),
            width=terminal.width_of(stream),
            sub_blocks=args.sub_blocks,
            attribution=args.attribution,
        )
    say(text, stream, json.render(report) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return report.exit_status


def _claims(args: argparse.Namespace) -> int:
    from gpt_verify.claims.run import claims_run
    from gpt_verify.report.claims import html, json, markdown, messages, terminal
    from gpt_verify.report.lens.terminal import colours_of
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    asked = {"json": args.json, "html": args.html, "markdown": args.markdown}
    outputs = open_outputs(asked)
    spare_inputs(outputs, args.checkpoint, (), args.python)
    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(standard_output_for_the_report())
        report = claims_run(args.checkpoint, args.ids, args.text, args.python, args.ignore_key)
    for decided in report.claims:
        if args.debug and decided.exception is not None:
            traceback.print_exception(decided.exception)
    unwritten = write_outputs(
        outputs,
        {
            "json": lambda: json.render(report),
            "html": lambda: html.render(report),
            "markdown": lambda: markdown.render(report),
        },
    )
    stream = sys.stderr if to_stdout else sys.stdout
    if args.quiet:
        text = messages.summary(report) + "\n"
    else:
        coloured = colours_of(stream) is not None
        text = terminal.render(report, full=bool(args.ids), colour=coloured)
    say(text, stream, json.render(report) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return report.exit_status


def _diagnose(args: argparse.Namespace) -> int:
    from gpt_verify.judging.diagnose import diagnose_run
    from gpt_verify.judging.selection import request
    from gpt_verify.ports.named import require_all
    from gpt_verify.report import diagnose as report
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    asked = request(args.checkpoint, args.port or (), options_of(args), by_default=False)
    if len(asked.specs) != 1:
        raise UsageError(f"diagnose takes one --port; {len(asked.specs)} were given")
    require_all(asked.specs, args.device)
    outputs = open_outputs({"json": args.json})
    spare_inputs(outputs, args.checkpoint, args.port or ())
    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(standard_output_for_the_report())
        progress = stack.enter_context(progress_bars(args.quiet))
        diagnosed = diagnose_run(asked, progress)
    if args.debug and diagnosed.port.exception is not None:
        traceback.print_exception(diagnosed.port.exception)
    unwritten = write_outputs(outputs, {"json": lambda: report.json(diagnosed)})
    text = f"{report.statement(diagnosed)}\n" if args.quiet else report.terminal(diagnosed)
    stream = sys.stderr if to_stdout else sys.stdout
    say(text, stream, report.json(diagnosed) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return diagnosed.exit_status


def _power(args: argparse.Namespace) -> int:
    from gpt_verify.command.power import power

    return power(args)


def _compare(args: argparse.Namespace) -> int:
    from gpt_verify.command.compare import compare

    return compare(args)


def _recipe(args: argparse.Namespace) -> int:
    from gpt_verify.command.recipe import recipe

    return recipe(args)


def _report(args: argparse.Namespace) -> int:
    from gpt_verify.report import matrix
    from gpt_verify.report.history import html, terminal
    from gpt_verify.report.history.course import History
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    outputs = open_outputs({"html": args.html})
    spare_inputs(outputs, None, (), [str(path) for path in args.reports])
    made: History | matrix.Matrix
    page: partial[str]
    text: partial[str]
    if args.history:
        made = over_time = History.read(args.reports)
        page, text = partial(html.render, over_time), partial(terminal.render, over_time)
    else:
        made = table = matrix.Matrix.read(args.reports)
        page, text = partial(matrix.html, table), partial(matrix.terminal, table)
    unwritten = write_outputs(outputs, {"html": page})
    say(f"{made.headline}\n" if args.quiet else text(), sys.stdout, "")
    if unwritten is not None:
        raise unwritten
    return made.exit_status


def _synth(args: argparse.Namespace) -> int:
    from gpt_verify.checkpoint import synthetic

    if args.out_dir.exists() and (not args.out_dir.is_dir() or any(args.out_dir.iterdir())):
        raise UsageError(f"{args.out_dir}: exists and is not an empty directory")
    if args.family is not None:
        if args.convert is not None or args.format == "both":
            raise UsageError("--family: writes Hugging Face's format, and converts nothing")
        size = synthetic.synthesize_family(args.out_dir, args.family, args.size, args.seed)
        print(f"{args.out_dir}: {args.family}, {_sizes(size)}, seed {args.seed}")
        print(f"next: gpt-verify run --checkpoint {args.out_dir} --port huggingface")
    elif args.size is None and args.convert is None:
        raise UsageError("synth: one of --size, --convert, --family is required")
    elif args.convert is not None:
        synthetic.convert(args.convert, args.out_dir)
        print(f"{args.out_dir}: converted from {args.convert}")
    else:
        config = synthetic.resolve_size(args.size)
        synthetic.synthesize(args.out_dir, config, args.seed, format=args.format)
        print(f"{args.out_dir}: {_sizes(args.size)}, seed {args.seed}")
    return 0


def _sizes(size: str) -> str:
    """What the numbers of ``--size`` mean; a name as it is."""
    names = ("vocab", "ctx", "embd", "head", "layer")
    given = size.split(",")
    return ", ".join(map(" ".join, zip(names, given, strict=True))) if len(given) > 1 else size


def _ports(args: argparse.Namespace) -> int:
    from gpt_verify.ports.registry import builtin_ports

    ports = builtin_ports()
    width = max(len(port.name) for port in ports)
    for port in ports:
        state = "" if port.by_default else "; runs when it is named"
        if port.missing is not None:
            state = f" (not available: {port.missing})"
        print(f"{port.name:<{width}}  {port.summary}{state}")
    print(f"{'huggingface':<{width}}  both of the above that begin so")
    print("\nhuggingface=DIR|HUB-ID  the same with weights of its own")
    print("FILE.py:factory, package.module:factory  a port of yours")
    print("process=COMMAND, http://…  a port in another language (docs/other-languages.md)")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from gpt_verify.command.doctor import doctor

    lines, well = doctor()
    print("\n".join(lines))
    return 0 if well else COULD_NOT_JUDGE


#: By the name that is typed; each returns the exit status.
COMMANDS = {
    "run": _run,
    "compare": _compare,
    "report": _report,
    "lens": _lens,
    "diagnose": _diagnose,
    "recipe": _recipe,
    "power": _power,
    "claims": _claims,
    "synth": _synth,
    "ports": _ports,
    "doctor": _doctor,
}
