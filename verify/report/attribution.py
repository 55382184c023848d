"""Why two ports differ in half precision, for a person and for programs (docs/recipes.md)."""

from __future__ import annotations

from typing import Any

from gpt_verify.judging.attribute import Attributed, Pair
from gpt_verify.recipes.summary import words
from gpt_verify.text import number, one_line


def terminal(made: Attributed) -> str:
    """Where they part, the table of shares, and what they compute otherwise."""
    one, other = map(one_line, made.names)
    if made.found is None:
        return f"what makes the difference was not examined: {made.error}\n"
    found = made.found
    if found.first is None:
        return f"{one} and {other} have the same bits at every site that both show\n"
    differ, of = found.differ
    exact_a, exact_b = map(number, found.kl_exact_nats)
    lines = [
        f"{one} and {other} part at {found.first}: {differ} of {of} elements differ",
        f"log-probabilities differ by {number(found.rms_nats)} nats (RMS; at most "
        f"{number(found.largest_nats)}), over {made.tokens} tokens in {made.dtype}",
        f"KL({one} ‖ {other}) {number(found.kl_nats)} nats; from float64: {one} {exact_a}, "
        f"{other} {exact_b}",
        "",
        f"{'roundings of':<16}  {'share':>7}  {'left':>7}",
    ]
    for part in found.parts:
        lines.append(f"{part.kind:<16}  {part.share:>7.1%}  {part.left:>7.1%}")
    lines += ["", *_otherwise(made)]
    return "\n".join(lines) + "\n"


def _otherwise(made: Attributed) -> list[str]:
    one, other = map(one_line, made.names)
    lines = ["computed otherwise:"] if made.otherwise else ["no operation is computed otherwise"]
    for pair in made.otherwise:
        said = f"{one}: {words(pair.a, made.dtype)}; {other}: {words(pair.b, made.dtype)}"
        lines.append(f"  {pair.kind}: {said}")
    why = (
        "because what is rounded differs by then"
        if made.otherwise
        else "by what a recipe leaves open, as the order of sums"
    )
    lines.append(f"where both follow one recipe, roundings fall otherwise {why}")
    lines.append(f"so {made.accounted:.1%} of the difference is accounted for")
    for pair in made.untold:
        said = f"{one}: {words(pair.a, made.dtype)}; {other}: {words(pair.b, made.dtype)}"
        lines.append(f"  not known of {pair.kind}: {said}")
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
        "otherwise": [_pair(pair, made.dtype) for pair in made.otherwise],
        "untold": [_pair(pair, made.dtype) for pair in made.untold],
        "accounted": None if found is None else made.accounted,
    }


def _pair(pair: Pair, half: str) -> dict[str, Any]:
    sides = (pair.a, pair.b)
    return {
        "kind": pair.kind,
        "recipes": [list(side.named) for side in sides],
        "words": [words(side, half) for side in sides],
    }
