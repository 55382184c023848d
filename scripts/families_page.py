"""What is verified of each family, as one page: docs/families.md.

    python scripts/families_page.py --family llama    # measure it, into docs/results
    python scripts/families_page.py --measure         # whatever the results have not yet
    python scripts/families_page.py --write           # the page, from the results
    python scripts/families_page.py                   # exit status 1 where the page is another

Of each family the small checkpoint that ``gpt-verify synth --family`` writes is judged under every
law, as ``gpt-verify run --checkpoint DIR --port huggingface --dtype …`` does it. Results are kept
from family to family, and never beside others that were made with other laws or numerics. Each
major version of transformers has a file; under the older one:

    tox exec -e hf4 -- python scripts/families_page.py --measure
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import RESULTS, ROOT, marked

from gpt_verify import run
from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.synthetic import synthesize_family
from gpt_verify.findings import PortReport, Status
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.run import environment
from gpt_verify.sites import sites

#: Major version of transformers → its results.
RESULT = {major: ROOT / RESULTS / f"families-transformers-{major}.json" for major in ("5", "4")}
PAGE = ROOT / "docs" / "families.md"
DTYPES = ("float32", "bfloat16")
TEXT = """# Families

Written by `scripts/families_page.py`; do not edit.

Each line is one run of transformers' own model, of the newest version and of the newest before 5,
on the small checkpoint that is written for its family, under every law:

```sh
gpt-verify synth --family llama llama-tiny
gpt-verify run --checkpoint llama-tiny --port huggingface --dtype bfloat16    # eager and sdpa
```

The lines of float32 leave `--dtype` out. A family without lines of `sdpa` has none in transformers.

In that checkpoint every feature of the family affects the output: windows, caps, partial rotation,
unequal numbers of heads, scalings. The counts are of findings. *Sites* are the
kinds of intermediate tensors that were seen and compared, one by one: first in the declared
precision, then in a float64 copy of the module. The last column names those that were not seen in
every layer. What lies between two that were seen is judged with the second; of experts, their
weights and what they make together are seen.
"""

TABLE = """
## transformers {transformers}, torch {torch}

<!-- figures: {result} -->

{table}
"""


def kinds(report: PortReport, law: str, of: Mapping[str, str]) -> list[str]:
    """Kinds of sites that passed wherever the model has them, in its order."""
    passed = {f.site for f in report.findings if f.id == law and f.status is Status.PASSED}
    missing = {kind for site, kind in of.items() if site not in passed}
    return [kind for kind in dict.fromkeys(of.values()) if kind not in missing]


def measured(name: str) -> list[dict[str, Any]]:
    """A family in each precision, with each attention that transformers has for it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / name
        synthesize_family(directory, name, None, 0)
        config = open_checkpoint(directory).config
        of = {site.name: site.kind for site in sites(config).values()}
        for dtype in DTYPES:
            for report in run("huggingface", directory, dtype=dtype).ports:
                statuses = [finding.status for finding in report.findings]
                found.append(
                    {
                        "port": report.name,
                        "dtype": dtype,
                        "verdict": report.verdict.value,
                        "error": report.error,
                        "checks": {status.value: statuses.count(status) for status in Status},
                        "kinds": list(dict.fromkeys(of.values())),
                        "seen": kinds(report, "activations.local", of),
                        "seen_in_float64": kinds(report, "architecture", of),
                    }
                )
    return found


def stored(path: Path) -> dict[str, Any]:
    """The results so far; none that were made with other laws, numerics or versions."""
    here = environment()
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # What a library says of itself depends on whether it was loaded before it was asked.
        if all(found["environment"][key] == here[key] for key in ("versions", "made_with")):
            return found
    return {"families": {}, "environment": here}


def measure(names: Sequence[str], path: Path) -> None:
    for name in names:
        runs = measured(name)
        result = stored(path)
        result["families"][name] = runs
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(
            name, *(f"{run['port']} {run['dtype']}: {run['verdict']}" for run in runs), sep="\n  "
        )


def rows(families: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    yield (
        "| family | attention | precision | verdict | passed | failed | not examined | sites seen "
        "| in float64 | not seen |"
    )
    yield "|---|---|---|---|--:|--:|--:|--:|--:|---|"
    for name in (name for name in FAMILIES if name in families):
        for made in families[name]:
            checks, every = made["checks"], made["kinds"]
            # The logits are always seen.
            seen, wide = (
                sum(kind != "logits" for kind in made[key]) for key in ("seen", "seen_in_float64")
            )
            unseen = [f"`{kind}`" for kind in every if kind not in made["seen"]]
            cells = [
                name,
                made["port"].removeprefix("huggingface-"),
                made["dtype"],
                made["verdict"],
                *(checks[status.value] for status in Status),
                f"{seen} of {len(every) - 1}",
                wide or "–",
                ("all" if not seen else ", ".join(unseen)) or "–",
            ]
            yield f"| {' | '.join(map(str, cells))} |"


def table(path: Path) -> str:
    """The part of the page that shows one file of results."""
    result = json.loads(path.read_text(encoding="utf-8"))
    versions = result["environment"]["versions"]
    text = TABLE.format(
        transformers=versions["transformers"],
        torch=versions["torch"],
        result=path.name,
        table="\n".join(rows(result["families"])),
    )
    if missing := [name for name in FAMILIES if name not in result["families"]]:
        text += f"\nNot measured with these versions yet: {', '.join(missing)}.\n"
    return text


def page() -> str:
    """The page of the committed results."""
    return marked(ROOT, TEXT + "".join(map(table, RESULT.values())), made_with())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--family", action="append", choices=list(FAMILIES), default=[])
    what.add_argument("--measure", action="store_true", help="all that is not there yet")
    what.add_argument("--write", action="store_true", help="write the page from the results")
    arguments = parser.parse_args()
    if arguments.family or arguments.measure:
        path = RESULT[version("transformers").partition(".")[0]]
        there = stored(path)["families"]
        measure(arguments.family or [name for name in FAMILIES if name not in there], path)
    elif arguments.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        raise SystemExit(f"{PAGE.name}: not the table of the results; --write")


if __name__ == "__main__":
    main()
