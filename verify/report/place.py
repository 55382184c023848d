"""Where the code of a port is: what a CI server annotates."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Bytes of a file that is looked into.
_LARGEST = 10_000_000


@dataclass(frozen=True)
class Place:
    """A file, as the repository names it, and the line of the factory, or None."""

    file: str
    line: int | None = None


def place(spec: str, environment: Mapping[str, str] = os.environ) -> Place | None:
    """The factory of a specification; None where it names no file. Nothing is imported for it.

    Args:
        spec: ``FILE.py:factory`` or ``package.module:factory``.
        environment: of the process; ``GITHUB_WORKSPACE`` is where the repository lies.
    """
    where, _, name = spec.rpartition(":")
    path = _file(where)
    if path is None:
        return None
    return Place(_in_repository(path, environment), _line(path, name))


def _file(where: str) -> Path | None:
    if not where or "=" in where or "://" in where:
        return None
    if where.endswith(".py"):
        return Path(where)
    if not all(part.isidentifier() for part in where.split(".")):
        return None
    inner = Path(*where.split("."))
    for folder in dict.fromkeys(["", *sys.path]):
        for path in (folder / inner.with_suffix(".py"), folder / inner / "__init__.py"):
            if path.is_file():
                return path
    return None


def _in_repository(path: Path, environment: Mapping[str, str]) -> str:
    root = environment.get("GITHUB_WORKSPACE")
    absolute = Path(os.path.abspath(path))
    if root and absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return path.as_posix()


def _line(path: Path, name: str) -> int | None:
    """Of the last definition of this name, which is the one that is taken."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        body = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    lines = [node.lineno for node in body if _defines(node, name)]
    return lines[-1] if lines else None


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)
