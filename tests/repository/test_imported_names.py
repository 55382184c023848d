"""What tests, scripts and examples import from this package is there, inside functions as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("verify", "reference", "tests", "scripts", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def _source(module: str) -> Path | None:
    """The file of a module of this package."""
    path = ROOT.joinpath(*module.split("."))
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if found.is_file():
            return found
    return None


@cache
def _names(path: Path) -> set[str] | None:
    """What a module has at its top; None where it makes its names itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in _top(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            if node.name == "__getattr__":
                return None
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those within its conditions among them."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.For)):
                yield from _top(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _top(handler.body)


def _missing(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
            continue
        if node.module.partition(".")[0] != "gpt_verify":
            continue
        source = _source(node.module)
        if source is None:
            yield f"{path.name}:{node.lineno}: no module {node.module}"
            continue
        known = _names(source)
        for alias in node.names:
            there = known is None or alias.name in known
            if not there and _source(f"{node.module}.{alias.name}") is None:
                yield f"{path.name}:{node.lineno}: no {alias.name} in {node.module}"


def test_every_name_is_there() -> None:
    assert len(FILES) > 500
    assert [line for path in FILES for line in _missing(path)] == []


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from gpt_verify.sites import sites", 0),
        ("from gpt_verify.sites import sights", 1),
        ("def f():\n    from gpt_verify.ports.torch.widening import in_float64", 1),
        ("from gpt_verify.nowhere import anything", 1),
        ("from gpt_verify.laws import loss", 0),
    ],
)
def test_a_name_that_is_not_there_is_found(line: str, missing: int, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(line)
    assert len(list(_missing(tmp_path / "some.py"))) == missing
