"""Two ports, kind of site by kind of site: what they compute alike, otherwise, or nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gpt_verify.recipes.identify import Found

How = Literal["otherwise", "alike", "untold"]


@dataclass(frozen=True)
class Pair:
    """One kind of site in both ports.

    Attributes:
        kind: ``mlp.act``.
        how: the two compute it ``otherwise``, ``alike``, or it is ``untold``.
        a, b: a site of each, at which they differ if they do.
    """

    kind: str
    how: How
    a: Found
    b: Found


def pairs(a: Iterable[Found], b: Iterable[Found]) -> list[Pair]:
    """One for each kind that both show. What one of them hides is judged where it is next seen."""
    kinds: dict[str, tuple[list[Found], list[Found]]] = {}
    for i, found in enumerate((a, b)):
        for one in found:
            kinds.setdefault(one.kind, ([], []))[i].append(one)
    return [_pair(kind, one, other) for kind, (one, other) in kinds.items() if one and other]


def _pair(kind: str, a: list[Found], b: list[Found]) -> Pair:
    both = list(zip(a, b, strict=False))
    for how in ("untold", "otherwise"):
        for one, other in both:
            if how_alike(one, other) == how:
                return Pair(kind, how, one, other)
    return Pair(kind, "alike", *both[0])


def how_alike(one: Found, other: Found) -> How:
    """How two ports compute one site."""
    if not (_told(one) and _told(other)):
        return "untold"
    return "alike" if one.same(other) else "otherwise"


def _told(found: Found) -> bool:
    return bool(found.named) or found.exact
