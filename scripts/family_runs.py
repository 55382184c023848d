"""False alarms in runs of correct ports of the families: ``correct_runs.py --families``.

Of each family small models are drawn: sizes, weights and inputs of their own. On each, every
correct variant of it (``verify/power/family_variants.py``) is judged by the comparison of weights,
sites and logits, and by some of the other laws, which take turns. The result is written model by
model, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures import ROOT, marked

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, write_family
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.run import environment
from gpt_verify.laws.table import CHECKS
from gpt_verify.power.baselines import COMPARISONS
from gpt_verify.power.trial import Bench
from gpt_verify.power.variants import variants_of

NAME = "correct-runs-families"
#: A law is checked in one run of so many.
TURNS = 10
Sizes = tuple[int, int, int, int, int]

PAGE = """# Correct ports of the families, judged

Written by `scripts/correct_runs.py --families`; do not edit. {false} false alarms of the suite in
{runs:,} runs of {variants} correct variants (`verify/power/family_variants.py`) on {models} models
of {families} families. A false alarm is a correct port that is not verified.

<!-- figures: {name}.json -->

Each model has sizes, weights and inputs of its own. Each run is judged by the comparison of
weights, sites and logits, in float64 where there is one and in the declared precision, and by one
in {turns} of the other laws, which take turns. transformers {transformers}, torch {torch}.

{families_table}

## Every variant

{variants_table}
"""


def drawn(seed: int) -> Sizes:
    """n_vocab, n_ctx, n_embd, n_head, n_layer, the same each time."""
    rng = random.Random(f"family {seed}")
    # Widths in which each family's share of a head is a whole number of rotary pairs.
    width = rng.choice((24, 32, 48))
    return rng.randint(50, 300), rng.randint(12, 48), width, 4, rng.randint(2, 4)


def laws_of(turn: int) -> set[str]:
    return {law.id for i, law in enumerate(CHECKS) if (i + turn) % TURNS == 0}


def judged(family: str, seed: int) -> list[dict[str, Any]]:
    """Every correct variant of one model."""
    sizes, found = drawn(seed), []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / family
        stated = example(family, sizes)
        write_family(directory, stated, lambda config: synthetic_tensors(config, seed))
        bench = Bench(open_checkpoint(directory), seed)
        first = list(FAMILIES).index(family) + 7 * seed
        for i, variant in enumerate(variants_of(bench.checkpoint.config)):
            made = bench.correct(variant, seed, laws_of(first + i))
            row = {"family": family, "sizes": sizes, **asdict(made)}
            row["baselines"] = [name for name, caught in made.baselines.items() if caught]
            found.append({**row, "false_alarm": made.false_alarm})
    return found


def stored(path: Path) -> dict[str, Any]:
    """The result so far; nothing that was made with other laws or numerics."""
    here = environment()
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        then = found["environment"]["made_with"]
        if all(then[key] == here["made_with"][key] for key in ("laws", "numerics")):
            return found
    return {"runs": [], "environment": here}


def run(out: Path, models: int, seconds: float) -> None:
    """So many models of each family that the result has not yet; none is begun after that time."""
    import transformers

    transformers.logging.disable_progress_bar()
    until, path = time.time() + seconds, out / f"{NAME}.json"
    result = stored(path)
    known = {(made["family"], made["seed"]) for made in result["runs"]}
    for seed in range(models):
        for family in FAMILIES:
            if (family, seed) in known or time.time() > until:
                continue
            made = judged(family, seed)
            result["runs"] += made
            _write(path, result)
            false = sum(one["false_alarm"] for one in made)
            print(f"{family}, {drawn(seed)}: {len(made)} runs, {false} false alarms", flush=True)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """A run a line."""
    rows = ",\n".join(json.dumps(made, ensure_ascii=False) for made in result["runs"])
    about = json.dumps(result["environment"], indent=1)
    path.write_text(f'{{"environment": {about},\n"runs": [\n{rows}\n]}}\n', encoding="utf-8")


def alarms(runs: Sequence[Mapping[str, Any]]) -> int:
    return sum(made["false_alarm"] for made in runs)


def _by_family(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["family", "models", "runs", "false alarms"]
    for family in FAMILIES:
        if own := [made for made in runs if made["family"] == family]:
            models = {made["seed"] for made in own}
            yield [family, str(len(models)), str(len(own)), str(alarms(own))]


def _by_variant(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["variant", "runs", "false alarms", *(f"refused by {name}" for name in COMPARISONS)]
    for variant in dict.fromkeys(made["variant"] for made in runs):
        own = [made for made in runs if made["variant"] == variant]
        refused = [str(sum(name in made["baselines"] for made in own)) for name in COMPARISONS]
        yield [variant, str(len(own)), str(alarms(own)), *refused]


def _table(rows: Iterator[list[str]]) -> str:
    first, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([first, "|" + " --- |" * (first.count(" | ") + 1), *rest])


def page(result: Mapping[str, Any]) -> str:
    runs, versions = result["runs"], result["environment"]["versions"]
    text = PAGE.format(
        false=alarms(runs),
        runs=len(runs),
        variants=len({made["variant"] for made in runs}),
        models=len({(made["family"], made["seed"]) for made in runs}),
        families=len({made["family"] for made in runs}),
        name=NAME,
        turns=TURNS,
        transformers=versions["transformers"],
        torch=versions["torch"],
        families_table=_table(_by_family(runs)),
        variants_table=_table(_by_variant(runs)),
    )
    return text


def written(out: Path, of_the_project: bool) -> int:
    """Write the page; the number of false alarms."""
    result = json.loads((out / f"{NAME}.json").read_text(encoding="utf-8"))
    text = page(result)
    if of_the_project:
        text = marked(ROOT, text, made_with())
    (out / f"{NAME}.md").write_text(text, encoding="utf-8")
    return alarms(result["runs"])
