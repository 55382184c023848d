"""The pytest plugin, in pytest processes of their own, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import jsonschema
import pytest
from command import PORTS, ROOT

from gpt_verify.laws.table import expected_checks
from gpt_verify.reference import Config
from gpt_verify.report import json as json_report

pytest_plugins = ["pytester"]

Pytest = Callable[..., pytest.RunResult]
CHECKS = len(expected_checks(Config(97, 24, 12, 3, 2)))
#: Of them, what a port that shows nothing but logits is judged on: logits, determinism,
#: causality.bits, lengths, batch, batch.sizes, positions.limit, positions.beyond,
#: determinism.state, calls.
SEEN = 12


@pytest.fixture
def user(pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Pytest:
    """Run pytest in an empty directory of a user, with the plugin loaded once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # As an installed package would be, whether or not this one is: one registration, no other.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(*words: object, port: str | None = "good") -> pytest.RunResult:
        ports = [] if port is None else ["--port", f"{PORTS}:{port}"]
        return pytester.runpytest_subprocess(
            "-p",
            "gpt_verify.plugin",
            f"--checkpoint={tiny}",
            "--gpt-verify-length",
            "5",
            *ports,
            *words,
        )

    return run


def node(port: str, name: str) -> str:
    return f"{PORTS}:{port}::{name}"


def test_each_law_and_site_is_a_test(user: Pytest) -> None:
    result = user("-v")
    assert result.ret == 0
    outcomes = result.parseoutcomes()
    # Logits and determinism pass, and the verdict; a function shows nothing else.
    assert outcomes == {"passed": SEEN + 1, "skipped": CHECKS - SEEN}
    lines = result.outlines
    for name, outcome in (
        ("logits[logits]", "PASSED"),
        ("activations.local[h.0.mlp.act]", "SKIPPED"),
        ("verdict", "PASSED"),
    ):
        assert any(f"::{name} {outcome}" in line for line in lines), name


def test_what_was_not_examined_is_skipped_by_name(user: Pytest) -> None:
    result = user("-rs")
    skips = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert len(skips) == CHECKS - SEEN
    assert any(
        "::activations.local[h.1.mlp.act]: the port shows nothing but logits" in line
        for line in skips
    )


def test_a_failure_is_the_finding_and_no_traceback(user: Pytest) -> None:
    result = user("-rx", port="twice_too_large")
    assert result.ret == 1
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["xfailed"]) == (1, 1)  # the check, and the verdict
    text = result.stdout.str()
    assert re.search(r"\nlogits\[.*\] = .*, should be .*\nscore \S+, limit \S+\nrepeat: ", text)
    assert "repeat: gpt-verify run --checkpoint" in text
    assert "first divergence: logits" in text
    assert "plugin.py" not in text.split("short test summary")[0].split("FAILURES")[1]


def test_a_port_that_breaks_is_one_failure(user: Pytest) -> None:
    result = user(port="raises")
    assert result.ret == 1
    assert result.parseoutcomes() == {"xfailed": CHECKS, "failed": 1}
    assert "the factory raised ValueError: no weights today" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_port_runs_once(user: Pytest, pytester: pytest.Pytester) -> None:
    (pytester.path / "counted.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(PORTS.parent)!r})\n"
        "from sample_ports import good\n"
        "def port(checkpoint):\n"
        "    with open('calls', 'a') as calls: calls.write('x')\n"
        "    return good(checkpoint)\n"
    )
    assert user("--port", "counted.py:port", port=None).ret == 0
    assert (pytester.path / "calls").read_text() == "x"


def test_several_ports(user: Pytest) -> None:
    result = user("--port", f"{PORTS}:twice_too_large", "-v")
    assert result.ret == 1
    assert result.parseoutcomes() == {
        # Where all logits are wrong, the last position's are not judged by themselves.
        "passed": 2 * SEEN - 2,
        "failed": 1,
        "xfailed": 1,
        "skipped": 2 * (CHECKS - SEEN) + 2,
    }


def test_selection_by_name(user: Pytest) -> None:
    result = user("-k", "logits[logits]", port="twice_too_large")
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] == 1


def test_selecting_nothing_is_no_success(user: Pytest) -> None:
    assert user("-k", "no_such_check").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_port_that_shows_nothing_is_no_success(user: Pytest, pytester: pytest.Pytester) -> None:
    """Skips alone are green in pytest; the verdict is not."""
    pytester.makeconftest(
        "import dataclasses, gpt_verify.judging.run\n"
        "from gpt_verify.findings import Finding, Status\n"
        "judged = gpt_verify.judging.run.run_request\n"
        "def run(*args):\n"
        "    report = judged(*args)\n"
        "    ports = [dataclasses.replace(port, findings=tuple(\n"
        "        dataclasses.replace(f, status=Status.NOT_EXAMINED) for f in port.findings))\n"
        "        for port in report.ports]\n"
        "    return dataclasses.replace(report, ports=tuple(ports))\n"
        "gpt_verify.judging.run.run_request = run\n"
    )
    result = user()
    assert result.ret == 1
    assert result.parseoutcomes() == {"skipped": CHECKS, "failed": 1}
    assert "its logits were not compared" in result.stdout.str()


@pytest.mark.parametrize(
    ("change", "failed", "says"),
    [
        ("[f for f in findings if f.id != 'logits']", 2, "no finding: nothing was compared"),
        ("(*findings, Finding('other', Status.FAILED, 'a surprise', 'x'))", 1, "a surprise"),
        (
            "(*findings, *(dataclasses.replace(f, status=Status.FAILED)"
            " for f in findings if f.id == 'logits'))",
            1,
            "failed checks: logits (1)",
        ),
    ],
    ids=["lost", "unexpected", "contradictory"],
)
def test_no_finding_is_lost(
    user: Pytest, pytester: pytest.Pytester, change: str, failed: int, says: str
) -> None:
    pytester.makeconftest(
        "import dataclasses, gpt_verify.judging.run\n"
        "from gpt_verify.findings import Finding, Status\n"
        "judged = gpt_verify.judging.run.run_request\n"
        "def run(*args):\n"
        "    report = judged(*args)\n"
        "    findings = report.ports[0].findings\n"
        f"    port = dataclasses.replace(report.ports[0], findings={change})\n"
        "    return dataclasses.replace(report, ports=(port,))\n"
        "gpt_verify.judging.run.run_request = run\n"
    )
    result = user("-rx")
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] == failed
    assert says in result.stdout.str()


def test_unreadable_checkpoint_is_one_line(user: Pytest) -> None:
    result = user("--checkpoint=missing")
    assert result.ret == pytest.ExitCode.INTERRUPTED == 2
    assert "gpt-verify: missing: no such directory" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert "plugin.py" not in result.stdout.str()


@pytest.mark.parametrize("length", ["0", "25"])
def test_impossible_length(user: Pytest, length: str) -> None:
    result = user("--gpt-verify-length", length)
    assert result.ret == 1
    assert result.parseoutcomes() == {"errors": 1, "xfailed": CHECKS}
    assert f"length {length}" in result.stdout.str()


class TestInAProject:
    """With tests of its own."""

    def test_they_are_collected_too(self, user: Pytest, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_own="def test_own(): pass\ndef test_wrong(): assert False")
        result = user()
        assert result.ret == 1
        assert result.parseoutcomes() == {
            "passed": SEEN + 2,
            "failed": 1,
            "skipped": CHECKS - SEEN,
        }
        assert user("-m", "gpt_verify").parseoutcomes()["passed"] == SEEN + 1
        assert user("-m", "not gpt_verify").parseoutcomes()["passed"] == 1
        assert user("test_own.py").parseoutcomes()["passed"] == SEEN + 2

    def test_without_a_port_nothing_is_judged(
        self, user: Pytest, pytester: pytest.Pytester
    ) -> None:
        pytester.makepyfile(
            test_own="def test_own(port_report): assert False\n"
            "def test_sizes(checkpoint): assert checkpoint.config.n_embd == 12"
        )
        result = user("test_own.py", "-rs", port=None)
        assert result.ret == 0
        assert result.parseoutcomes() == {"passed": 1, "skipped": 1}
        assert "gpt-verify: no port to judge; name one with --port=" in result.stdout.str()


def mistaken(pytester: pytest.Pytester) -> str:
    """A port that notes when it is made, and whose batches are wrong, as its logits are."""
    (pytester.path / "noted.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(PORTS.parent)!r})\n"
        "from sample_ports import twice_too_large\n"
        "def port(checkpoint):\n"
        "    with open('calls', 'a') as calls: calls.write('x')\n"
        "    right = twice_too_large(checkpoint)\n"
        "    return lambda tokens: right(tokens) + len(tokens)\n"
    )
    return "--port=noted.py:port"


class TestOneMistakeIsOneFailure:
    def test_its_consequences_name_it(self, user: Pytest) -> None:
        result = user("-rx", port="twice_too_large")
        assert "XFAIL" in result.stdout.str()
        (line,) = [line for line in result.outlines if line.startswith("XFAIL")]
        assert "::verdict - follows from " in line and "::logits[logits]: " in line

    def test_it_says_what_the_port_does_wrong(self, user: Pytest) -> None:
        altered = f"--port={PORTS.parent / 'altered_ports.py'}:eager_exact_gelu"
        result = user(altered, "-k", "architecture or activations.local", port=None)
        assert result.parseoutcomes()["failed"] == 1
        said = result.stdout.str()
        assert "gelu-erf: the port computes the exact GELU" in said

    def test_each_is_a_failure_where_that_is_asked_for(self, user: Pytest) -> None:
        result = user("--runxfail", port="twice_too_large")
        assert result.parseoutcomes()["failed"] == 2
        result = user("--runxfail", port="raises")
        assert result.parseoutcomes()["failed"] + result.parseoutcomes()["errors"] == CHECKS + 1

    @pytest.mark.parametrize("port", ["raises", "twice_too_large"])
    def test_what_is_run_alone_fails_itself(self, user: Pytest, port: str) -> None:
        result = user("-k", "verdict", port=port)
        assert result.ret == 1
        assert result.parseoutcomes()["failed"] == 1
        result = user("-k", "logits[logits]", port=port)
        assert result.ret == 1
        outcomes = result.parseoutcomes()
        assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1


class TestPytestsOwnOptions:
    def test_last_failed(self, user: Pytest, pytester: pytest.Pytester) -> None:
        more = (mistaken(pytester), "--runxfail")
        failed = user(*more, port=None).parseoutcomes()["failed"]
        assert failed > 2
        again = user(*more, "--lf", port=None)
        assert again.parseoutcomes() == {"failed": failed, "deselected": CHECKS + 1 - failed}

    def test_stop_at_the_first(self, user: Pytest, pytester: pytest.Pytester) -> None:
        outcomes = user(mistaken(pytester), "-x", port=None).parseoutcomes()
        assert outcomes["failed"] == 1

    def test_what_is_not_chosen_is_not_judged(
        self, user: Pytest, pytester: pytest.Pytester
    ) -> None:
        """The port is called for the logits, and not for every law."""
        (pytester.path / "counted.py").write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(PORTS.parent)!r})\n"
            "from sample_ports import good\n"
            "def port(checkpoint):\n"
            "    right = good(checkpoint)\n"
            "    def logits(tokens):\n"
            "        with open('calls', 'a') as calls: calls.write('x')\n"
            "        return right(tokens)\n"
            "    return logits\n"
        )
        calls = pytester.path / "calls"
        assert user("--port=counted.py:port", port=None).ret == 0
        all_laws = len(calls.read_text())
        calls.unlink()
        result = user("--port=counted.py:port", "-k", "logits[logits]", port=None)
        assert result.parseoutcomes() == {"passed": 1, "deselected": CHECKS}
        assert len(calls.read_text()) < all_laws / 10
        assert "judged by the selected checks alone: counted.py:port" in result.stdout.str()
        # A report that is written is that of the whole port.
        out = ("--gpt-verify-json=out.json", "-k", "logits[logits]")
        assert user("--port=counted.py:port", *out, port=None).ret == 0
        (port,) = json.loads((pytester.path / "out.json").read_text())["ports"]
        # And that no fault was found in the logits, which is no test of its own.
        assert sum(check["status"] == "passed" for check in port["checks"]) == SEEN + 1

    @pytest.mark.parametrize("dist", ["load", "loadgroup", "loadfile", "worksteal"])
    def test_xdist(self, user: Pytest, pytester: pytest.Pytester, dist: str) -> None:
        """A port is judged once, wherever its tests go, and the reports know of it."""
        more = ("-p", "xdist.plugin", "-p", "xdist.looponfail", "-n", "2", "--dist", dist)
        out = ("--gpt-verify-json=out.json", "--gpt-verify-badge=badge.json")
        result = user(mistaken(pytester), *more, *out)
        assert result.ret == 1
        assert (pytester.path / "calls").read_text() == "x"
        assert "refuted: 2 ports, " in result.stdout.str()
        ports = json.loads((pytester.path / "out.json").read_text())["ports"]
        assert [port["verdict"] for port in ports] == ["verified", "refuted"]
        assert json.loads((pytester.path / "badge.json").read_text())["color"] == "red"

    def test_times_are_real(self, user: Pytest, pytester: pytest.Pytester) -> None:
        start = time.perf_counter()
        result = user("--junitxml=out.xml", "--gpt-verify-json=out.json")
        elapsed = time.perf_counter() - start
        assert result.ret == 0
        (suite,) = ET.parse(pytester.path / "out.xml").getroot()
        times = {case.get("name"): float(case.get("time", "")) for case in suite}
        assert len(times) == CHECKS + 1
        seen = [name for name in times if name in ("calls", "lengths", "batch.sizes")]
        assert len(seen) == 3 and all(times[name] > 0 for name in seen)
        (port,) = json.loads((pytester.path / "out.json").read_text())["ports"]
        # Together they are what the port took; each is written with three digits.
        rounding = 0.0005 * len(times)
        assert port["seconds"] - rounding <= sum(times.values()) <= elapsed + rounding


def test_fixtures(user: Pytest, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_own="""
        def test_sizes(checkpoint):
            assert checkpoint.config.n_embd == 12
            assert checkpoint.tensors["wte"].shape == (97, 12)

        def test_floors(port_report):
            assert port_report.logits_floors < 2
        """
    )
    result = user("test_own.py", "-v", "--port", f"{PORTS}:twice_too_large")
    assert result.ret == 1
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (2 * SEEN - 2 + 2, 1 + 1)
    assert any("test_floors" in x and "good" in x and "PASSED" in x for x in result.outlines)
    assert any("test_floors" in x and "twice" in x and "FAILED" in x for x in result.outlines)


def test_json(user: Pytest, pytester: pytest.Pytester) -> None:
    assert user("--gpt-verify-json", "out.json", "--port", f"{PORTS}:twice_too_large").ret == 1
    loaded = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_report.schema()).validate(loaded)
    assert loaded["verdict"] == "refuted"
    assert [port["verdict"] for port in loaded["ports"]] == ["verified", "refuted"]
    assert loaded["repeat"].count("--port") == 2


def test_html(user: Pytest, pytester: pytest.Pytester) -> None:
    assert user("--gpt-verify-html", "out.html", "--port", f"{PORTS}:twice_too_large").ret == 1
    page = (pytester.path / "out.html").read_text(encoding="utf-8")
    assert "<h1>Refuted: " in page
    assert page.count('class="port" id="p') == 2
    for port in ("good", "twice_too_large"):  # the command that judges it alone
        assert re.search(rf"<pre>gpt-verify run [^<]*--port {PORTS}:{port} --length 5</pre>", page)


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_report_that_cannot_be_written(user: Pytest, kind: str) -> None:
    result = user(f"--gpt-verify-{kind}", "missing/out.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "missing/out.json: cannot be written" in result.stderr.str()


def test_without_options_the_plugin_does_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_own(): pass")
    result = pytester.runpytest_subprocess("-p", "gpt_verify.plugin")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "option", ["--baseline=a.json", "--require=all", "--gpt-verify-json=a.json"]
)
def test_what_needs_a_port_is_refused_without_one(
    option: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be compared, and nothing written."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_own(): pass")
    result = pytester.runpytest_subprocess("-p", "gpt_verify.plugin", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{option.partition('=')[0]}: no port to judge" in result.stderr.str()


@pytest.mark.parametrize("loaded", ["by_conftest", "by_name_and_conftest", "as_installed"])
def test_the_plugin_is_registered_once(
    loaded: str, pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source checkout, one whose plugin is named too, and one that is installed as well."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pytester.path}")
    installed = any(e.value == "gpt_verify.plugin" for e in entry_points(group="pytest11"))
    if loaded == "as_installed" and not installed:
        # What an installer leaves: the distribution's entry point.
        information = pytester.mkdir("gpt_verify_installed-1.dist-info")
        (information / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: gpt-verify-installed\nVersion: 1\n"
        )
        (information / "entry_points.txt").write_text(
            "[pytest11]\ngpt_verify_x = gpt_verify.plugin\n"
        )
    elif loaded != "as_installed":
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    named = ["-p", "gpt_verify.plugin"] if loaded == "by_name_and_conftest" else []
    result = pytester.runpytest_subprocess(
        *named, f"--checkpoint={tiny}", "--gpt-verify-length=5", f"--port={PORTS}:good"
    )
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == SEEN + 1


def test_collecting_loads_no_framework(user: Pytest, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import sys\n"
        "def pytest_collection_finish(session):\n"
        "    assert session.items\n"
        "    assert not {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
    )
    assert user("--collect-only", "-q").ret == 0
