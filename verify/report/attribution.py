"""Why two ports differ in half precision, for a person and for programs (docs/recipes.md)."""

from __future__ import annotations

from typing import Any

from gpt_verify.judging.attribute import Attributed
from gpt_verify.recipes.causes import Causes
from gpt_verify.recipes.pairs import Pair
from gpt_verify.recipes.summary import words
from gpt_verify.report.page import assemble
from gpt_verify.text import listing, number, one_line


def terminal(made: Attributed) -> str:
    """Where they part, what they compute otherwise, and the two tables of shares."""
    lines = _headlines(made)
    if made.found is not None and made.found.first is not None:
        lines += ["", *_causes(made), "", f"{'roundings of':<16}  {'share':>7}  {'left':>7}"]
        for part in made.found.parts:
            lines.append(f"{part.kind:<16}  {part.share:>7.1%}  {part.left:>7.1%}")
    return "\n".join(lines) + "\n"


def page(made: Attributed) -> str:
    """The same as an HTML page."""
    headline, *first = _headlines(made)
    differ = made.found is not None and made.found.first is not None
    said = {p.kind: _of_both(p, made.dtype) for p in (*made.otherwise, *made.untold)}
    context = {
        "headline": headline,
        "first": first,
        "names": list(map(one_line, made.names)),
        "causes": [(c, said.get(c.kind, ("", ""))) for c in made.causes.causes]
        if differ and made.causes is not None
        else [],
        "open": _OPEN,
        "after": _after(made) if differ else [],
        "parts": made.found.parts if made.found is not None else (),
    }
    return assemble("difference.html", context, styles=["base.css"], scripts=[])


def _headlines(made: Attributed) -> list[str]:
    """Where they part, and by how much they differ; or that nothing can be said of it."""
    one, other = map(one_line, made.names)
    if made.found is None:
        return [f"what makes the difference was not examined: {made.error}"]
    found = made.found
    if found.first is None:
        return [f"{one} and {other} have the same bits at every site that both show"]
    differ, of = found.differ
    exact_a, exact_b = map(number, found.kl_exact_nats)
    return [
        f"{one} and {other} part at {found.first}: {differ} of {of} elements differ",
        f"log-probabilities differ by {number(found.rms_nats)} nats (RMS; at most "
        f"{number(found.largest_nats)}), over {made.tokens} tokens in {made.dtype}",
        f"KL({one} ‖ {other}) {number(found.kl_nats)} nats; from float64: {one} {exact_a}, "
        f"{other} {exact_b}",
    ]


#: What is said of what common recipes leave open.
_OPEN = "left open"


def _causes(made: Attributed) -> list[str]:
    """What is computed otherwise, and how much of the difference follows of it."""
    assert made.causes is not None, "a difference"
    one, other = map(one_line, made.names)
    lines = [f"{'computed otherwise':<18}  {'share':>7}  {'alone':>7}  {'without':>7}"]
    for cause in made.causes.causes:
        name = cause.kind or _OPEN
        lines.append(f"{name:<18}  {cause.share:>7.1%}  {cause.alone:>7.1%}  {cause.without:>7.1%}")
    for pairs, what in ((made.otherwise, ""), (made.untold, "not known of ")):
        for pair in pairs:
            a, b = _of_both(pair, made.dtype)
            lines.append(f"  {what}{pair.kind}: {one}: {a}; {other}: {b}")
    return lines + _after(made)


def _of_both(pair: Pair, half: str) -> tuple[str, str]:
    return words(pair.a, half), words(pair.b, half)


def _after(made: Attributed) -> list[str]:
    """What was seen of sums, and how much of the difference is that of known recipes."""
    assert made.causes is not None, "a difference"
    lines = _left_open(made.causes)
    if made.otherwise:
        lines.append(f"so {made.accounted:.1%} of the difference is that of known recipes")
    else:
        lines.append("no operation is known to be computed otherwise")
    return lines


def _left_open(causes: Causes) -> list[str]:
    """What the order of sums and libraries' functions do to what both compute alike."""
    differ = {kind: n for kind, (_, n) in causes.compared.items() if n}
    equal = sum(elements for elements, _ in causes.compared.values())
    if differ:
        where = listing((f"{kind} ({n})" for kind, n in differ.items()), 4)
        said = f"of {equal} elements made alike of equal numbers some differ: {where}"
        lines = [f"{_OPEN} (order of sums, libraries' functions): {said}"]
    else:
        lines = [f"{equal} elements that both make alike of equal numbers are equal"]
    if causes.unseen and not differ:
        lines.append(f"never made of equal numbers: {listing(causes.unseen, 20)}")
    return lines


def as_dict(made: Attributed) -> dict[str, Any]:
    """The same in JSON's own types."""
    found = made.found
    return {
        "names": list(made.names),
        "dtype": made.dtype,
        "tokens": made.tokens,
        "error": made.error,
        "first": None if found is None else found.first,
        "differ": None if found is None else list(found.differ),
        "rms_nats": None if found is None else found.rms_nats,
        "largest_nats": None if found is None else found.largest_nats,
        "kl_nats": None if found is None else found.kl_nats,
        "kl_exact_nats": None if found is None else list(found.kl_exact_nats),
        "parts": []
        if found is None
        else [{"kind": p.kind, "share": p.share, "left": p.left} for p in found.parts],
        "causes": []
        if made.causes is None
        else [
            {"kind": c.kind, "share": c.share, "alone": c.alone, "without": c.without}
            for c in made.causes.causes
        ],
        "compared": {}
        if made.causes is None
        else {kind: list(counts) for kind, counts in made.causes.compared.items()},
        "otherwise": [_pair(pair, made.dtype) for pair in made.otherwise],
        "untold": [_pair(pair, made.dtype) for pair in made.untold],
        "accounted": None if made.causes is None else made.accounted,
    }


def _pair(pair: Pair, half: str) -> dict[str, Any]:
    sides = (pair.a, pair.b)
    return {
        "kind": pair.kind,
        "recipes": [list(side.named) for side in sides],
        "words": [words(side, half) for side in sides],
    }
