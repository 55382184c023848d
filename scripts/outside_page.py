"""The faults that are kept out of the catalogue, judged, as one page: docs/outside.md.

    python scripts/outside_page.py --run                  # whatever the results have not yet
    python scripts/outside_page.py --run --seconds 40     # as many as begin in that time
    python scripts/outside_page.py --run --name step-lags
    python scripts/outside_page.py --page                 # the page alone, from the results
    python scripts/outside_page.py                        # exit status 1 where the page is another

Each fault of ``tests/outside/`` is judged under every law on one small synthetic checkpoint. It is
*detected* where the port is refuted, *placed* where the check fails and the site is the first that
were written down before, *named* where a name that the report gives, or its sentence, has one of
the words that were written down, and *wrongly named* where a name has none of them. Results are
kept from fault to fault, and never beside others that were made with other laws or numerics.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from expected import SIZE, base, chance, command, flags, judged, summary
from figures import RESULTS, ROOT, marked
from outside.record import AREAS, Outside, every

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.judging.made_with import made_with
from gpt_verify.judging.run import environment

RESULT = ROOT / RESULTS / "outside.json"
#: Of what a result was made with, that which makes it another one. What could be read off is kept
#: with each fault.
OF_TODAY = ("laws", "numerics")
#: Faults as they were judged for the first time, those of each date by themselves.
UNSEEN = tuple(ROOT / RESULTS / f"outside-unseen{more}.json" for more in ("", "-2"))
PAGE = ROOT / "docs" / "outside.md"
TEXT = """# Faults from outside

Written by `scripts/outside_page.py`; do not edit.

[`gpt-verify power`](power.md) injects the faults that the catalogue lists, and a catalogue names
what it lists. {written} faults were written by somebody who had read neither the catalogue nor the
hypotheses, from mistakes that are made in porting models; what must fail, and which words a
correct explanation has, was written down before the tool had judged them. They lie in
[`tests/outside/`](../tests/outside) and are never put into the catalogue. {count} of them were
judged for this page{older}.

<!-- figures: {result} -->

{areas}

*Detected*: refuted. *Placed*: the check that was expected fails, and the first site that diverges
is the expected one. *Named*: a name that the report gives, or its sentence, says what is wrong.
*Wrongly named*: the report gives names, and none of them does; *also*: some do, and some do not.
A name drawn from the catalogue would have had one of the words in {chance:.0%} of the cases.
{mended}

Whatever a fault showed to be missing was mended, as a class, so that the table above says more of
these faults than of those that nobody has seen yet. The {new} that were written last were judged
once, before anything was mended for them, in two parts:

<!-- figures: {unseen} -->

{first}

## Every fault

{faults}
"""


def stored() -> dict[str, Any]:
    """The results so far; none that were made with other laws, numerics, versions or models."""
    here = environment()
    if RESULT.is_file():
        found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
        before = found["environment"]
        same = all(before["made_with"][key] == here["made_with"][key] for key in OF_TODAY)
        if same and before["versions"] == here["versions"] and found["base"] == base():
            known = every()
            found["faults"] = {
                name: made
                for name, made in found["faults"].items()
                if name in known and made["digest"] == known[name][1].digest
            }
            return found
    return {"size": SIZE, "base": base(), "right": {}, "faults": {}, "environment": here}


def write(result: Mapping[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def forms() -> str:
    """A digest of what the tool could read off numbers when a fault was judged."""
    return hashlib.sha256("\n".join(sorted(FORMS)).encode()).hexdigest()[:12]


def older(result: Mapping[str, Any]) -> str:
    """How many were judged when the tool could read off less."""
    n = sum(made.get("forms") != forms() for made in result["faults"].values())
    return f", {n} of them by an earlier version, which could read off less" if n else ""


def spread(faults: Mapping[str, tuple[str, Outside]]) -> list[str]:
    """The first of each area, then the second of each: so that a part is one of all areas."""
    seen: dict[str, int] = {}
    order = []
    for name, (area, _) in faults.items():
        seen[area] = seen.get(area, 0) + 1
        order.append((seen[area], AREAS.index(area), name))
    return [name for *_, name in sorted(order)]


def measure(names: list[str], seconds: float) -> None:
    """Judge these, as many as begin in that time."""
    begun, faults = time.monotonic(), every()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        synthesize(checkpoint, resolve_size(SIZE), seed=0)
        result = stored()
        if not names:
            names = [n for n in ("right", "logits-right") if n not in result["right"]]
            order, known = spread(faults), result["faults"]
            names += [name for name in order if name not in known]
            # What was judged when less could be read off is judged again, last.
            names += [n for n in order if n in known and known[n].get("forms") != forms()]
        for name in names:
            if time.monotonic() - begun > seconds:
                break
            made = summary(judged(f"{ROOT / 'tests/outside/ports.py'}:{name}", checkpoint))
            if name in faults:
                area, fault = faults[name]
                result["faults"][name] = {
                    "area": area,
                    "digest": fault.digest,
                    "chance": round(chance(fault.words), 4),
                    "forms": forms(),
                    **made,
                }
                print(name, made["verdict"], *flags(fault, made), made["explained_by"], flush=True)
            else:
                result["right"][name] = made
                print(name, made["verdict"], flush=True)
            write(result)
    now = [made for made in result["faults"].values() if made.get("forms") == forms()]
    left = len(faults) - len(now)
    print(f"{left} left", flush=True)


# What is counted


def table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    aligned = "|".join("---" if n == 0 else "--:" for n in range(len(rows[0])))
    return "\n".join([lines[0], f"|{aligned}|", *lines[1:]])


def by_area(result: Mapping[str, Any]) -> str:
    faults, made = every(), result["faults"]
    counted = ("detected", "placed", "named", "wrong", "also")
    rows = [["", "faults", "detected", "placed", "named", "wrongly named", "also"]]
    totals = [0] * (1 + len(counted))
    for area in AREAS:
        own = {name: fault for name, (of, fault) in faults.items() if of == area and name in made}
        found = [set(flags(fault, made[name])) for name, fault in own.items()]
        numbers = [len(own), *(sum(flag in each for each in found) for flag in counted)]
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
        rows.append([area, *map(str, numbers)])
    share = [f"**{n}** ({100 * n // totals[0]}%)" for n in totals]
    share[0] = f"**{totals[0]}**"
    rows.append(["**all**", *share])
    return table(rows)


def first(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Faults that were judged before anything was mended for them."""
    faults = every()
    counted = ("detected", "placed", "named", "wrong", "also")
    rows = [["", "faults", "detected", "placed", "named", "wrongly named", "also"]]
    for name, result in results.items():
        made = result["faults"]
        found = [set(flags(faults[fault][1], made[fault])) for fault in made if fault in faults]
        numbers = [sum(flag in each for each in found) for flag in counted]
        of = f"[`{name}`](results/{name}), code of `{result['commit']}`"
        rows.append([of, str(len(found)), *(f"{n} ({100 * n // len(found)}%)" for n in numbers)])
    return table(rows)


def each(result: Mapping[str, Any]) -> str:
    lines = ["| fault | | found at | named |", "|---|---|---|---|"]
    for name, (_, fault) in every().items():
        if name not in result["faults"]:
            continue
        made = result["faults"][name]
        found = set(flags(fault, made))
        where = made["first_divergence"] or next(iter(made["failed"]), "–")
        named = ", ".join(f"`{cause['fault']}`" for cause in made["causes"]) or "–"
        mark = " (wrong)" if "wrong" in found else ""
        place = "" if "placed" in found else " (elsewhere)" if "detected" in found else ""
        where = f"`{where}`{place}" if "detected" in found else f"**{made['verdict']}**"
        lines.append(f"| `{name}` | {fault.wrong} | {where} | {named}{mark} |")
    return "\n".join(lines)


def page() -> str:
    """The page of the committed results."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    mended = [(name, fault) for name, (_, fault) in every().items() if fault.mended]
    words = "No expectation was changed afterwards."
    if mended:
        each_of = "; ".join(f"`{name}`: {fault.mended}" for name, fault in mended)
        words = f"Of {len(mended)}, what was expected was mended afterwards: {each_of}."
    unseen = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in UNSEEN}
    text = TEXT.format(
        new=sum(len(one["faults"]) for one in unseen.values()),
        unseen=" ".join(unseen),
        first=first(unseen),
        written=len(every()),
        count=len(result["faults"]),
        older=older(result),
        result=RESULT.name,
        areas=by_area(result),
        mended=words,
        chance=fmean(made.get("chance", 0) for made in result["faults"].values()),
        faults=each(result),
    )
    if missing := [name for name in every() if name not in result["faults"]]:
        text += f"\nNot judged yet: {', '.join(missing)}.\n"
    return marked(ROOT, text, made_with())


if __name__ == "__main__":
    command(__doc__, PAGE, page, measure)
