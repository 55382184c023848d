"""Compares two JSON reports of ``gpt-verify run``: what a change of the code must leave as it is.

    gpt-verify run --port huggingface --json before.json      # then change the code
    gpt-verify run --port huggingface --json after.json
    python scripts/compare_reports.py before.json after.json

Ports are compared in their order, and the checks of each by id and site: status, score and limit.
Two numbers are equal when they differ by at most 1e-9, relative to the larger one. Verdicts, first
divergences, explanations and mappings are compared as well. Messages, times and versions are not.
The script prints each difference on a line of its own, and exits with 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAME = 1e-9
OF_PORT = ("name", "verdict", "dtype", "device", "weights_from", "error", "first_divergence")
OF_PORT += ("explained_by", "waivers", "remarks", "mapping")
NUMBERS = ("score", "limit")


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, and numbers nearly so."""
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b)]
    return math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) if all(numbers) else bool(a == b)


def checks(port: dict[str, Any]) -> dict[tuple[str, str | None, int], dict[str, Any]]:
    """The checks of a port by id, site and how many of the same came before."""
    found: dict[tuple[str, str | None, int], dict[str, Any]] = {}
    for check in port["checks"]:
        count = sum(key[:2] == (check["id"], check["site"]) for key in found)
        found[check["id"], check["site"], count] = check
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """A line for each difference."""
    if before["verdict"] != after["verdict"]:
        yield f"verdict: {before['verdict']} → {after['verdict']}"
    if len(before["ports"]) != len(after["ports"]):
        yield f"ports: {len(before['ports'])} → {len(after['ports'])}"
    for old, new in zip(before["ports"], after["ports"], strict=False):
        for key in OF_PORT:
            if old[key] != new[key]:
                yield f"{old['name']}: {key}: {old[key]} → {new[key]}"
        if not same(old["logits_floors"], new["logits_floors"]):
            yield f"{old['name']}: logits_floors: {old['logits_floors']} → {new['logits_floors']}"
        ours, theirs = checks(old), checks(new)
        if list(ours) != list(theirs) and ours.keys() == theirs.keys():
            yield f"{old['name']}: the checks come in another order"
        for key in ours.keys() | theirs.keys():
            what = f"{old['name']}: {key[0]} at {key[1]}"
            if key not in theirs or key not in ours:
                yield f"{what}: {'gone' if key in ours else 'new'}"
                continue
            for field in ("status", *NUMBERS):
                if not same(ours[key][field], theirs[key][field]):
                    yield f"{what}: {field}: {ours[key][field]} → {theirs[key][field]}"


def main() -> int:
    """Exit status: 0 where the reports agree, 1 where they do not."""
    parser = argparse.ArgumentParser(description="compare two JSON reports of gpt-verify run")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (arguments.before, arguments.after))
    found = sorted(differences(before, after))
    print("\n".join(found) or "no difference", end="\n")
    count = sum(len(port["checks"]) for port in after["ports"])
    print(f"{len(after['ports'])} ports, {count} checks, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
