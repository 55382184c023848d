"""What a CI server is told: a badge, annotations, a summary; and the workflow of the documents."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import PORTS, ROOT, Run
from hypothesis import given
from hypothesis import strategies as st
from report_samples import broken, good, report, wrong

import gpt_verify as gv
from gpt_verify.command.arguments import build_parser
from gpt_verify.findings import Finding, Report, Status
from gpt_verify.judging.project import Project, read_project
from gpt_verify.judging.requirements import requirements
from gpt_verify.report import badge, github, sarif
from gpt_verify.report.place import Place, place
from gpt_verify.text import headline

pytest_plugins = ["pytester"]

PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


class TestBadge:
    @pytest.mark.parametrize(
        ("ports", "message", "colour"),
        [
            ((good(),), "verified: 8 checks; 2 not examined", "brightgreen"),
            ((wrong(), good()), "refuted: 2 ports, 4 checks failed, 12 passed; 4", "red"),
            ((broken(),), "unjudged: 0 checks passed; 1 not examined", "lightgrey"),
            ((dataclasses.replace(good(), unmet=("x",)),), "unjudged: 8 checks", "lightgrey"),
        ],
    )
    def test_is_what_shields_reads(self, ports: Any, message: str, colour: str) -> None:
        found = json.loads(badge.render(report(*ports)))
        assert found.keys() == {"schemaVersion", "label", "message", "color"}
        assert (found["schemaVersion"], found["label"]) == (1, "gpt-verify")
        assert found["message"].startswith(message)
        assert found["color"] == colour

    def test_is_written_by_the_command(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "badge.json"
        for port, status, colour in (("good", 0, "brightgreen"), ("twice_too_large", 1, "red")):
            assert run("--badge", path, "--quiet", port=port)[0] == status
            assert json.loads(path.read_text())["color"] == colour
        assert run("--badge", "missing/b.json")[0] == 2
        assert run("--badge", path, "--json", path)[0] == 2

    def test_the_page_shows_one(self) -> None:
        (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
        assert json.loads(block).keys() == json.loads(badge.render(report(good()))).keys()


def command_of(line: str) -> re.Match[str]:
    """A line as GitHub's runner reads it: a command with properties, and data to its end."""
    match = re.fullmatch(r"::error (?:([^:]*))::(.*)", line)
    assert match, line
    return match


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "::error::x",
        "a%0A::set-output name=x::y",
        "a\r\n::stop-commands::t",
        "</pre><script>",
        "|*_`",
    ]
)


class TestAnnotations:
    def test_what_fails_is_annotated(self) -> None:
        port = dataclasses.replace(wrong(), name="mine/port.py:factory")
        first, second = github.marks(report(good(), port))
        assert first == (
            "::error file=mine/port.py,title=mine/port.py%3Afactory%3A activations.local fails at "
            "h.0…1.mlp.act::h.0.mlp.act[0, 0, 3, 17] = -0.1588, should be -0.1587 ± 1.2e-08 "
            "(explained by erf_gelu)"
        )
        assert "activations.cascaded fails" in second

    def test_a_verified_run_is_silent(self) -> None:
        assert github.marks(report(good())) == []

    def test_what_is_not_judged_says_why(self) -> None:
        unmet = dataclasses.replace(good("b"), unmet=("--require all: 8 of 10 checks examined",))
        first, second = github.marks(report(broken(), unmet))
        assert "unjudged::my.py:port: the factory raised ValueError: no weights" in first
        assert second.endswith("unjudged::--require all: 8 of 10 checks examined")

    def test_no_more_than_are_shown_and_every_port_has_its_turn(self) -> None:
        many = [Finding(f"law{i}", Status.FAILED, "wrong") for i in range(30)]
        bad = dataclasses.replace(good("a"), findings=tuple(many))
        found = github.marks(report(bad, wrong("b")))
        assert len(found) == 10
        assert "b%3A activations.local" in found[1]
        assert found[-1].endswith("::23 more; the log has all of them")

    def test_what_is_worse(self) -> None:
        compared = gv.compare(report(good()), report(wrong("good")))
        first = github.marks(compared.after, compared)[0]
        assert first == "::error title=baseline::worse: 1 verdict and 4 checks of 1 port, 10 checks"

    @given(TEXT, TEXT, TEXT)
    def test_what_a_port_says_is_no_command(self, name: str, message: str, site: str) -> None:
        found = Finding("law", Status.FAILED, message, site)
        port = dataclasses.replace(good(name), findings=(found,), explained_by=(message,))
        (line,) = github.marks(report(port))
        assert "\n" not in line and "\r" not in line
        properties = command_of(line)[1].split(",")
        assert {p.partition("=")[0] for p in properties} <= {"file", "line", "title"}


class TestPlaces:
    """Of the code that is annotated."""

    @pytest.fixture
    def code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").write_text("factory = print\n")
        path = package / "port.py"
        path.write_text("import os\n\n\ndef other(): ...\n\n\n@staticmethod\ndef factory(c): ...\n")
        return path

    @pytest.mark.parametrize(
        ("spec", "found"),
        [
            ("package/port.py:factory", Place("package/port.py", 8)),
            ("package/port.py:other", Place("package/port.py", 4)),
            ("package/port.py:none", Place("package/port.py")),
            ("package.port:factory", Place("package/port.py", 8)),
            ("package:factory", Place("package/__init__.py", 1)),
            ("missing.py:factory", Place("missing.py")),
            ("missing.module:factory", None),
            ("huggingface-eager", None),
            ("huggingface-eager=package/port.py:factory", None),
            ("process=python port.py:x", None),
            ("http://localhost:80", None),
        ],
    )
    def test_of_a_specification(self, code: Path, spec: str, found: Place | None) -> None:
        assert place(spec, {}) == found

    def test_as_the_repository_has_it(
        self, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GitHub knows a file by its path from the root of the repository."""
        monkeypatch.chdir(code.parent)
        workspace = {"GITHUB_WORKSPACE": str(tmp_path)}
        assert place("port.py:factory", workspace) == Place("package/port.py", 8)
        assert place(f"{code}:factory", workspace) == Place("package/port.py", 8)
        assert place("port.py:factory", {"GITHUB_WORKSPACE": "/elsewhere"}) == Place("port.py", 8)

    def test_the_annotation_has_the_line(self, code: Path) -> None:
        port = dataclasses.replace(wrong(), name="package/port.py:factory")
        assert github.marks(report(port))[0].startswith(
            "::error file=package/port.py,line=8,title="
        )

    @pytest.mark.parametrize("content", [b"def (", b"\xff\xfe", b"(" * 500, b"\0"])
    def test_a_file_that_is_no_python_has_no_line(self, code: Path, content: bytes) -> None:
        code.write_bytes(content)
        assert place("package/port.py:factory", {}) == Place("package/port.py")


class TestSarif:
    def test_each_failure_is_a_result_of_a_rule(self) -> None:
        port = dataclasses.replace(wrong(), name="mine/a port.py:factory")
        (run,) = self.read(report(good(), port))["runs"]
        results = run["results"]
        assert len(results) == 4
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len(set(rules)) == len(rules)
        assert {result["ruleId"] for result in results} <= set(rules)
        (where,) = results[0]["locations"]
        physical = where["physicalLocation"]
        assert physical["artifactLocation"] == {"uri": "mine/a%20port.py"}
        assert physical["region"] == {"startLine": 1}
        assert "h.0.mlp.act[0, 0, 3, 17] = -0.1588" in results[0]["message"]["text"]
        prints = [result["partialFingerprints"]["gptVerify/v1"] for result in results]
        assert len(set(prints)) == len(prints)

    def test_a_verified_run_has_none(self) -> None:
        (run,) = self.read(report(good()))["runs"]
        assert run["results"] == []
        assert run["properties"]["verdict"] == "verified"

    def test_what_is_not_judged_is_one_too(self) -> None:
        (run,) = self.read(report(broken()))["runs"]
        (result,) = run["results"]
        assert result["ruleId"] == "unjudged"
        assert "no weights" in result["message"]["text"]

    def test_no_more_than_are_taken(self) -> None:
        many = tuple(Finding(f"law{i}", Status.FAILED, "wrong") for i in range(6000))
        made = report(dataclasses.replace(good(), findings=many))
        assert len(self.read(made)["runs"][0]["results"]) == 5000

    def test_it_is_written_by_the_command(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "out.sarif"
        assert run("--sarif", path, port="twice_too_large")[0] == 1
        (written,) = json.loads(path.read_text())["runs"]
        assert [result["ruleId"] for result in written["results"]] == ["logits"]
        assert run("--sarif", "missing/out.sarif")[0] == 2

    @staticmethod
    def read(made: Report) -> Any:
        found = json.loads(sarif.render(made))
        assert found["version"] == "2.1.0" and len(found["runs"]) == 1
        return found


class TestSummary:
    def test_has_the_headline_and_the_report(self) -> None:
        made = report(good(), wrong())
        text = github.summary(made)
        assert text.startswith("### gpt-verify: refuted")
        assert headline(made) in text.replace("&#58;", ":").replace("&#59;", ";").replace(
            "&#44;", ","
        )
        assert text.count("\n| ") == 3
        assert "score 735, limit 4" in text

    @given(TEXT, TEXT)
    def test_what_a_port_says_is_no_markup(self, name: str, message: str) -> None:
        found = Finding("law", Status.FAILED, message)
        port = dataclasses.replace(good(name), findings=(found,), explained_by=(message,))
        text = github.summary(report(port))
        table, _, rest = text.partition("<details>")
        assert "<" not in table
        row = table.strip().splitlines()[-1]
        assert row.count("|") == 5
        assert set(re.sub(r"&#\d+;|\w| ", "", row)) <= {"|"}
        whole = rest.partition("<pre>")[2].partition("</pre>")[0]
        assert "<" not in whole and rest.count("</pre>") == 1

    def test_a_long_report_is_cut(self) -> None:
        many = tuple(Finding("law", Status.FAILED, "<" * 400) for _ in range(10))
        ports = [dataclasses.replace(good(f"p{i}"), findings=many) for i in range(3000)]
        text = github.summary(report(*ports[:1]))
        assert "cut" not in text
        assert len(github._cut("<é\n" * 1_000_000).encode()) < 1_000_000

    def test_it_is_added_and_its_failure_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.md"
        path.write_text("before\n")
        assert github.write_summary("after\n", {"GITHUB_STEP_SUMMARY": str(path)}) is None
        assert path.read_text() == "before\nafter\n"
        assert github.write_summary("x", {}) is None
        for bad in (str(tmp_path), str(tmp_path / "no" / "file"), "a\0b"):
            why = github.write_summary("x", {"GITHUB_STEP_SUMMARY": bad})
            assert why is not None and why.startswith("GITHUB_STEP_SUMMARY: ")


class TestOnGitHub:
    @pytest.fixture
    def summary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "summary.md"
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
        return path

    def test_the_command(self, run: Run, summary: Path) -> None:
        status, out, err = run("--json", "-", port="twice_too_large")
        assert status == 1
        assert json.loads(out)["verdict"] == "refuted"
        lines = [line for line in err.splitlines() if line.startswith("::")]
        assert any(line.startswith(f"::error file={PORTS},line=") for line in lines)
        assert "### gpt-verify: refuted" in summary.read_text()

    def test_a_verified_run(self, run: Run, summary: Path) -> None:
        status, out, err = run("--quiet")
        assert (status, err) == (0, "")
        assert len(out.splitlines()) == 1
        assert "### gpt-verify: verified" in summary.read_text()

    def test_a_summary_that_cannot_be_written(
        self, run: Run, tmp_path: Path, summary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
        status, _, err = run()
        assert status == 0
        assert err.startswith("gpt-verify: GITHUB_STEP_SUMMARY: ")

    def test_elsewhere_nothing_is_said(
        self, run: Run, summary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("GITHUB_ACTIONS")
        assert "::error" not in "".join(map(str, run(port="twice_too_large")))
        assert not summary.exists()

    def test_pytest(
        self, pytester: pytest.Pytester, tiny: Path, summary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        more = ("-p", "gpt_verify.plugin", f"--checkpoint={tiny}", "--gpt-verify-length=5")
        words = (f"--port={PORTS}:twice_too_large", "--gpt-verify-badge=badge.json")
        result = pytester.runpytest_subprocess(*more, *words)
        assert result.ret == 1
        assert any(line.startswith("::error file=") for line in result.outlines)
        assert "### gpt-verify: refuted" in summary.read_text()
        assert json.loads((pytester.path / "badge.json").read_text())["color"] == "red"


class TestTheWorkflow:
    def test_it_is_one_and_its_commands_are_understood(self) -> None:
        (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
        workflow = yaml.safe_load(block)
        # YAML 1.1 reads the key as a truth value.
        assert workflow.keys() == {"name", True, "permissions", "env", "jobs"}
        assert workflow["permissions"] == {"contents": "read", "security-events": "write"}
        (job,) = workflow["jobs"].values()
        commands = [step["run"] for step in job["steps"] if "run" in step]
        (line,) = [command for command in commands if command.startswith("gpt-verify ")]
        args = build_parser().parse_args(shlex.split(line)[1:])
        assert args.command == "run"
        assert [r.law for r in requirements(args.require)] == ["logits", "weights"]
        written = [args.json, args.html, args.junit, args.badge, args.sarif]
        (kept,) = [s["with"]["path"] for s in job["steps"] if "upload-artifact" in str(s)]
        assert all(Path(out).match(kept) for out in written)
        assert set(job) == {"runs-on", "timeout-minutes", "steps"}
        (scanned,) = [s["with"]["sarif_file"] for s in job["steps"] if "upload-sarif" in str(s)]
        assert scanned == args.sarif
        (install,) = [command for command in commands if command.startswith("pip ")]
        extras, _, source = shlex.split(install)[2].partition(" @ ")
        assert extras == "gpt-verify[torch]" and source == "$GPT_VERIFY"
        assert workflow["env"]["GPT_VERIFY"].startswith("git+https://")
        assert any("actions/cache" in str(step.get("uses")) for step in job["steps"])

    def test_the_table_of_pyproject_is_understood(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
        (tmp_path / "pyproject.toml").write_text(block)
        monkeypatch.chdir(tmp_path)
        found = read_project(tmp_path)
        assert found.ports == ("my_port.py:factory",)
        assert found.waivers.keys() == {"my_port.py:factory"}
        assert found.lengths == (16, 64)
        shown = set(re.findall(r"`(\w+)`", PAGE.split("| key |")[1].split("\n\n")[0]))
        assert {field.name for field in dataclasses.fields(Project)} <= shown

    def test_the_matrix_of_tox_is_understood(self) -> None:
        (block,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
        tox = configparser.ConfigParser()
        tox.read_string(block)
        (command,) = [x for x in tox["testenv"]["commands"].splitlines() if "gpt-verify" in x]
        args = build_parser().parse_args(shlex.split(command)[1:])
        assert args.json == "reports/{env_name}.json"

    def test_the_other_commands_of_the_page(self) -> None:
        lines = re.findall(r"^gpt-verify (.*)$", PAGE, re.MULTILINE)
        assert lines
        for line in lines:
            build_parser().parse_args(shlex.split(line))
