"""One function decides which known fault a failure is: the one that fits, where just one does."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import gpt_verify
from gpt_verify.laws.explain import UNEXPLAINED, agreed, explain


@dataclass(frozen=True)
class Leaves:
    """A hypothesis that leaves a given rest of any failure."""

    fault: str
    left: float | None

    @property
    def description(self) -> str:
        return f"it is {self.fault}"

    def fits(self, evidence: object) -> float | None:
        return self.left


rests = st.none() | st.sampled_from([0.0, 0.5, 1.0, 7.0])


@given(st.lists(rests, max_size=6))
def test_the_one_that_leaves_least_is_named(lefts: list[float | None]) -> None:
    tried = [Leaves(f"fault-{i}", left) for i, left in enumerate(lefts)]
    found = explain(None, tried)
    fitting = [h for h in tried if h.left is not None]
    least = min((h.left for h in fitting if h.left is not None), default=None)
    closest = tuple(h for h in fitting if h.left == least)
    assert found.fitting == closest
    if len(closest) == 1:
        assert found
        assert found.by is closest[0]
        assert found.named is not None
        assert found.named.fault == closest[0].fault
        assert found.description == closest[0].description
    else:
        assert not found
        assert (found.by, found.named, found.description) == (None, None, UNEXPLAINED)


def test_a_fault_that_the_catalogue_lacks_is_said_and_not_named() -> None:
    found = explain(None, [Leaves("", 0.0)])
    assert found.description == "it is "
    assert found.named is None


def test_every_part_of_a_failure_must_have_the_fault() -> None:
    assert agreed([]) is None
    assert agreed(["a", "b"]) is None
    assert agreed(["a", None]) is None
    assert agreed([None]) is None
    found = agreed(["a", "a"])
    assert found is not None
    assert found.fault == "a"


def test_nobody_else_says_that_nothing_fits() -> None:
    """Who says so by himself has decided by himself."""
    laws = Path(gpt_verify.__file__).resolve().parent / "laws"
    said = []
    for file in sorted(laws.rglob("*.py")):
        if file.name == "explain.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            spoken = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if spoken and id(node) not in docs and UNEXPLAINED in node.value:
                said.append(file.name)
    assert said == []
