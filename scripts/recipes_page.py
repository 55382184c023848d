"""The tables of docs/recipes.md: which recipes there are, and which of them engines follow.

    python scripts/recipes_page.py              # exit status 1 where the recipes are others
    python scripts/recipes_page.py --write      # those that there are
    python scripts/recipes_page.py --measure    # and what transformers' models do, here and now
    python scripts/recipes_page.py --reports FILE.json …  # and what others do: of each engine what
                                                # ``gpt-verify recipe --json`` wrote of it

What engines do is measured by ``gpt-verify recipe`` on the default checkpoint, and of each family
on the small checkpoint that ``gpt-verify synth --family`` writes.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import ROOT

from gpt_verify.checkpoint.synthetic import synthesize_family
from gpt_verify.judging.options import Options
from gpt_verify.judging.recipe import PortRecipe, recipe_run
from gpt_verify.judging.selection import request
from gpt_verify.recipes.table import NOUNS, RECIPES
from gpt_verify.report import recipe as report

PAGE = ROOT / "docs" / "recipes.md"
EAGER, SDPA = "huggingface-eager", "huggingface-sdpa"
HALVES = ("bfloat16", "float16")
#: One of each way of norming, gating and turning.
FAMILIES = ("gpt_neox", "llama", "gemma2", "olmo2", "qwen3", "phi")


def put(text: str, mark: str, lines: Sequence[str]) -> str:
    """The page with these lines between a mark and its end."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(
            f"{PAGE.name}: {begin} … {end} is there {len(pattern.findall(text))} times"
        )
    body = "\n".join(lines)
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", text)


def recipes() -> Iterator[str]:
    """One line for each recipe."""
    yield "| operation | recipe | the line says |"
    yield "|---|---|---|"
    for operation, known in RECIPES.items():
        for recipe in known:
            said = f"{NOUNS[operation]} {recipe.words.format(half='bfloat16')}"
            yield f"| `{operation}` | `{recipe.name}` | {said} |"


def found(checkpoint: Path | None, port: str, dtype: str) -> PortRecipe:
    asked = request(checkpoint, [port], Options(dtype=dtype), by_default=False)
    (made,) = recipe_run(asked).ports
    return made


def cells(made: PortRecipe, half: str) -> dict[str, str]:
    """Operation → the names of what fits, of every kind of site that has it."""
    if made.error is not None:
        return {"": made.error}
    by_noun: dict[str, list[str]] = {}
    for group in made.groups:
        name = " or ".join(f"`{name}`" for name in group.named)
        if group.why_not:
            name = "not examined"
        elif not name:
            best = group.best
            assert best is not None
            name = "exact" if group.exact else f"none; nearest `{best.recipe.name}`"
        if group.named and group.kept != half:
            name += f", kept in {group.kept}"
        noun = NOUNS.get(group.operation, group.operation)
        if name not in by_noun.setdefault(noun, []):
            by_noun[noun].append(name)
    return {noun: "; ".join(names) for noun, names in by_noun.items()}


def table(columns: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """A line for each operation, a column for each port."""
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for noun in dict.fromkeys(noun for column in columns.values() for noun in column):
        row = " | ".join(column.get(noun, "") for column in columns.values())
        yield f"| {noun} | {row} |"


def engines() -> Iterator[str]:
    """What transformers' models do."""
    yield f"transformers {version('transformers')} with torch {version('torch')}, on the CPU."
    yield ""
    yield "GPT-2, the default checkpoint:"
    yield ""
    made = {
        f"{port.removeprefix('huggingface-')}, {dtype}": cells(found(None, port, dtype), dtype)
        for dtype in HALVES
        for port in (EAGER, SDPA)
    }
    yield from table(made)
    yield ""
    yield "Some families, their small checkpoints, in bfloat16:"
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name
            synthesize_family(path, name, None, 0)
            columns = {
                port.removeprefix("huggingface-"): cells(found(path, port, "bfloat16"), "bfloat16")
                for port in (EAGER, SDPA)
            }
        yield ""
        yield f"**{name}**"
        yield ""
        yield from table(columns)


def others(files: Sequence[Path]) -> Iterator[str]:
    """What engines do of which there are reports: a column for each."""
    columns: dict[str, dict[str, str]] = {}
    for file in files:
        for port in json.loads(file.read_text(encoding="utf-8"))["ports"]:
            columns[f"{port['name']}, {port['dtype']}"] = _reported(port)
    yield from table(columns)


def _reported(port: Mapping[str, Any]) -> dict[str, str]:
    """As ``cells``, of a report."""
    by_noun: dict[str, list[str]] = {}
    for group in port["groups"]:
        name = " or ".join(f"`{one}`" for one in group["recipes"])
        if group["not_examined"]:
            name = "not examined"
        elif not name:
            nearest = group["tried"][0]
            share = nearest["equal"] / nearest["elements"]
            name = f"none; nearest `{nearest['recipe']}` ({share:.2f} equal)"
        elif group["kept_in"] != port["dtype"]:
            name += f", kept in {group['kept_in']}"
        noun = NOUNS.get(group["operation"], group["operation"])
        if name not in by_noun.setdefault(noun, []):
            by_noun[noun].append(name)
    return {noun: "; ".join(names) for noun, names in by_noun.items()}


def example() -> Iterator[str]:
    asked = request(None, [EAGER], Options(dtype="bfloat16"), by_default=False)
    yield "```text"
    yield from report.terminal(recipe_run(asked)).rstrip().splitlines()
    yield "```"


def written(text: str) -> str:
    return put(text, "recipes", list(recipes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the recipes where they belong")
    parser.add_argument("--measure", action="store_true", help="and what engines do")
    parser.add_argument("--reports", type=Path, nargs="+", help="and what others do")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    made = written(text)
    if arguments.measure:
        made = put(put(made, "example", list(example())), "engines", list(engines()))
    if arguments.reports:
        made = put(made, "others", list(others(arguments.reports)))
    if arguments.write or arguments.measure or arguments.reports:
        PAGE.write_text(made, encoding="utf-8")
    elif made != text:
        raise SystemExit("docs/recipes.md: there are other recipes; see scripts/recipes_page.py")


if __name__ == "__main__":
    main()
