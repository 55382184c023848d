"""A finding's message is for people: no code reads it, but what prints it.

What code has to know of a finding stands in its fields. Each rule here is also run on code that
breaks it, so that it can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Files that print findings, or write them to a file.
RENDERERS = {
    "verify/plugin.py",
    "verify/report/compare/terminal.py",
    "verify/report/diagnose.py",
    "verify/report/github.py",
    "verify/report/history/terminal.py",
    "verify/report/json.py",
    "verify/report/junit.py",
    "verify/report/matrix.py",
    "verify/report/progress.py",
    "verify/report/sarif.py",
    "verify/report/terminal.py",
    "verify/text.py",
}
#: What a renderer may do with a message: make it printable.
PRINTS = {"one_line", "plain", "_clean"}
#: The record itself puts words around it.
RECORD = "verify/findings.py"
#: Messages that are no finding's.
OTHERS = {
    ("verify/command/arguments.py", "error.message"): "of argparse's error",
    ("verify/laws/symmetry/check.py", "changes[worst].message"): "of a change of logits",
    ("verify/report/power.py", "o.message"): "of an outcome of gpt-verify power",
    (
        "verify/engines/tensorflow/meta.py",
        "getattr(error, 'message', str(error))",
    ): "of TensorFlow's error",
    ("verify/engines/tensorflow/worker.py", "error.message"): "of TensorFlow's error",
}


def reads(where: str, source: str) -> Iterator[tuple[str, bool]]:
    """``(expression, whether it is only printed)`` for each read of an attribute ``message``."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "message":
            if isinstance(node.ctx, ast.Load):
                yield ast.unparse(node), _printed(parents[node])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getattr"):
            if any(isinstance(a, ast.Constant) and a.value == "message" for a in node.args):
                yield ast.unparse(node), False
        elif isinstance(node, ast.keyword | ast.MatchClass):
            names = node.kwd_attrs if isinstance(node, ast.MatchClass) else []
            if "message" in names:
                yield ast.unparse(node), False


def _printed(parent: ast.AST) -> bool:
    called = isinstance(parent, ast.Call) and ast.unparse(parent.func) in PRINTS
    return called or isinstance(parent, ast.FormattedValue)


def violations(root: Path) -> list[str]:
    found = []
    files = sorted((root / "verify").rglob("*.py"))
    assert files, f"no files under {root}"
    for path in files:
        where = path.relative_to(root).as_posix()
        for expression, printed in reads(where, path.read_text(encoding="utf-8")):
            allowed = where == RECORD or (where in RENDERERS and printed)
            if not allowed and (where, expression) not in OTHERS:
                found.append(f"{where} reads {expression}")
    return found


def test_no_code_reads_a_message() -> None:
    assert violations(ROOT) == []


def test_what_is_allowed_is_there() -> None:
    """An entry that allows nothing would hide the day on which it begins to."""
    found = {
        (where, expression)
        for where in {RECORD, *RENDERERS, *(where for where, _ in OTHERS)}
        for expression, _ in reads(where, (ROOT / where).read_text(encoding="utf-8"))
    }
    assert set(OTHERS) <= found
    assert RENDERERS | {RECORD} <= {where for where, _ in found}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("verify/diagnosis/x.py", "x = finding.message"),
        ("verify/diagnosis/x.py", "x = 'dropout' in f.message"),
        ("verify/diagnosis/x.py", "x = getattr(f, 'message')"),
        ("verify/diagnosis/x.py", "match f:\n case Finding(message=m): pass"),
        ("verify/text.py", "x = finding.message.removeprefix('a')"),
        ("verify/report/json.py", "x = 'a' in finding.message"),
    ],
)
def test_the_rule_can_fail(where: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_what_is_written_to_a_message_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "verify" / "x.py"
    path.parent.mkdir()
    path.write_text("x = Finding(id, status, message='a')\n")
    assert violations(tmp_path) == []
