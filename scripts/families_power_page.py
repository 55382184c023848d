"""docs/families-power.md, from its result: what was found of the faults of the families, and what
the usual comparisons would have let pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from figures import ROOT, marked

from gpt_verify.judging.made_with import made_with
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.power.baselines import COMPARISONS
from gpt_verify.power.injection import EVERYWHERE, LOGITS, Injection
from gpt_verify.power.outcome import FaultOutcome

#: Comparisons that a conversion script makes of the logits of a few tokens, and passes by.
USUAL = ("cosine ≥ 0.99", "mutual top-5", "KL < 0.1", "NMSE < 1e-2", "top-1")
#: A model's name → outcomes of its trials.
Outcomes = Mapping[str, Sequence[FaultOutcome]]

TEXT = """# Faults of the families

Written by `scripts/families_power.py`; do not edit. {pairs} faults planted in {models} models of
{families} families, in {trials:,} trials: {found}.

<!-- figures: {result} -->

Transformers' own module of each family (eager attention, float32, transformers {transformers},
torch {torch}) is built with one mistake in it, from the small checkpoint that
`gpt-verify synth --family` writes, and judged as `gpt-verify power --family llama` does it. The
mistake is written twice: in the module, and as another operation of the reference, which names it.
`docs/power.md` says what *detected*, *localised* and *named* mean. A fault counts where that is so
in every form in which it was planted: in all layers, and in one layer where it can be in one
({one_layer:,} trials), each in some of the families that can have it. So far {distinct} of the
{able} faults of the catalogue that a family can have were planted; `--measure` goes on where it
stopped. The trials took {hours:.1f} hours, on a machine that others used.

## Ports that show everything

{shown}

## Ports that show nothing but logits

*Visible* are faults that move the logits by at least one noise floor of float32; of models of
experts, which have no float64 to measure that in, by at least ten.

{logits}

## What the usual comparisons let pass

Of the same faults in all layers, on the same inputs, against the correct module in float32:
how many each comparison catches. The last column counts those that the five that are usual for
logits all let pass: {usual}. `verify/power/baselines.py` has them.

{compared}

The faults that pass all five:

{passed}

## What is left out, and what falls short

{notes}

## Every fault

| fault | what it does | where it was seen | planted in | named | let pass by all five |
| --- | --- | --- | --- | --- | --- |
{every}
"""


def read(result: Mapping[str, Any]) -> dict[str, list[FaultOutcome]]:
    """The outcomes of a result, as they were."""
    return {name: [outcome(row) for row in rows] for name, rows in result["models"].items()}


def outcome(row: Mapping[str, Any]) -> FaultOutcome:
    """The inverse of ``families_power.row``."""
    injection = Injection(row["fault"], row["form"], tuple(row["layers"]))
    plain = {
        field.name: tuple(row[field.name]) if isinstance(row[field.name], list) else row[field.name]
        for field in fields(FaultOutcome)
        if field.name not in ("injection", "baselines")
    }
    caught = {name: name in row["baselines"] for name in COMPARISONS}
    return FaultOutcome(injection=injection, baselines=caught if row["compared"] else {}, **plain)


# Counting


def acting(outcomes: Iterable[FaultOutcome]) -> list[FaultOutcome]:
    """Without faults that change nothing of this model."""
    outcomes = list(outcomes)
    quiet = {o.injection.fault for o in outcomes if not o.expected and o.injection.form != LOGITS}
    return [o for o in outcomes if o.expected and o.injection.fault not in quiet]


def in_sites(outcomes: Iterable[FaultOutcome]) -> list[FaultOutcome]:
    return [o for o in acting(outcomes) if o.injection.form != LOGITS]


def in_logits(outcomes: Iterable[FaultOutcome]) -> list[FaultOutcome]:
    """Those that show there."""
    return [o for o in acting(outcomes) if o.injection.form == LOGITS and (o.floors or 0) >= 1]


def always(outcomes: Sequence[FaultOutcome], true: Callable[[FaultOutcome], bool]) -> int:
    """Faults of which something is true in every form."""
    names = {o.injection.fault for o in outcomes}
    return len(names - {o.injection.fault for o in outcomes if not true(o)})


def counts(outcomes: Sequence[FaultOutcome]) -> dict[str, int]:
    """Of one model."""
    sited = [o for o in outcomes if o.sites]
    return {
        "faults": len({o.injection.fault for o in outcomes}),
        "detected": always(outcomes, lambda o: o.detected),
        "sited": len({o.injection.fault for o in sited}),
        "localised": always(sited, lambda o: bool(o.localised)),
        "named": always(outcomes, lambda o: o.explained),
        "wrong": len({o.injection.fault for o in outcomes if o.wrong_names}),
    }


def total(every: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in every:
        found = {key: found.get(key, 0) + value for key, value in one.items()}
    return found


def passes_all(o: FaultOutcome) -> bool:
    return bool(o.baselines) and not any(o.baselines[name] for name in USUAL)


# Writing


def _table(rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * lines[0].count(' | ')} --- |", *lines[1:]])


def _rows(models: Outcomes, of: Callable[[Iterable[FaultOutcome]], list[FaultOutcome]]) -> str:
    found = {name: counts(of(outcomes)) for name, outcomes in models.items()}
    found = {name: n for name, n in found.items() if n["faults"]}
    if not found:
        return "Not measured yet."
    every = {**found, "all": total(found.values())}
    rows: list[Sequence[object]] = [
        ("model", "faults", "detected", "localised", "named", "wrong names")
    ]
    for name, n in every.items():
        placed = f"{n['localised']} of {n['sited']}" if n["sited"] else "-"
        rows.append((name, n["faults"], n["detected"], placed, n["named"], n["wrong"]))
    return _table(rows)


def _compared(models: Outcomes) -> str:
    rows: list[Sequence[object]] = [
        ("model", "faults", "gpt-verify", *COMPARISONS, "pass all five")
    ]
    every: list[FaultOutcome] = []
    for name, outcomes in [*models.items(), ("all", every)]:
        found = every if name == "all" else [o for o in in_sites(outcomes) if o.baselines]
        every += found if name != "all" else []
        caught = [sum(o.baselines[comparison] for o in found) for comparison in COMPARISONS]
        detected = sum(o.detected for o in found)
        rows.append((name, len(found), detected, *caught, sum(map(passes_all, found))))
    return _table(rows)


def _passed(models: Outcomes) -> str:
    where: dict[str, list[str]] = {}
    for name, outcomes in models.items():
        for o in in_sites(outcomes):
            if passes_all(o):
                where.setdefault(o.injection.fault, []).append(name)
    return "\n".join(f"- `{fault}`: {', '.join(names)}" for fault, names in where.items()) or "none"


def _notes(models: Outcomes) -> Iterator[str]:
    harmless: dict[str, list[str]] = {}
    idle: dict[str, list[str]] = {}
    same: dict[tuple[str, ...], list[str]] = {}
    for name, outcomes in models.items():
        for o in outcomes:
            fault = o.injection.fault
            if o.injection.form == EVERYWHERE and o.law is None:
                harmless.setdefault(fault, []).append(name)
            elif o.injection.form == EVERYWHERE and not o.unlike:
                idle.setdefault(fault, []).append(name)
            if o.same:
                same.setdefault((fault, *o.same), []).append(f"{name} ({o.injection.form})")
    for fault, where in harmless.items():
        yield f"- `{fault}` changes nothing, and must be verified: {', '.join(where)}."
    for fault, where in idle.items():
        yield f"- `{fault}` changes nothing in {', '.join(where)}, and is left out there."
    for (fault, *others), where in same.items():
        names = ", ".join(f"`{other}`" for other in others)
        places = ", ".join(dict.fromkeys(where))
        yield f"- `{fault}` is the same function as {names} in {places}: either name is right."
    for name, outcomes in models.items():
        seen = {id(o) for o in (*in_sites(outcomes), *in_logits(outcomes))}
        for o in outcomes:
            if o.law is None and o.detected:
                yield f"- {_at(name, o)}: changes nothing, and is refuted: {o.message}"
            elif id(o) in seen and (short := _short(o)):
                yield f"- {_at(name, o)}: {short}."


def _at(name: str, o: FaultOutcome) -> str:
    return f"`{o.injection.fault}` in {name}, {o.injection.form}"


def _short(o: FaultOutcome) -> str:
    """What a trial lacks, in words."""
    if not o.detected:
        return f"not detected ({o.verdict})"
    if o.wrong_names:
        return f"named {', '.join(o.wrong_names)}"
    if o.localised is False:
        return f"localised at {o.first_divergence}, not {o.sites[0]}"
    if not o.explained:
        others = ", ".join(o.explained_by)
        return f"not told apart from {others}" if others else "unexplained"
    return ""


def _every(models: Outcomes) -> Iterator[str]:
    table: dict[str, list[tuple[str, FaultOutcome]]] = {}
    for name, outcomes in models.items():
        for o in acting(outcomes):
            if o.injection.form == EVERYWHERE:
                table.setdefault(o.injection.fault, []).append((name, o))
    for fault in (fault for fault in CATALOGUE if fault in table):
        found, known = table[fault], CATALOGUE[fault]
        named, passed = (
            f"{sum(true(o) for _, o in found)} of {len(found)}"
            for true in (lambda o: o.explained, passes_all)
        )
        where = ", ".join(name for name, _ in found)
        cells = (f"`{fault}`", known.summary, known.seen, where, named, passed)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _found(n: Mapping[str, int]) -> str:
    return (
        f"{n['detected']} detected, {n['localised']} of {n['sited']} that have a site localised, "
        f"{n['named']} named, {n['wrong']} given a wrong name"
    )


def page(path: Path) -> str:
    """The page of a result."""
    result = json.loads(path.read_text(encoding="utf-8"))
    models = read(result)
    trials = [o for outcomes in models.values() for o in outcomes]
    versions = result["environment"]["versions"]
    n = total(counts(in_sites(outcomes)) for outcomes in models.values())
    text = TEXT.format(
        pairs=n["faults"],
        models=len(models),
        families=len({name.partition(",")[0] for name in models}),
        trials=len(trials),
        found=_found(n),
        result=path.name,
        transformers=versions["transformers"],
        torch=versions["torch"],
        one_layer=sum(o.injection.form not in (EVERYWHERE, LOGITS) for o in trials),
        distinct=len({o.injection.fault for o in trials}),
        able=sum(fault.in_family is not None for fault in CATALOGUE.values()),
        hours=sum(o.seconds for o in trials) / 3600,
        shown=_rows(models, in_sites),
        logits=_rows(models, in_logits),
        usual=", ".join(USUAL),
        compared=_compared(models),
        passed=_passed(models),
        notes="\n".join(_notes(models)) or "Nothing.",
        every="\n".join(_every(models)),
    )
    return marked(ROOT, text, made_with())
