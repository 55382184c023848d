"""The recipe of a port for a person, and for programs (docs/recipes.md)."""

from __future__ import annotations

import json as json_module
from typing import Any

from gpt_verify.judging.recipe import PortRecipe, RecipeReport
from gpt_verify.recipes.declared import Kept
from gpt_verify.recipes.identify import Found, Tried
from gpt_verify.recipes.summary import line, words
from gpt_verify.text import listing, one_line

SCHEMA_VERSION = "1.0"
#: Sites and departures that are listed; the rest is counted.
_MOST = 5


def statement(port: PortRecipe) -> str:
    """One line."""
    name = one_line(port.name)
    if port.error is not None:
        said = one_line(port.error)
        return said if said.startswith(name) else f"{name}: {said}"
    return f"{name} ({port.dtype}): {line(port.groups, port.dtype)}"


def terminal(report: RecipeReport) -> str:
    """The line, a table by operation, and how what was declared is kept, for each port."""
    lines: list[str] = []
    for port in report.ports:
        lines += [statement(port), ""]
        if port.error is None:
            lines += [*_table(port), ""]
        if port.not_shown:
            lines += [f"not shown by the port: {listing(port.not_shown, _MOST)}", ""]
        if port.kept is not None:
            lines += [*kept(port.kept, port.dtype), ""]
    return "\n".join([*lines, f"repeat: {report.repeat}"]) + "\n"


def quiet(report: RecipeReport) -> str:
    """One line a port, and how what was declared is kept."""
    lines: list[str] = []
    for port in report.ports:
        lines.append(statement(port))
        if port.kept is not None:
            lines += kept(port.kept, port.dtype)
    return "\n".join(lines) + "\n"


def _table(port: PortRecipe) -> list[str]:
    heading = (
        "site",
        "sites",
        "elements",
        "equal",
        "by chance",
        "left open",
        "next best",
        "recipe",
    )
    rows: list[tuple[str, ...]] = [heading]
    rows += [_row(group, port.dtype) for group in port.groups]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(group: Found, half: str) -> tuple[str, ...]:
    place = group.sites[0] if len(group.sites) == 1 else group.kind
    if (best := group.best) is None:
        return (place, str(len(group.sites)), *("",) * 5, words(group, half))
    a = best.agreement
    others = [t for t in group.tried if t.agreement.outside and t is not best]
    others = [t for t in others if not t.recipe.by_distances]
    next_best = f"{others[0].agreement.share:.4f}" if others else ""
    chance = f"{a.chance:.4f}" if a.decided else ""
    return (
        *(place, str(len(group.sites)), str(a.elements), f"{a.share:.4f}", chance),
        *(str(a.open), next_best, words(group, half)),
    )


def kept(found: Kept, half: str) -> list[str]:
    """How what was declared is kept, a line for each departure."""
    name = one_line(found.declaration.name)
    head = f"declared ({name}): {len(found.kept)} sites as declared"
    if count := len(found.departures):
        head += f", {count} {'departs' if count == 1 else 'depart'} from it"
    lines = [head]
    for departure in found.departures[:_MOST]:
        declared, a = departure.declared.recipe, departure.declared.agreement
        instead = ", or ".join(t.recipe.name for t in departure.found) or "no known recipe"
        lines.append(
            f"  {departure.site}: {a.outside} of {a.elements} elements are not as "
            f"{declared.name} has them ({declared.words.format(half=half)}); they are as {instead} "
            "has them"
        )
    if len(found.departures) > _MOST:
        lines.append(f"  and {len(found.departures) - _MOST} more")
    if found.not_examined:
        lines.append(f"  not examined: {listing(found.not_examined, _MOST)}")
    return lines


def as_dict(report: RecipeReport) -> dict[str, Any]:
    """The same in JSON's own types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "repeat": report.repeat,
        "ports": [_port(port) for port in report.ports],
    }


def _port(port: PortRecipe) -> dict[str, Any]:
    return {
        "name": port.name,
        "dtype": port.dtype,
        "device": port.device,
        "error": port.error,
        "line": statement(port),
        "groups": [_found(group, port.dtype) for group in port.groups],
        "sites": [_found(found, port.dtype) for found in port.found],
        "not_shown": list(port.not_shown),
        "declared": None if port.kept is None else _kept(port.kept),
    }


def _found(found: Found, half: str) -> dict[str, Any]:
    return {
        "sites": list(found.sites),
        "kind": found.kind,
        "operation": found.operation,
        "kept_in": found.kept,
        "recipes": list(found.named),
        "alike": [tried.recipe.name for tried in found.alike],
        "words": words(found, half),
        "not_examined": found.why_not or None,
        "tried": [_tried(tried) for tried in found.tried],
    }


def _tried(tried: Tried) -> dict[str, Any]:
    a = tried.agreement
    return {
        "recipe": tried.recipe.name,
        "elements": a.elements,
        "equal": a.equal,
        "outside": a.outside,
        "open": a.open,
        "chance": a.chance,
        "one_step_away": a.next_to,
        "furthest_steps": a.furthest,
    }


def _kept(found: Kept) -> dict[str, Any]:
    return {
        "name": found.declaration.name,
        "source": found.declaration.source,
        "recipes": {name: list(names) for name, names in found.declaration.recipes.items()},
        "kept": list(found.kept),
        "departures": [
            {
                "site": departure.site,
                "declared": _tried(departure.declared),
                "found": [tried.recipe.name for tried in departure.found],
            }
            for departure in found.departures
        ],
        "not_examined": list(found.not_examined),
    }


def json(report: RecipeReport) -> str:
    return json_module.dumps(as_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
