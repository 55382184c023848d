"""What ``gpt-verify`` takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gpt_verify import __version__
from gpt_verify.text import nearest, one_line, typed_path

COULD_NOT_JUDGE = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of this command does, and what may have
    been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(COULD_NOT_JUDGE, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")

    def parse_known_args(  # type: ignore[override]  # of its overloads, the one that is called
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What a command does not know is its own error: its parser knows what is near."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = (
                nearest(word.partition("=")[0], self._option_string_actions) for word in unknown
            )
            hint = next(filter(None, near), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None


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


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        type=typed_path,
        metavar="DIR|HUB-ID",
        help="default: the one that ships with this tool",
    )
    command.add_argument(
        "--ignore-key",
        action="append",
        default=[],
        metavar="NAME",
        help="a key of its config.json or hparams.json that alters nothing; repeatable",
    )


def _add_ports(command: argparse.ArgumentParser, default: str) -> None:
    """What is looked at: a checkpoint, ports, and how they run."""
    _add_checkpoint(command)
    command.add_argument(
        "--port",
        action="append",
        metavar="SPEC",
        help="FILE.py:factory, package.module:factory, a built-in name (gpt-verify ports), "
        f"huggingface=DIR|HUB-ID, process=COMMAND, or http://…; repeatable; {default}",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: what each port declares",
    )


def _add_inputs(command: argparse.ArgumentParser) -> None:
    """What the ports are run on."""
    inputs = command.add_mutually_exclusive_group()
    inputs.add_argument(
        "--length",
        action="append",
        type=_positive,
        metavar="N",
        help="judge on seeded samples of this many tokens; repeatable",
    )
    inputs.add_argument("--tokens", type=_token_ids, metavar="IDS", help="judge on 1,2,3")
    inputs.add_argument("--text", metavar="TEXT", help="judge on this text")
    command.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the samples")


def _add_scheduler(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster, tcp://host:8786, whose workers take the place of processes (extra "
        "cluster)",
    )


def _add_lens(lens: argparse.ArgumentParser) -> None:
    what = lens.add_mutually_exclusive_group(required=True)
    what.add_argument("text", nargs="?", metavar="TEXT", help="what is read")
    what.add_argument("--tokens", type=_token_ids, metavar="IDS", help="read 1,2,3")
    _add_ports(lens, "default: the float64 reference alone, which is shown always")
    lens.add_argument(
        "--statistic",
        default="probability",
        metavar="NAME",
        help="what the cells are shaded by; a name that does not exist lists those that do; "
        "default: probability (of the top-1)",
    )
    lens.add_argument(
        "--sub-blocks", action="store_true", help="show the states after attention too"
    )
    lens.add_argument(
        "--attribution",
        choices=("top1", "next"),
        help="print what the embedding and each sub-block add to the logit of the final top-1, or "
        "of the token that follows",
    )
    lens.add_argument(
        "--attention",
        action="store_true",
        help="keep the patterns of attention, for the page and the JSON",
    )
    lens.add_argument(
        "--decoder",
        default="ln_f",
        metavar="HOW",
        help="ln_f (default), none (no layer norm), block:J (through blocks J to the last), or "
        "the file of a tuned lens",
    )
    lens.add_argument(
        "--top", type=_positive, default=5, metavar="K", help="tokens kept of each state; default 5"
    )
    lens.add_argument("--json", metavar="OUT", help="write the numbers; - is standard output")
    lens.add_argument("--html", metavar="OUT", help="write one HTML page")
    lens.add_argument("--png", metavar="OUT", help="write a picture (needs the extra png)")
    lens.add_argument("--quiet", action="store_true", help="print no table")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "reports",
        nargs="*",
        type=Path,
        metavar="REPORT.json",
        help="of gpt-verify run --json, the older one first; without any, two ports are judged now",
    )
    _add_ports(
        compare,
        "of reports, its name there: this one alone; twice, the first of the older with the second "
        "of the newer report, or two of one",
    )
    _add_inputs(compare)
    compare.add_argument("--json", metavar="OUT", help="write all of it; - is standard output")
    compare.add_argument(
        "--html",
        metavar="OUT",
        help="write one HTML page of why two ports in half precision differ",
    )
    compare.add_argument("--quiet", action="store_true", help="print the last line alone")


def _add_recipe(recipe: argparse.ArgumentParser) -> None:
    _add_ports(recipe, "one is needed")
    _add_inputs(recipe)
    recipe.add_argument(
        "--recipe",
        metavar="authors|FILE",
        help="what every port must keep to: the recipe of the model's authors, or a file, "
        '{"layer_norm": "float32", …} (docs/recipes.md)',
    )
    recipe.add_argument("--json", metavar="OUT", help="write all of it; - is standard output")
    recipe.add_argument("--quiet", action="store_true", help="print one line a port alone")


def _add_claims(claims: argparse.ArgumentParser) -> None:
    claims.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help="tie-transpose, or what several begin with: tie; with whole answers; default: all",
    )
    _add_checkpoint(claims)
    claims.add_argument(
        "--text", metavar="TEXT", help="measure claims about weights on this prose, not on ours"
    )
    claims.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PYTHON",
        help="another interpreter, whose transformers is examined too; repeatable",
    )
    claims.add_argument("--json", metavar="OUT", help="write the JSON report; - is standard output")
    claims.add_argument("--html", metavar="OUT", help="write one HTML page")
    claims.add_argument("--markdown", metavar="OUT", help="write the page of the documentation")
    claims.add_argument("--quiet", action="store_true", help="print the summary alone")


def _add_power(power: argparse.ArgumentParser) -> None:
    _add_checkpoint(power)
    power.add_argument(
        "--quick", action="store_true", help="a part of it in a minute; the output says which"
    )
    power.add_argument(
        "--family", action="append", metavar="NAME", help="faults of this family alone; repeatable"
    )
    power.add_argument("--fault", action="append", metavar="NAME", help="this fault; repeatable")
    power.add_argument(
        "--correct", action="store_true", help="the correct variants alone, each by every law"
    )
    power.add_argument(
        "--every-law",
        action="store_true",
        help="check all laws on every fault in all layers, not the one that must refute it "
        "alone, and against every correct variant on every seed, not in turn",
    )
    power.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the inputs")
    power.add_argument(
        "--seeds", type=_positive, metavar="N", help="of each correct variant; default 10"
    )
    power.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="processes; default: GPT_VERIFY_JOBS, else one a core",
    )
    _add_scheduler(power)
    power.add_argument("--json", metavar="OUT", help="write every trial; - is standard output")
    power.add_argument("--markdown", metavar="OUT", help="write the page of the documentation")
    power.add_argument("--quiet", action="store_true", help="print the last line alone")


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

    run = add(
        "run",
        "Judge ports against a checkpoint. [tool.gpt-verify] in pyproject.toml has the defaults of "
        "ports, checkpoint, dtype, lengths and require (docs/ci.md).",
        epilog=parser.epilog,
    )
    _add_ports(run, "default: those of pyproject.toml, else every built-in port that is installed")
    _add_inputs(run)
    run.add_argument("--json", metavar="OUT", help="write the JSON report; - is standard output")
    run.add_argument("--junit", metavar="OUT", help="write a JUnit XML report")
    run.add_argument("--html", metavar="OUT", help="write the report as one HTML page")
    run.add_argument("--badge", metavar="OUT", help="write the verdict as a badge for shields.io")
    run.add_argument(
        "--sarif", metavar="OUT", help="write the failures as SARIF, for GitHub's code scanning"
    )
    run.add_argument(
        "--require",
        action="append",
        metavar="all|LAW|N%",
        help="what must be examined, or the run is unjudged: every check, those of a law (tying, "
        "tying.graph), or a part of all; repeatable",
    )
    run.add_argument(
        "--baseline",
        type=Path,
        metavar="OLD.json",
        help="compare with this earlier report; what is worse counts as a failure",
    )
    run.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="processes that judge ports, and laws of a port, side by side; default: "
        "GPT_VERIFY_JOBS, else as many as there are cores and memory for",
    )
    _add_scheduler(run)
    run.add_argument(
        "--fail-fast",
        action="store_true",
        help="stop at the first failure; what comes after it reads not examined",
    )
    run.add_argument("--quiet", action="store_true", help="print the verdict alone")

    _add_compare(
        add(
            "compare",
            "Say what moved between two reports, or between two ports of one.",
            epilog="Exit status: 0 nothing is worse, 1 something is, 2 could not be compared.",
        )
    )

    report = add(
        "report",
        "Put several reports into one table: the same ports on several versions, or over time.",
        epilog="Exit status: 0 all verified, 1 one is refuted, 2 one could not be judged. With "
        "--history: 0 nothing is worse in the newest report than it was before, 1 something is, 2 "
        "it cannot be compared with the one before it.",
    )
    report.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT.json", help="of gpt-verify run --json"
    )
    report.add_argument(
        "--history",
        action="store_true",
        help="order them by date; say what moved from each to the next, and since when anything "
        "is worse",
    )
    report.add_argument("--html", metavar="OUT", help="write the table as one HTML page")
    report.add_argument("--quiet", action="store_true", help="print the last line alone")

    _add_lens(add("lens", "Show what each layer would predict if it were the last."))
    _add_claims(
        add(
            "claims",
            "Decide by tests what people say of GPT-2.",
            epilog="Exit status: 0 all as expected, 1 the evidence contradicts what a claim is "
            "expected to be, 2 could not judge.",
        )
    )

    diagnose = add(
        "diagnose",
        "Say what is wrong with a port, and prove that nothing else is.",
        epilog="Exit status: 0 nothing is wrong, 1 refuted, 2 could not judge.",
    )
    _add_ports(diagnose, "one is needed")
    _add_inputs(diagnose)
    diagnose.add_argument("--json", metavar="OUT", help="write all of it; - is standard output")
    diagnose.add_argument("--quiet", action="store_true", help="print the statement alone")

    _add_recipe(
        add(
            "recipe",
            "Say what a port rounds where, operation by operation, from the bits of its numbers.",
            epilog="Exit status: 0 found out, and as declared, 1 not as declared, 2 not found out.",
        )
    )

    _add_power(
        add(
            "power",
            "Inject every known fault, judge every correct variant, and say what is found.",
            epilog="Exit status: 0 every statement holds, 1 one does not, 2 could not judge.",
        )
    )

    synth = add("synth", "Write a synthetic checkpoint, or convert one to Hugging Face's format.")
    what = synth.add_mutually_exclusive_group()
    what.add_argument(
        "--size",
        metavar="SIZE",
        help="124M, 355M, 774M, 1558M, openai-gpt, or [openai-gpt:]V,P,D,H,L",
    )
    what.add_argument(
        "--convert", type=Path, metavar="OPENAI_DIR", help="convert this checkpoint instead"
    )
    synth.add_argument(
        "--family",
        metavar="NAME",
        help="llama, gemma3_text, …: a small model of this family, one of --size V,P,D,H,L, or of "
        "a released size (0.6B of qwen3, 3.2-1B of llama)",
    )
    synth.add_argument("--seed", type=_natural, default=0, metavar="N")
    synth.add_argument("--format", choices=("openai", "huggingface", "both"), default="openai")
    synth.add_argument("out_dir", type=Path, metavar="OUT_DIR")

    add("ports", "List the built-in ports.")
    add("doctor", "Say what this installation can do.")
    return parser
