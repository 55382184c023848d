"""``gpt-verify power``: for the terminal, for the documentation, and for programs."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.power import summary as sums
from gpt_verify.power.baselines import COMPARISONS
from gpt_verify.power.campaign import Campaign, distinct
from gpt_verify.power.injection import EVERYWHERE, why_no_tensorflow
from gpt_verify.power.outcome import CorrectOutcome, FaultOutcome
from gpt_verify.report.json import plain
from gpt_verify.report.terminal import WIDTH
from gpt_verify.text import one_line

#: ``major.minor``, as in ``gpt_verify.report.json``.
SCHEMA_VERSION = "1.1"
Rows = list[list[str]]

_POWER = ["family", "faults", "detected", "localised", "explained", "wrong names"]
_LOGITS = ["family", "visible", "detected", "explained", "wrong names", "below the floor, named"]
_BASELINES = ["family", "faults", "gpt-verify", *COMPARISONS]


def _part(n: int, of: int) -> str:
    return "-" if not of else f"{n} of {of}" if n != of else f"all {of}"


def _by_family(
    outcomes: Sequence[FaultOutcome], row: Callable[[str, Sequence[FaultOutcome]], list[str]]
) -> Rows:
    families = list(dict.fromkeys(outcome.family for outcome in outcomes))
    rows = [row(name, [o for o in outcomes if o.family == name]) for name in families]
    return [*rows, row("all", outcomes)] if len(rows) > 1 else rows


def power_rows(campaign: Campaign) -> Rows:
    """Faults in ports that show everything."""

    def row(name: str, of: Sequence[FaultOutcome]) -> list[str]:
        n = sums.counts(of)
        return [
            name,
            str(n.faults),
            _part(n.detected, n.faults),
            _part(n.localised, n.sited),
            _part(n.explained, n.faults),
            str(n.wrong),
        ]

    return _by_family(sums.shown(campaign), row)


def logits_rows(campaign: Campaign) -> Rows:
    """Faults in ports that show nothing but logits."""
    below = sums.in_logits(campaign, visible=False)

    def row(name: str, of: Sequence[FaultOutcome]) -> list[str]:
        seen = sums.counts([o for o in of if o not in below])
        unseen = [o for o in of if o in below]
        return [
            name,
            str(seen.faults),
            _part(seen.detected, seen.faults),
            _part(seen.explained, seen.faults),
            str(sum(bool(o.wrong_names) for o in of)),
            _part(sum(o.explained for o in unseen), len(unseen)),
        ]

    return _by_family([*sums.in_logits(campaign, visible=True), *below], row)


def baseline_rows(campaign: Campaign) -> Rows:
    """The same faults and inputs, and the correct variants, under the usual comparisons."""

    def row(name: str, of: Sequence[FaultOutcome]) -> list[str]:
        caught = sums.caught_by_baselines(of)
        detected = sum(o.detected for o in of)
        return [
            name,
            str(len(of)),
            str(detected),
            *(str(caught[baseline]) for baseline in COMPARISONS),
        ]

    rows = _by_family(sums.compared(campaign), row)
    if campaign.correct:
        alarms = sums.caught_by_baselines(campaign.correct)
        own = len(sums.false_alarms(campaign))
        row_ = ["correct runs refused", str(len(campaign.correct)), str(own)]
        rows.append([*row_, *(str(alarms[baseline]) for baseline in COMPARISONS)])
    return rows


def misses(campaign: Campaign) -> list[str]:
    """Every trial that fell short of what must hold, in a line."""
    lines = []
    for o in campaign.injected:
        below = o in sums.in_logits(campaign, visible=False)
        if o.wrong_names:
            lines.append(_miss(o, f"named {', '.join(o.wrong_names)}"))
        elif below or not o.expected:
            if o.law is None and o.detected:
                lines.append(_miss(o, f"changes nothing, and is refuted: {o.message}"))
        elif not o.detected:
            lines.append(_miss(o, f"not detected ({o.verdict}) {o.message}"))
        elif o.localised is False:
            lines.append(_miss(o, f"localised at {o.first_divergence}, not {o.sites[0]}"))
        elif not o.explained:
            lines.append(_miss(o, _unexplained(o)))
    lines += [
        f"{o.variant}, seed {o.seed}: false alarm: {'; '.join(o.failures) or o.verdict}"
        for o in sums.false_alarms(campaign)
    ]
    return [one_line(line) for line in lines]


def _unexplained(o: FaultOutcome) -> str:
    if o.injection.fault in o.instead:
        return f"not told apart from {', '.join(o.explained_by)}"
    if o.injection.fault in o.explained_by:  # the others are no wrong names, or say the same
        others = [name for name in o.explained_by if name != o.injection.fault]
        return f"explained, and {', '.join(others)} as well"
    return "unexplained"


def _miss(o: FaultOutcome, what: str) -> str:
    return f"{o.injection.fault}, {o.injection.form}: {what}"


def _notes(campaign: Campaign) -> list[str]:
    """What was not tried, and what is not counted."""
    lines = [f"not run: {what}: {why}" for what, why in campaign.left_out.items()]
    if names := distinct(sums.without_effect(campaign)):
        lines.append(f"without effect on this checkpoint: {', '.join(names)}")
    if names := distinct(sums.unseen(campaign)):
        lines.append(f"not to be seen in logits: {', '.join(names)}")
    if names := distinct(sums.harmless(campaign)):
        lines.append(f"change nothing anywhere, and must pass: {', '.join(names)}")
    longer = distinct(o for o in campaign.injected if o.inputs == "default")
    if longer:
        lines.append(f"tried on the default inputs as well: {', '.join(longer)}")
    return lines


def _heading(campaign: Campaign) -> str:
    plan, config = campaign.plan, campaign.config
    sizes = ", ".join(f"{name[2:]} {value}" for name, value in config.as_dict().items())
    variants = len({o.variant for o in campaign.correct})
    what = f"{len(distinct(campaign.injected))} faults in {len(campaign.injected)} trials"
    if variants:
        what += f", {variants} correct variants in {len(campaign.correct)} runs"
    quick = "; quick: a subset" if plan.quick else ""
    laws = "; every law" if plan.every_law else ""
    return f"{what}; checkpoint of {sizes}; seed {plan.seed}{quick}{laws}"


def verdict(campaign: Campaign) -> str:
    """One line."""
    statements = sums.statements(campaign)
    short = [s for s in statements if not s.holds]
    if not statements:
        return "nothing was tried"
    if not short:
        return f"all {len(statements)} statements hold"
    return f"{len(short)} of {len(statements)} statements do not hold"


def terminal(campaign: Campaign, *, colour: bool = False) -> str:
    """Tables by family, everything that fell short, and the statements."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=WIDTH,
        force_terminal=colour,
        no_color=None if colour else True,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
        # In a notebook rich would show each line there, and write nothing.
        force_jupyter=False,
    )

    def line(text: str = "", style: str = "") -> None:
        console.print(text, style=style or None, soft_wrap=True)

    line(_heading(campaign))
    for title, head, rows in _tables(campaign):
        if rows:
            line()
            line(title, "bold")
            console.print(_table(head, rows))
    for title, lines in (("Short of it:", misses(campaign)), ("Notes:", _notes(campaign))):
        if lines:
            line()
            line(title, "bold")
            for text in lines:
                line(f"  {text}")
    line()
    for statement in sums.statements(campaign):
        line(f"  {statement}", "" if statement.holds else "red")
    line(f"{verdict(campaign)} ({campaign.seconds:.0f} s)", "bold")
    return "\n".join(text.rstrip() for text in stream.getvalue().splitlines()) + "\n"


def _tables(campaign: Campaign) -> list[tuple[str, list[str], Rows]]:
    return [
        ("Faults in ports that show everything", _POWER, power_rows(campaign)),
        ("Faults in ports that show nothing but logits", _LOGITS, logits_rows(campaign)),
        ("What the usual comparisons catch", _BASELINES, baseline_rows(campaign)),
    ]


def _table(head: Sequence[str], rows: Rows) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(campaign: Campaign) -> str:
    """The page of the documentation."""
    from gpt_verify import __version__

    parts = [
        "# How well it finds what is wrong",
        "Written by `gpt-verify power --markdown` (version "
        f"{__version__}); do not edit. {_heading(campaign)}.",
        "<!-- figures: power.json -->",
        _EXPLANATION.strip(),
    ]
    for title, head, rows in _tables(campaign):
        if rows:
            parts += [f"## {title}", _markdown_table(head, rows)]
    parts += ["## Statements", _list(map(str, sums.statements(campaign)))]
    if lines := misses(campaign):
        parts += ["## What fell short", _list(lines)]
    if lines := _notes(campaign):
        parts += ["## Notes", _list(lines)]
    parts += ["## Every fault", _markdown_table(_FAULT, _fault_rows(campaign))]
    if campaign.correct:
        parts += ["## Every correct variant", _markdown_table(_VARIANT, _variant_rows(campaign))]
    return "\n\n".join(parts) + "\n"


_EXPLANATION = """
Every fault of the catalogue is injected into a correct port; the suite is run as a user would,
and asked three things. *Detected*: it refutes the port. *Localised*: the first divergence that it
names is a site at which the fault acts. *Explained*: it names the fault, and nothing beside it. A
fault counts where that is so in every form in which it was injected: in all layers and, where it
can be, in one. Faults in ports that show nothing but logits are counted apart: *visible* are
those that move the logits by at least one noise floor of float32.

Trials are run on a short input first, one row or two; what it does not show in full is tried on the
default inputs of `gpt-verify run`. Each is judged by the comparison of weights, sites and logits,
by the diagnosis, and by the law that must refute the fault: by less than what `gpt-verify run`
checks for a port, which refutes whatever is refuted here. With `--every-law` all laws are checked
for the form in all layers, so that what the others name counts as well. After each trial the
process is put back as it was: that they change it is what some of the faults of determinism are.
Those of the tokenizer are injected where the library `tokenizers` is installed and the checkpoint
has a vocabulary.

Correct variants are judged on two short rows, one token alone and one of the default inputs,
another one for each seed. The laws take turns: over all seeds, every law has judged every variant
(in a quick run, every other variant). With `--every-law` every law judges every variant on every
seed; with `--correct` so it does, without any fault, and there are more variants. What these longer
runs found is in `docs/results/correct-runs.md`.

The usual comparisons see the same ports and inputs (`verify/power/baselines.py`): they compare
logits, tensors or states of the port with those of a correct port in float32. They look at a plain
forward pass, so that what is wrong with a loss, a cache or a gradient is not theirs to catch.
"""
_FAULT = ["fault", "the port …", "must fail", "detected", "localised", "explained", "seen in"]
_VARIANT = ["variant", "runs", "false alarms", *COMPARISONS]


def _fault_rows(campaign: Campaign) -> Rows:
    rows = []
    for name in distinct(campaign.injected):
        fault, of = CATALOGUE[name], [o for o in campaign.injected if o.injection.fault == name]
        shown = [o for o in of if o.injection.form != "logits only"]
        sited = [o for o in shown if o.sites]
        rows.append(
            [
                f"`{name}`",
                fault.summary,
                f"`{fault.law}`" if fault.law else "nothing",
                _yes(o.detected for o in shown),
                _yes(bool(o.localised) for o in sited),
                _yes(o.explained for o in shown),
                fault.seen,
            ]
        )
    return rows


def _variant_rows(campaign: Campaign) -> Rows:
    rows = []
    for name in dict.fromkeys(o.variant for o in campaign.correct):
        of = [o for o in campaign.correct if o.variant == name]
        alarms = sums.caught_by_baselines(of)
        own = sum(o.false_alarm for o in of)
        rows.append(
            [name, str(len(of)), str(own), *(str(alarms[baseline]) for baseline in COMPARISONS)]
        )
    return rows


def _yes(of: Iterable[bool]) -> str:
    of = list(of)
    return "-" if not of else "yes" if all(of) else "no" if not any(of) else "in part"


def _markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def as_dict(campaign: Campaign) -> dict[str, Any]:
    """Everything, in JSON's own types (docs/report.md)."""
    from gpt_verify.judging.run import environment

    plan = campaign.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "summary": plain(sums.summary(campaign)),
        "statements": [
            {"statement": s.description, "got": s.got, "of": s.of, "holds": s.holds}
            | {"least": s.least, "most": s.most}
            for s in sums.statements(campaign)
        ],
        "plan": {
            "seed": plan.seed,
            "seeds": plan.seeds,
            "quick": plan.quick,
            "every_law": plan.every_law,
            "families": list(plan.families),
            "faults": list(plan.faults),
            "correct": plan.correct,
            "jobs": plan.jobs,
        },
        "config": campaign.config.as_dict(),
        "environment": plain(environment()),
        "seconds": campaign.seconds,
        "left_out": plain(campaign.left_out),
        "faults": [_fault(o) for o in campaign.injected],
        "correct": [_correct(o) for o in campaign.correct],
    }


def _fault(o: FaultOutcome) -> dict[str, Any]:
    fault = CATALOGUE[o.injection.fault]
    why = why_no_tensorflow(fault)
    row = {
        "fault": o.injection.fault,
        "family": o.family,
        "form": o.injection.form,
        "layers": o.injection.layers,
        "law": o.law,
        "needs": fault.needs,
        "has_effect": o.unlike,
        "inputs": o.inputs,
        "verdict": o.verdict,
        "detected": o.detected,
        "by_its_law": o.by_law,
        "sites": o.sites,
        "first_divergence": o.first_divergence,
        "localised": o.localised,
        "explained_by": o.explained_by,
        "instead": o.instead,
        "same": o.same,
        "explained": o.explained,
        "wrong_names": o.wrong_names,
        "floors": o.floors,
        "peers": o.baselines,
        "message": one_line(o.message),
        "seconds": o.seconds,
    }
    if o.injection.form == EVERYWHERE and why is not None:
        row["not_in_tensorflow"] = why
    converted: dict[str, Any] = plain(row)
    return converted


def _correct(o: CorrectOutcome) -> dict[str, Any]:
    row: dict[str, Any] = plain(
        {
            "variant": o.variant,
            "seed": o.seed,
            "verdict": o.verdict,
            "false_alarm": o.false_alarm,
            "failures": [one_line(failure) for failure in o.failures],
            "explained_by": o.explained_by,
            "peers": o.baselines,
        }
    )
    return row


def json(campaign: Campaign) -> str:
    return json_module.dumps(as_dict(campaign), indent=1, ensure_ascii=False) + "\n"
