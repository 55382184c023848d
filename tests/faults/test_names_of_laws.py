"""Every name that a law can give to a failure is one of a fault that is planted, or of a form.

Names are read off the source: those that are written out there, and those that are put together, of
which each way stands here with all that it can make.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpt_verify import laws
from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.gradient.hypotheses import MISTAKES, OTHERS, READ_OFF

ROOT = Path(laws.__file__).parent
#: Files of what is planted: what a law calls a failure stands in the others.
PLANTED = {"faults.py", "injection.py"}
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9.]+)+")
#: What looks like a name, and is none.
WORDS = {"utf-8": "an encoding", "latin-1": "an encoding", "clean-up": "says what a text is"}
#: File and expression → all that it makes.
COMPOSED: Mapping[tuple[str, str], frozenset[str]] = {
    ("gradient/hypotheses.py", "f'gradient-{self.rule}'"): frozenset(
        f"gradient-{rule}" for rule in (*READ_OFF, *MISTAKES, *OTHERS)
    ),
}


def names(root: Path) -> Iterator[tuple[str, str]]:
    """File and name, or the expression that puts one together."""
    for path in sorted(root.rglob("*.py")):
        if path.name in PLANTED:
            continue
        where = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        within: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                within.update(node.values)
                if NAME.fullmatch("".join(map(_literal, node.values))):
                    yield where, ast.unparse(node)
            elif not isinstance(node, ast.Constant) or node in within:
                continue
            elif isinstance(node.value, str) and NAME.fullmatch(node.value):
                yield where, node.value


def _literal(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "x"


def unknown(root: Path) -> set[tuple[str, str]]:
    """What is neither planted nor a form, nor a part of a name that is put together."""
    found = set()
    for where, name in names(root):
        made = {n for (file, _), every in COMPOSED.items() if file == where for n in every}
        part = any(n.endswith(f"-{name}") for n in made)
        if not (part or name in {*WORDS, *CATALOGUE, *FORMS} or (where, name) in COMPOSED):
            found.add((where, name))
    return found


def test_every_name_is_planted_or_a_form() -> None:
    assert unknown(ROOT) == set()
    assert {name for every in COMPOSED.values() for name in every} <= {*CATALOGUE, *FORMS}


def test_what_is_named_can_be_planted() -> None:
    """Of each such fault there is a port that has it."""
    given = {name for _, name in names(ROOT)}.union(*COMPOSED.values())
    of_laws = {name for name, fault in CATALOGUE.items() if fault.law}
    assert of_laws & given
    assert [n for n in given & set(CATALOGUE) if CATALOGUE[n].inject is None] == []


def test_what_is_allowed_is_there() -> None:
    found = set(names(ROOT))
    assert set(COMPOSED) <= found
    assert set(WORDS) <= {name for _, name in found}


def test_each_fault_has_a_name_that_is_seen() -> None:
    assert [name for name in CATALOGUE if not NAME.fullmatch(name)] == []


def test_the_rule_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "check.py"
    path.write_text("naming('cache-invented')\nnaming(f'cache-{x}')\nsay(f'{x}-fold is {y}')\n")
    assert unknown(tmp_path) == {("check.py", "cache-invented"), ("check.py", "f'cache-{x}'")}
    path.write_text("naming('cache-no-mask')\nnaming('cache-slots')\nnaming('utf-8')\n")
    assert unknown(tmp_path) == set()
