"""``gpt-verify recipe``: what a port rounds where."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import traceback

from gpt_verify.command.run import options_of
from gpt_verify.command.streams import say, standard_output_for_the_report
from gpt_verify.errors import UsageError


def recipe(args: argparse.Namespace) -> int:
    """The exit status: 0 found out, and as declared; 1 not as declared; 2 not found out."""
    from gpt_verify.judging.recipe import recipe_run
    from gpt_verify.judging.selection import request
    from gpt_verify.ports.named import require_all
    from gpt_verify.recipes.declared import read_declaration
    from gpt_verify.report import recipe as report
    from gpt_verify.report.output import open_outputs, spare_inputs, write_outputs

    asked = request(args.checkpoint, args.port or (), options_of(args), by_default=False)
    if not asked.specs:
        raise UsageError("recipe takes one --port or several")
    require_all(asked.specs, args.device)
    declaration, more = None, ""
    if args.recipe is not None:
        declaration = read_declaration(args.recipe, asked.checkpoint.config)
        more = f" --recipe {shlex.quote(args.recipe)}"
    outputs = open_outputs({"json": args.json})
    spare_inputs(outputs, args.checkpoint, args.port or (), [args.recipe or ""])
    to_stdout = args.json == "-"
    with contextlib.ExitStack() as stack:
        if to_stdout:
            stack.enter_context(standard_output_for_the_report())
        found = recipe_run(asked, declaration, more)
    for port in found.ports:
        if args.debug and port.exception is not None:
            traceback.print_exception(port.exception)
    unwritten = write_outputs(outputs, {"json": lambda: report.json(found)})
    text = report.quiet(found) if args.quiet else report.terminal(found)
    say(text, sys.stderr if to_stdout else sys.stdout, report.json(found) if to_stdout else "")
    if unwritten is not None:
        raise unwritten
    return found.exit_status
