"""The tables of docs/recipes.md of ways of rounding that are planted in torch: which of them are
told, and that budgets do not tell them.

    python scripts/planted_page.py              # exit status 1 where the tables are others
    python scripts/planted_page.py --write

The ways are those of tests/planted_recipes.py, in which ``gpt_verify.recipes`` has no part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
from figures import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from planted_recipes import NONE, PLANTED, Way  # after the line above
from recipe_cases import ids, made, shown
from recipe_models import source
from recipes_page import HALVES, PAGE, put

from gpt_verify.graph.local import LocalOracle
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.scores import limit_max, limit_rms
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.recipes.identify import Found
from gpt_verify.recipes.table import NOUNS
from gpt_verify.sites import sites

#: What users call faults, though no budget sees them: model, site, recipe, and what is said.
FAULTS = (
    ("gemma", "h.0.ln_1", "gain-stored", "1 + g in half precision"),
    ("gemma", "h.0.ln_1", "cast-before-gain", "cast before the gain, in Gemma"),
    ("llama", "h.0.ln_1", "float32", "cast after the gain, in Llama"),
    ("gpt2", "h.0.ln_1", "cast-before-gain", "layer norm cast before the gain"),
    ("gpt2", "h.0.ln_1", "statistics-stored", "layer norm's statistics in half precision"),
    ("llama", "h.0.ln_1", "statistics-stored", "RMS norm's statistics in half precision"),
    ("llama", "h.0.attn.q_rot", "tables-stored-once", "rotary tables in half precision"),
    ("gemma", "embed", "scale-stored", "√D in half precision"),
    ("gpt2", "h.0.mlp.act", "table-float16", "GELU by a table in float16"),
)


def planted() -> Iterator[str]:
    """One line for each operation and format."""
    yield "| operation | format | ways planted | named | least equal | most by chance |"
    yield "|---|---|---|---|---|---|"
    by_operation: dict[str, list[tuple[str, str, str]]] = {}
    for name, site, recipe in PLANTED:
        operation = sites(source(name).config)[site].operation
        by_operation.setdefault(operation, []).append((name, site, recipe))
    for operation, cases in by_operation.items():
        for dtype in HALVES:
            named, least, most = 0, 1.0, 0.0
            for case in cases:
                name, site, recipe = case
                found = shown(name, dtype, made(name, site, PLANTED[case], dtype))
                (own,) = (t for t in found.tried if t.recipe.name == recipe)
                named += recipe in found.named
                least = min(least, own.agreement.share)
                most = max(most, own.agreement.chance)
            row = f"{len(cases)} | {named} | {least:.4f} | {most:.4f}"
            yield f"| `{operation}`, {NOUNS[operation]} | {dtype} | {row} |"
    yield ""
    wrong = [found for dtype in HALVES for found in _without(dtype) if found.named]
    yield (
        f"Ways that no recipe has ({', '.join(f'{how} at `{site}`' for site, how in NONE)}), in "
        f"both formats: {len(NONE) * len(HALVES)}, of which {len(wrong)} are given the name of a "
        "recipe."
    )


def _without(dtype: str) -> Iterator[Found]:
    for (site, _), way in NONE.items():
        yield shown("gpt2", dtype, made("gpt2", site, way, dtype))


def faults() -> Iterator[str]:
    """One line for each: its scores, and what the bits say."""
    yield "| fault | model | RMS score (limit) | largest (limit) | recipe that the bits name |"
    yield "|---|---|---|---|---|"
    for name, site, recipe, words in FAULTS:
        dtype = "bfloat16"
        way = PLANTED[name, site, recipe]
        rms, largest = _scores(name, site, way, dtype)
        found = shown(name, dtype, made(name, site, way, dtype))
        names = ", ".join(f"`{n}`" for n in found.named) or "none"
        yield f"| {words} | {name} | {rms} | {largest} | {names} |"


def _scores(name: str, site: str, way: Way, dtype: str) -> tuple[str, str]:
    """The two statistics of a site under its budget, beside their limits."""
    checkpoint, p = source(name), PRECISIONS[dtype]
    values = made(name, site, way, dtype)
    length = max(len(v) if v.ndim == 2 else v.shape[-1] for v in values.values())
    weights = DeclaredWeights(checkpoint.tensors, p)
    oracle = LocalOracle(checkpoint.config, weights, p, ids(checkpoint.config, length, 0))
    *reads, (_, got) = ((s, v.detach().float().numpy()) for s, v in values.items())
    for read, value in reads:
        oracle.show(read, value)
    right = oracle.expected(site)
    assert right.budget is not None, "an operation's result has a budget"
    score = np.abs(got - right.value) / right.budget
    rms, largest = float(np.sqrt(np.mean(score**2))), float(score.max())
    limits = limit_rms(length), limit_max(score.size)
    return f"{rms:.2f} ({limits[0]:.2f})", f"{largest:.2f} ({limits[1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables where they belong")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    written = put(put(text, "planted", list(planted())), "faults", list(faults()))
    if arguments.write:
        PAGE.write_text(written, encoding="utf-8")
    elif written != text:
        raise SystemExit(
            "docs/recipes.md: planted ways are told otherwise; scripts/planted_page.py"
        )


if __name__ == "__main__":
    main()
