"""The recipe of a port in one line, and of each operation in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_verify.recipes.identify import Found, Tried
from gpt_verify.recipes.table import NOUNS
from gpt_verify.text import listing

#: Sums, of which the line says what they are kept in: nothing else about them is told.
_SUMS = ("add", "embed")


def words(found: Found, half: str, fitting: Sequence[Tried] | None = None) -> str:
    """How these sites are computed, or that no recipe says it.

    Args:
        found: sites of one operation.
        half: the format that the port declares.
        fitting: the recipes to say, in the place of all that fit.
    """
    if found.why_not:
        return f"not examined: {found.why_not}"
    fitting = found.fitting if fitting is None else fitting
    if fitting:
        said = ", or ".join(tried.recipe.words for tried in fitting).format(half=half)
        if found.operation in _SUMS or found.kept != half:
            said += f", kept in {found.kept}"
        return said
    if found.exact:
        return "nothing is rounded"
    best = found.best
    assert best is not None, "something was tried"
    name, left = best.recipe.words.format(half=half), best.agreement.outside
    if found.alike:
        like = listing((tried.recipe.words.format(half=half) for tried in found.alike), 2)
        return f"as no known recipe has the bits; by their distances from right ones they {like}"
    if left:
        return f"as no known recipe has it; nearest: {name}, which leaves {left} elements"
    return f"not told by so few elements; nothing speaks against: {name}"


def line(groups: Sequence[Found], half: str) -> str:
    """One line for a port: ``norms in float32; softmax in float32; …``.

    Args:
        groups: as ``identify.grouped`` makes them.
        half: the format that the port declares.
    """
    parts: list[str] = []
    for noun in dict.fromkeys(NOUNS.values()):
        alike = [g for g in groups if NOUNS.get(g.operation) == noun]
        told = [g for g in alike if not g.why_not and not g.exact]
        if not told:
            continue
        common = _common(told)
        if common:
            parts.append(f"{noun} {words(told[0], half, common)}")
        else:
            said: dict[str, list[str]] = {}
            for group in told:
                said.setdefault(words(group, half), []).append(_place(group))
            parts += [f"{noun} {what} ({', '.join(places)})" for what, places in said.items()]
    return "; ".join(parts) or "no operation could be examined"


def _common(groups: Sequence[Found]) -> list[Tried]:
    """The recipes that fit all of them, where they are kept alike."""
    if len({g.kept for g in groups}) > 1:
        return []
    names = set.intersection(*(set(g.named) for g in groups))
    return [tried for tried in groups[0].fitting if tried.recipe.name in names]


def _place(found: Found) -> str:
    """``h.1.mlp.act``, or ``mlp.act`` where it is that of several layers."""
    return found.sites[0] if len(found.sites) == 1 else found.kind
