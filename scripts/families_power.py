"""Faults of the families, planted one at a time in transformers' models: docs/families-power.md.

    python scripts/families_power.py --measure                 # whatever the result has not yet
    python scripts/families_power.py --measure --family llama --form "all layers"
    python scripts/families_power.py --measure --each 4        # each fault in four families
    python scripts/families_power.py --again rotary-whole      # these faults anew
    python scripts/families_power.py --write                   # the page, from the result
    python scripts/families_power.py                           # exit status 1 where it is another

Of each family the small checkpoint that ``gpt-verify synth --family`` writes is taken. Each fault
that it can have is planted in all layers, in one, and in a port that shows nothing but logits, and
judged as ``gpt-verify power --family`` does it. The result, docs/results/families-power.json, is
written trial by trial, so that an interrupted run goes on where it was; what was made with other
laws, numerics or versions is made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from families_power_page import page
from figures import RESULTS, ROOT

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, write_family
from gpt_verify.checkpoint.synthetic import FAMILY_SIZE, synthetic_tensors
from gpt_verify.diagnosis.logits import deviations_kept
from gpt_verify.judging.run import environment
from gpt_verify.laws.catalogue import faults_of
from gpt_verify.power.injection import EVERYWHERE, LOGITS, ONE_LAYER, Injection, injections
from gpt_verify.power.outcome import FaultOutcome
from gpt_verify.power.trial import Bench
from gpt_verify.reference.config import Config

RESULT = ROOT / RESULTS / "families-power.json"
PAGE = ROOT / "docs" / "families-power.md"
FORMS = (EVERYWHERE, LOGITS, ONE_LAYER)
#: Models beside the families' small ones, for faults that those cannot have: a number of heads
#: that is no power of two.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, 3 heads": ("bloom", {"num_attention_heads": 3}),
}
#: Trials after which the result is written.
EACH = 8


def model(name: str, directory: Path) -> Checkpoint:
    """The checkpoint of a family, or of one of ``MORE``, with the weights of seed 0."""
    family, keys = MORE.get(name, (name, {}))
    v, p, d, h, n = (int(size) for size in FAMILY_SIZE.split(","))
    stated = {**example(family, (v, p, d, h, n)), **keys}
    write_family(directory, stated, lambda config: synthetic_tensors(config, 0))
    return open_checkpoint(directory)


def planted(config: Config, known: Collection[str] = ()) -> list[Injection]:
    """Every fault of a model in every form, without those that its family's own model has."""
    faults = [f for f in faults_of(config).values() if f.in_family is not None]
    return [
        injection
        for form in FORMS
        for fault in faults
        if fault.name not in known
        for injection in injections(fault, config)
        if injection.form == form
    ]


def dealt(able: Mapping[str, Sequence[str]], each: int) -> set[tuple[str, str]]:
    """(model, fault): each fault in so many of the models that can have it, those that have fewest
    by then."""
    counts = dict.fromkeys(able, 0)
    found: set[tuple[str, str]] = set()
    for fault in dict.fromkeys(name for names in able.values() for name in names):
        having = sorted((m for m in able if fault in able[m]), key=lambda m: counts[m])
        for name in having[:each]:
            counts[name] += 1
            found.add((name, fault))
    return found


def models() -> Iterator[tuple[str, str]]:
    """Name → the family; a family stands before what is beside it."""
    for name in FAMILIES:
        yield name, name
        yield from ((more, name) for more, (family, _) in MORE.items() if family == name)


def stored() -> dict[str, Any]:
    """The result so far; nothing that was made with other laws, numerics or versions."""
    here = environment()
    if RESULT.is_file():
        found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
        before = found["environment"]
        same = all(before["made_with"][key] == here["made_with"][key] for key in _OF_TODAY)
        if same and before["versions"] == here["versions"]:
            return found
    return {"models": {}, "environment": here}


#: Of what a result was made with, that which makes it another one: faults are asked for by name.
_OF_TODAY = ("laws", "numerics")


def row(outcome: FaultOutcome) -> dict[str, Any]:
    """A trial as it is stored: words only where something is missed."""
    found = asdict(outcome)
    injection = found.pop("injection")
    found["baselines"] = [name for name, caught in outcome.baselines.items() if caught]
    found["compared"] = bool(outcome.baselines)
    found_out = outcome.detected and outcome.explained and outcome.localised is not False
    if outcome.law is not None and found_out:
        found["message"] = ""
    found["seconds"] = round(outcome.seconds, 2)
    return {**injection, **found}


def measure(
    names: Sequence[str], forms: Sequence[str], each: int, again: Sequence[str], until: float
) -> None:
    """What the result has not yet, or these faults again, until that time."""
    result = stored()
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: model(name, Path(folder) / name) for name, _ in models()}
        asked: dict[str, list[Injection]] = {}
        for name, family in models():
            known = {one.fault for one in asked[family]} if name != family else set()
            asked[name] = planted(sources[name].config, known)
        able = {name: list(dict.fromkeys(o.fault for o in asked[name])) for name in asked}
        chosen = dealt(able, each)
        for form in forms:
            for name, family in models():
                if family in names:
                    of_form = [
                        one
                        for one in asked[name]
                        if one.form == form and (name, one.fault) in chosen
                    ]
                    rows = result["models"].setdefault(name, [])
                    _tried(sources[name], of_form, rows, again, until, result, name)


def _tried(
    source: Checkpoint,
    asked: Sequence[Injection],
    rows: list[dict[str, Any]],
    again: Sequence[str],
    until: float,
    result: Mapping[str, Any],
    name: str,
) -> None:
    place = {(made["fault"], made["form"]): i for i, made in enumerate(rows)}
    with deviations_kept():
        bench = Bench(source, 0)
        done = 0
        for injection in asked:
            at = place.get((injection.fault, injection.form))
            if (again and injection.fault not in again) or (at is not None and not again):
                continue
            if time.time() > until:
                break
            made = row(bench.fault(injection))
            if at is None:
                rows.append(made)
            else:
                rows[at] = made
            done += 1
            if done % EACH == 0:
                _write(result)
    if done:
        _write(result)
        print(f"{name}: {done} trials", flush=True)


def _write(result: Mapping[str, Any]) -> None:
    """A trial a line, so that a difference can be read."""
    lines = [
        f"{json.dumps(name)}: [\n"
        + ",\n".join(json.dumps(made, ensure_ascii=False) for made in rows)
        + "\n]"
        for name, rows in result["models"].items()
    ]
    text = ",\n".join(lines)
    about = json.dumps(result["environment"], indent=1)
    RESULT.write_text(f'{{"environment": {about},\n"models": {{\n{text}\n}}}}\n', encoding="utf-8")


def main() -> None:
    import transformers

    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="whatever the result has not yet")
    parser.add_argument("--again", nargs="+", default=[], metavar="FAULT", help="measured anew")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), default=[])
    parser.add_argument("--form", action="append", choices=FORMS, default=[])
    parser.add_argument("--each", type=int, default=99, help="families that each fault is put into")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after these")
    parser.add_argument("--write", action="store_true", help="write the page from the result")
    asked = parser.parse_args()
    if asked.measure or asked.again:
        until = time.time() + asked.seconds
        names, forms = asked.family or list(FAMILIES), asked.form or FORMS
        measure(names, forms, asked.each, asked.again, until)
    elif asked.write:
        PAGE.write_text(page(RESULT), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page(RESULT):
        raise SystemExit(f"{PAGE.name}: not the page of the result; --write")


if __name__ == "__main__":
    main()
