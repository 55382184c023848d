"""Imports point one way. Each rule is also run on a file that breaks it, so that it can fail."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("torch", "tensorflow", "transformers")
MATHEMATICS = tuple(f"gpt_verify.reference.{name}" for name in ("ops", "model", "lens", "loss"))
#: Written in a framework from end to end; what imports such a module does so in a function.
FRAMEWORK_CODE = (
    "verify/claims/transformers_probe",
    "verify/engines/tensorflow/cache",
    "verify/engines/tensorflow/graph",
    "verify/engines/tensorflow/meta",
    "verify/engines/tensorflow/training",
    "verify/engines/tensorflow/worker",
    "verify/faults/model",
    "verify/laws/gradient/injection",
    "verify/laws/precision/injection",
    "verify/laws/tying/injection",
    "verify/ports/torch/",
)
ADAPTERS = ("verify/ports/", "verify/engines/")

#: What each room of ``verify`` may import from, besides the nouns at its door and the reference.
#: A room may import only from rooms above it, so that there is no circle.
NOUNS = {"errors", "explanation", "findings", "inputs", "port", "shown", "sites", "text"}
ROOMS: dict[str, set[str]] = {
    "numerics": set(),
    "process": {"numerics"},
    "engines": {"process"},
    "checkpoint": {"engines", "process"},
    "graph": {"numerics"},
    "recipes": {"graph", "numerics"},
    "matching": {"checkpoint", "numerics"},
    "lens": set(),
    "ports": {"checkpoint", "engines", "matching", "numerics", "process"},
    "faults": {"checkpoint", "graph", "numerics"},
    "laws": {"checkpoint", "faults", "graph", "lens", "matching", "numerics", "process"},
    "diagnosis": {"faults", "graph", "laws", "matching", "numerics"},
}
ROOMS["judging"] = {*ROOMS}
ROOMS["claims"] = {*ROOMS}
ROOMS["power"] = {*ROOMS} - {"claims"}
ROOMS["report"] = {*ROOMS}
ROOMS["command"] = {*ROOMS}
ROOMS["plugin"] = {*ROOMS} - {"command"}


def imports(path: Path, *, top_level: bool = False, types: bool = True) -> Iterator[str]:
    """Dotted names that a file imports; ``from a import b`` yields both ``a`` and ``a.b``.

    With ``top_level``, only what is imported when the file is: not in functions, and not for the
    type checker alone. Without ``types``, all but what is imported for the type checker alone.
    """
    types = types and not top_level
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


Rule = Callable[[str, Path], Iterator[str]]


def reference_imports_numpy_only(where: str, path: Path) -> Iterator[str]:
    if where.startswith("reference/"):
        allowed = {*sys.stdlib_module_names, "numpy"}
        for name in imports(path):
            if name.split(".")[0] not in allowed and not inside(name, "gpt_verify.reference"):
                yield name


def rooms_import_from_rooms_above_them(where: str, path: Path) -> Iterator[str]:
    folder, _, inner = where.partition("/")
    if folder != "verify" or inner in ("__init__.py", "__main__.py"):
        return
    room = inner.split("/")[0].removesuffix(".py")
    allowed = NOUNS if room in NOUNS else {room, *NOUNS, *ROOMS[room]}
    for name in imports(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "gpt_verify" and other in {*NOUNS, *ROOMS, "plugin"} - allowed:
            yield name


def the_names_of_the_checkout_are_not_imported(where: str, path: Path) -> Iterator[str]:
    yield from (name for name in imports(path) if inside(name, "verify", "reference"))


def adapters_do_not_import_the_mathematics(where: str, path: Path) -> Iterator[str]:
    if where.startswith(ADAPTERS):
        functions = ("gpt_verify.reference.forward", "gpt_verify.reference.logits")
        yield from (name for name in imports(path) if inside(name, *MATHEMATICS, *functions))


def laws_import_no_framework(where: str, path: Path) -> Iterator[str]:
    if where.startswith("verify/laws/") and not path.stem.startswith(("faults", "injection")):
        yield from (name for name in imports(path) if inside(name, *FRAMEWORKS))


def frameworks_are_imported_in_functions(where: str, path: Path) -> Iterator[str]:
    if where.startswith("verify/") and not where.startswith(FRAMEWORK_CODE):
        yield from (name for name in imports(path, top_level=True) if inside(name, *FRAMEWORKS))


def framework_code_is_imported_in_functions(where: str, path: Path) -> Iterator[str]:
    if not where.startswith(FRAMEWORK_CODE):
        packages = [f"gpt_{prefix}".replace("/", ".") for prefix in FRAMEWORK_CODE]
        yield from (n for n in imports(path, top_level=True) if n.startswith(tuple(packages)))


RULES: list[Rule] = [
    reference_imports_numpy_only,
    rooms_import_from_rooms_above_them,
    the_names_of_the_checkout_are_not_imported,
    adapters_do_not_import_the_mathematics,
    laws_import_no_framework,
    frameworks_are_imported_in_functions,
    framework_code_is_imported_in_functions,
]


def violations(rule: Rule, root: Path) -> list[str]:
    files = [path for package in ("reference", "verify") for path in (root / package).rglob("*.py")]
    assert files, f"no files under {root}"
    return [
        f"{where} imports {name}"
        for path in sorted(files)
        for where in [path.relative_to(root).as_posix()]
        for name in rule(where, path)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert violations(rule, ROOT) == []


@pytest.mark.parametrize(
    ("rule", "where", "line"),
    [
        (reference_imports_numpy_only, "reference/x.py", "import scipy.linalg"),
        (
            reference_imports_numpy_only,
            "reference/x.py",
            "def f():\n from gpt_verify import findings",
        ),
        (rooms_import_from_rooms_above_them, "verify/laws/x.py", "from gpt_verify import plugin"),
        (rooms_import_from_rooms_above_them, "verify/numerics/x.py", "import gpt_verify.laws.y"),
        (rooms_import_from_rooms_above_them, "verify/findings.py", "import gpt_verify.ports.y"),
        (rooms_import_from_rooms_above_them, "verify/plugin.py", "import gpt_verify.command.cli"),
        (
            rooms_import_from_rooms_above_them,
            "verify/laws/y/x.py",
            "def f():\n from gpt_verify.ports.torch import module",
        ),
        (the_names_of_the_checkout_are_not_imported, "verify/x.py", "import verify.sites"),
        (the_names_of_the_checkout_are_not_imported, "verify/x.py", "from reference import ops"),
        (
            adapters_do_not_import_the_mathematics,
            "verify/ports/x.py",
            "from gpt_verify.reference import ops",
        ),
        (
            adapters_do_not_import_the_mathematics,
            "verify/engines/x.py",
            "import gpt_verify.reference.model",
        ),
        (
            adapters_do_not_import_the_mathematics,
            "verify/ports/x.py",
            "from gpt_verify.reference import logits",
        ),
        (laws_import_no_framework, "verify/laws/x/check.py", "def f():\n import torch"),
        (frameworks_are_imported_in_functions, "verify/x.py", "import torch.nn as nn"),
        (
            frameworks_are_imported_in_functions,
            "verify/x.py",
            "try:\n import tensorflow\nfinally: 1",
        ),
        (frameworks_are_imported_in_functions, "verify/x.py", "class A:\n import transformers"),
        (
            framework_code_is_imported_in_functions,
            "verify/x.py",
            "import gpt_verify.engines.tensorflow.graph",
        ),
        (
            framework_code_is_imported_in_functions,
            "verify/ports/x.py",
            "from gpt_verify.ports.torch import module",
        ),
    ],
)
def test_rule_can_fail(rule: Rule, where: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(violations(rule, tmp_path)) >= 1


def modules(root: Path) -> dict[str, Path]:
    """Every file by its dotted name: ``verify`` is installed as ``gpt_verify``, and the reference
    within it."""
    where = {"gpt_verify": root / "verify", "gpt_verify.reference": root / "reference"}
    return {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for name, folder in where.items()
        for path in folder.rglob("*.py")
    }


def circle(root: Path) -> list[str] | None:
    """Files that import each other, in functions too; None where there are none."""
    files = modules(root)
    assert files
    graph = {
        name: {other for other in imports(path, types=False) if other in files and other != name}
        for name, path in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def test_no_files_import_each_other() -> None:
    assert circle(ROOT) is None


def test_a_circle_is_seen_also_in_a_function(tmp_path: Path) -> None:
    (tmp_path / "verify").mkdir()
    (tmp_path / "verify" / "a.py").write_text("from gpt_verify import b\n")
    inner = "def f():\n    from gpt_verify.a import x\n"
    (tmp_path / "verify" / "b.py").write_text(inner)
    assert circle(tmp_path) is not None
    (tmp_path / "verify" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gpt_verify.a import x\n"
    )
    assert circle(tmp_path) is None


def test_rooms_stand_in_an_order() -> None:
    order = list(ROOMS)
    for room, above in ROOMS.items():
        assert above <= set(order[: order.index(room)]), room


def test_at_the_door_stand_the_nouns() -> None:
    top = ROOT / "verify"
    files = {path.stem for path in top.glob("*.py")}
    assert files == {*NOUNS, "__init__", "__main__", "plugin"}
    folders = {path.name for path in top.iterdir() if any(path.glob("*.py"))}
    assert folders == {*ROOMS, "reference"} - {"plugin"}


def test_what_a_function_imports_is_not_imported_at_the_top(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n import torch\n"
        "def f():\n import tensorflow\n"
    )
    assert set(imports(path, top_level=True)) == {"typing", "typing.TYPE_CHECKING"}
    assert {"torch", "tensorflow"} <= set(imports(path))


HEAVY = (*FRAMEWORKS, "numpy", "rich", "safetensors", "google_crc32c")


def _loaded(code: str) -> set[str]:
    """Heavy packages that are loaded after running ``code`` in a new interpreter."""
    script = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules], sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()) & set(HEAVY)


def test_import_gpt_verify_is_light() -> None:
    assert _loaded("import gpt_verify") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_is_light(arguments: list[str]) -> None:
    code = (
        "from gpt_verify.command.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
    )
    assert _loaded(code) == set()


def test_the_probe_for_loaded_packages_sees_them() -> None:
    assert _loaded("import numpy") == {"numpy"}


@pytest.mark.parametrize(
    "module",
    [
        "gpt_verify.plugin",
        "gpt_verify.judging.run",
        "gpt_verify.checkpoint",
        "gpt_verify.command.cli",
    ],
)
def test_no_framework_is_loaded_before_a_port_needs_it(module: str) -> None:
    assert not _loaded(f"import {module}") & set(FRAMEWORKS)


def test_help_takes_less_time_than_numpy_takes_to_load() -> None:
    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    # The best of several, in turns: the machine may be shared.
    turns = [
        (seconds("-m", "gpt_verify", "--help"), seconds("-c", "import numpy")) for _ in range(7)
    ]
    ours, numpy = map(min, zip(*turns, strict=True))
    assert ours < numpy
