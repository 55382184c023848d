"""The versions of everything that the two sides ran with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_verify.text import one_line


def words_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """Versions, platform, processor, numerics, as words; of a report that lacks one, without it."""
    found = dict(_inner(environment, "versions"))
    for key in ("platform", "machine", "cores", "torch_threads", "cuda_device"):
        found[key] = environment.get(key)
    found["processor"] = _inner(environment, "processor").get("model")
    found["numerics"] = _inner(environment, "made_with").get("numerics")
    return {one_line(k): one_line(v) for k, v in found.items() if v is not None}


def _inner(environment: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = environment.get(key)
    return inner if isinstance(inner, dict) else {}


def versions(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """``(name → (before, after) of what differs, name → value of the rest)``."""
    old, new = words_of(before), words_of(after)
    names = dict.fromkeys([*old, *new])
    both = {k: (old.get(k, "none"), new.get(k, "none")) for k in names}
    changed = {k: pair for k, pair in both.items() if pair[0] != pair[1]}
    return changed, {k: pair[0] for k, pair in both.items() if k not in changed}
