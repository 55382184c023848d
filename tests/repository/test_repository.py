"""What engineers look for in a repository is there, and says what is so: workflows, hooks, how to
cite it, what is safe, and how much of it the tests run."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import gpt_verify as gv
from gpt_verify.command.arguments import build_parser

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: What a workflow may run, by the words that it begins with.
ACTION = re.compile(r"actions/[\w-]+@v\d+")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def tox_environments() -> set[str]:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    return {s.removeprefix("testenv:") for s in tox.sections() if s.startswith("testenv:")}


def steps(workflow: Any) -> Iterator[Any]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


class TestWorkflows:
    def test_there_are_some(self) -> None:
        assert {path.stem for path in WORKFLOWS} >= {"ci", "coverage", "release"}

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_each_is_one_and_may_write_nothing_by_default(self, path: Path) -> None:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        # YAML 1.1 reads the key as a truth value.
        assert {"name", True, "permissions", "jobs"} == workflow.keys()
        assert workflow["permissions"] == {"contents": "read"}
        assert "pull_request_target" not in (workflow[True] or {})
        for job in workflow["jobs"].values():
            assert {"runs-on", "timeout-minutes", "steps"} <= job.keys()
        for step in steps(workflow):
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or ACTION.fullmatch(step["uses"]), step["uses"]

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
    def test_its_commands_exist(self, path: Path) -> None:
        scripts = [s["run"] for s in steps(yaml.safe_load(path.read_text())) if "run" in s]
        for script in scripts:
            subprocess.run(["bash", "-n", "-c", script], check=True)
            for names in re.findall(r"tox -e ([\w,-]+)", script):
                assert set(names.split(",")) <= tox_environments()
            for line in re.findall(r"gpt-verify (run .*)", script):
                build_parser().parse_args(shlex.split(line))


class TestRelease:
    RELEASE = read(".github/workflows/release.yml")

    def script(self, name: str) -> str:
        (found,) = [s["run"] for s in steps(self.RELEASE) if s.get("name") == name]
        return str(found)

    def test_it_follows_a_tag_alone(self) -> None:
        assert self.RELEASE[True] == {"push": {"tags": ["v*"]}}

    @pytest.mark.parametrize(
        ("tag", "right"),
        [(f"v{gv.__version__}", True), (gv.__version__, False), ("v0.0.9", False), ("", False)],
    )
    def test_the_tag_must_be_the_version(self, tag: str, right: bool) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.script("the tag is the version")],
            cwd=ROOT,
            env={**os.environ, "GITHUB_REF_NAME": tag},
            check=False,
        )
        assert (done.returncode == 0) is right

    def test_what_is_built_is_checked_and_attested(self) -> None:
        build, release = self.RELEASE["jobs"]["build"], self.RELEASE["jobs"]["release"]
        assert release["needs"] == "build"
        assert "python -m build" in self.script("build the wheel and the source archive")
        assert ".ci/run" in self.script("lint, types, the tests, and the main job")
        assert "gpt-verify run" in self.script("the wheel alone, outside the checkout")
        (kept,) = [s["with"] for s in build["steps"] if "upload-artifact" in s.get("uses", "")]
        assert kept["if-no-files-found"] == "error"
        (attested,) = [s["with"] for s in release["steps"] if "attest" in s.get("uses", "")]
        assert attested["subject-path"].split() == ["dist/*.whl", "dist/*.tar.gz"]

    def test_what_may_write_runs_nothing_of_the_repository(self) -> None:
        """Nothing that a test or a dependency does comes near the rights to publish."""
        assert "permissions" not in self.RELEASE["jobs"]["build"]
        release = self.RELEASE["jobs"]["release"]
        assert release["permissions"].keys() == {"contents", "id-token", "attestations"}
        uses = [step["uses"] for step in release["steps"] if "uses" in step]
        assert not any("checkout" in used for used in uses)
        (script,) = [step["run"] for step in release["steps"] if "run" in step]
        assert shlex.split(script)[:3] == ["gh", "release", "create"]


class TestHooks:
    REPOS = read(".pre-commit-config.yaml")["repos"]
    HOOKS: ClassVar[Any] = {hook["id"]: hook for repo in REPOS for hook in repo["hooks"]}

    def test_they_are_local_and_fetch_nothing(self) -> None:
        assert self.HOOKS.keys() == {"ruff", "ruff-format", "mypy"}
        for repo in self.REPOS:
            assert repo["repo"] == "local"
        for hook in self.HOOKS.values():
            assert {"id", "name", "entry", "language"} <= hook.keys()
            assert hook["language"] == "system"
            assert "additional_dependencies" not in hook

    def run(self, hook: str, *files: Path) -> int:
        """As pre-commit runs it: with the names of the files that are to be committed."""
        words = shlex.split(self.HOOKS[hook]["entry"])
        if words[0] == "ruff":
            words = ["python", "-m", *words, "--config", str(ROOT / "pyproject.toml")]
        return subprocess.run([*words, *map(str, files)], cwd=ROOT, check=False).returncode

    def test_a_file_that_CI_would_refuse_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("ruff", reason="style is of tox -e lint, which has it")
        bad = tmp_path / "bad.py"
        bad.write_text("import os\n")
        assert self.run("ruff", bad) == 1
        bad.write_text("x = {  'a':1}\n")
        assert self.run("ruff-format", bad) == 0
        assert bad.read_text() == 'x = {"a": 1}\n'
        assert self.run("ruff", bad) == 0

    def test_types_are_asked_as_CI_asks(self) -> None:
        assert self.HOOKS["mypy"]["entry"] == "mypy"
        assert self.HOOKS["mypy"]["pass_filenames"] is False
        assert PROJECT["tool"]["mypy"]["strict"] and PROJECT["tool"]["mypy"]["files"]


class TestCitation:
    CITATION = read("CITATION.cff")

    def test_it_is_of_this_version(self) -> None:
        project = PROJECT["project"]
        assert self.CITATION["version"] == gv.__version__
        assert self.CITATION["title"] == project["name"]
        assert self.CITATION["license"] == project["license"]
        assert self.CITATION["authors"] == project["authors"]

    def test_it_is_complete(self) -> None:
        """By the schema of the Citation File Format 1.2.0: what is required, and of each person."""
        assert self.CITATION["cff-version"] == "1.2.0"
        assert {"message", "title", "authors"} <= self.CITATION.keys()
        for work in self.CITATION["references"]:
            assert {"type", "title", "authors"} <= work.keys()
            assert isinstance(work["year"], int)
            assert all({"family-names", "given-names"} == set(who) for who in work["authors"])


#: Calls by which a file of somebody else's would run as code, and the argument that prevents it.
SAFE = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
NEVER = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "marshal.loads", "joblib.load"}
READERS = [*sorted((ROOT / "verify/checkpoint").rglob("*.py")), ROOT / "verify/lens/tuned.py"]


def unsafe(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: k.value for k in node.keywords}
            if called in SAFE:
                name, needed = SAFE[called]
                value = given.get(name)
                if not (isinstance(value, ast.Constant) and value.value is needed):
                    found.append(called)
            elif called in NEVER or "trust_remote_code" in given:
                found.append(called)
    return found


class TestSecurity:
    """What SECURITY.md promises of a checkpoint. What comes of hostile files is tested by
    test_file_layouts.py, test_bundle_damage.py, test_safetensors_damage.py and
    test_hostile_campaigns.py."""

    def test_no_reader_runs_what_it_reads(self) -> None:
        assert {"hf_pickled.py", "gpt1.py", "tuned.py"} <= {path.name for path in READERS}
        found = {path.name: unsafe(path.read_text(encoding="utf-8")) for path in READERS}
        assert {name: calls for name, calls in found.items() if calls} == {}

    def test_transformers_is_not_told_to_run_it_either(self) -> None:
        for path in (ROOT / "verify").rglob("*.py"):
            assert "trust_remote_code" not in path.read_text(encoding="utf-8"), path

    @pytest.mark.parametrize(
        "line",
        [
            "torch.load(f)",
            "torch.load(f, weights_only=False)",
            "torch.load(f, weights_only=flag)",
            "np.load(f, allow_pickle=True)",
            "np.load(f)",
            "pickle.loads(b)",
            "exec(text)",
            "model.from_pretrained(x, trust_remote_code=True)",
        ],
    )
    def test_one_that_would_is_seen(self, line: str) -> None:
        assert len(unsafe(line)) == 1

    def test_a_graph_reads_no_file_but_its_weights(self) -> None:
        """The operations that a stored graph may have are in the source of a worker, which needs
        TensorFlow to be imported."""
        source = (ROOT / "verify/engines/tensorflow/meta.py").read_text(encoding="utf-8")
        (listed,) = re.findall(r'_ARITHMETIC = """(.*?)"""', source, re.DOTALL)
        files = [name for name in listed.split() if re.search("File|Read|Write|Save|Py|Call", name)]
        assert files == []


class TestCoverage:
    def test_both_folders_are_measured_with_their_branches(self, tmp_path: Path) -> None:
        """In a child of what is measured as well, as xdist, the command and engines have them."""
        child = (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', "
            "'from gpt_verify.text import count; count(1, str())'], check=True)"
        )
        (tmp_path / "parent.py").write_text(f"import gpt_verify.reference.ops\n{child}\n")
        environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "data")}

        def coverage(*words: str) -> None:
            command = [sys.executable, "-m", "coverage", *words]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)

        coverage("run", str(tmp_path / "parent.py"))
        coverage("combine", "--quiet")
        coverage("json", "--quiet", "-o", str(tmp_path / "found.json"))
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["meta"]["branch_coverage"] is True
        for name in ("reference/ops.py", "verify/text.py"):
            lines = found["files"][name]["summary"]
            assert 0 < lines["covered_lines"] < lines["num_statements"]
            assert lines["num_branches"] > 0
        # A file that nobody imports is a file that no test runs.
        assert found["files"]["verify/power/trial.py"]["summary"]["covered_lines"] == 0

    def test_what_is_left_out_cannot_run(self) -> None:
        patterns = PROJECT["tool"]["coverage"]["report"]["exclude_also"]

        def excluded(line: str) -> bool:
            return any(re.search(pattern, line) for pattern in patterns)

        for line in ("if TYPE_CHECKING:", "    def f(self) -> None: ...", "        ..."):
            assert excluded(line), line
        for line in ("    x = a[..., 0]", "    return f(...)", "if checking:", "    raise Error"):
            assert not excluded(line), line


def test_what_these_files_name_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in ("build", "coverage", "pre_commit", "nbclient", "ipykernel", "ruff", "mypy"):
        assert re.search(rf"^{name}==", pins, re.MULTILINE), name
