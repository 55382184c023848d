"""A run beside one that was recorded earlier: ``--baseline``, in the command and in pytest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import PORTS, ROOT, Run, command, complaint

pytest_plugins = ["pytester"]

Pytest = Callable[..., pytest.RunResult]
COMPARED = Path(__file__).parents[1] / "compared_ports.py"
PORT = f"{COMPARED}:port"


@pytest.fixture
def old(run: Run, tmp_path: Path) -> Path:
    """The report of a correct port."""
    path = tmp_path / "old.json"
    assert run("--json", path, "--quiet")[0] == 0
    return path


def state(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COMPARED_STATE", name)


class TestCommand:
    def test_the_comparison_follows_the_report(self, run: Run, old: Path) -> None:
        status, out, err = run("--baseline", old)
        assert (status, err) == (0, "")
        assert out.splitlines()[-1].startswith("nothing is worse of 1 port, ")
        assert f"{old} → this run" in out
        status, out, _ = run("--baseline", old, "--quiet")
        verdict, moved = out.splitlines()
        assert verdict.startswith("verified: ") and moved.startswith("nothing is worse ")

    def test_what_is_worse_counts_where_the_verdict_does_not_say_it(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is verified by its logits; but it was verified at every site."""
        old = tmp_path / "old.json"
        assert run("--port", PORT, "--json", old, port=None)[0] == 0
        state(monkeypatch, "hidden")
        status, out, _ = run("--port", PORT, "--baseline", old, port=None)
        assert status == 1
        assert "verified: 1 port, " in out
        assert out.splitlines()[-1].startswith("worse: ")

    def test_a_broken_port_stays_unjudged(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = tmp_path / "old.json"
        assert run("--port", PORT, "--json", old, port=None)[0] == 0
        state(monkeypatch, "broken")
        status, out, _ = run("--port", PORT, "--baseline", old, port=None)
        assert status == 2
        assert "verified → unjudged (worse)" in out

    def test_what_was_refuted_stays_refuted(self, run: Run, tmp_path: Path) -> None:
        old = tmp_path / "old.json"
        assert run("--json", old, port="twice_too_large")[0] == 1
        status, out, _ = run("--baseline", old, port="twice_too_large")
        assert status == 1
        assert out.splitlines()[-1].startswith("nothing is worse")

    def test_a_port_that_was_not_asked_for_is_no_loss(self, run: Run, tmp_path: Path) -> None:
        old = tmp_path / "old.json"
        assert run("--json", old, "--port", f"{PORTS}:chatty")[0] == 0
        status, out, _ = run("--baseline", old)
        assert status == 0
        assert f"not asked for: {PORTS}:chatty" in out

    def test_json_on_standard_output_stays_whole(self, run: Run, old: Path) -> None:
        status, out, err = run("--baseline", old, "--json", "-")
        assert status == 0
        assert json.loads(out)["verdict"] == "verified"
        assert "nothing is worse" in err

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--baseline", "missing.json"], "missing.json: no such file"),
            (["--baseline", PORTS], "not JSON"),
            (["--baseline", "OLD", "--seed", "1"], "different inputs (seed)"),
            (["--baseline", "OLD", "--json", "OLD"], "would replace an input"),
        ],
    )
    def test_refused_before_the_run(
        self,
        run: Run,
        old: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: list[object],
        says: str,
    ) -> None:
        def late(*_: object) -> None:
            raise AssertionError("the run has started")

        monkeypatch.setattr("gpt_verify.judging.run.run_request", late)
        status, out, err = run(*(old if word == "OLD" else word for word in words))
        assert (status, out) == (2, "")
        assert says in complaint(err)

    def test_other_weights_of_the_same_sizes(self, run: Run, old: Path, damaged: Path) -> None:
        """That is known when the files have been hashed."""
        path = damaged / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        status, out, err = run("--baseline", old, checkpoint=damaged)
        assert status == 2
        assert "verified: 1 port" in out
        assert "different checkpoints (model.safetensors)" in complaint(err)
        status, _, err = run("--baseline", old, checkpoint=damaged, port="twice_too_large")
        assert status == 1
        assert "different checkpoints" in complaint(err)


@pytest.fixture
def user(pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Pytest:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(*words: object) -> pytest.RunResult:
        more = ("-p", "gpt_verify.plugin", f"--checkpoint={tiny}", "--gpt-verify-length=5")
        return pytester.runpytest_subprocess(*more, *words)

    return run


OldOf = Callable[[str], Path]


@pytest.fixture
def old_of(tiny: Path, tmp_path: Path) -> OldOf:
    """The report of a port, made in another process: pytester forgets what is imported in this
    one while it is at work, and torch cannot be imported twice."""

    def made(port: str) -> Path:
        path = tmp_path / "old.json"
        words = ("--checkpoint", tiny, "--length", "5", "--port", port, "--json", path)
        assert command("run", *words).returncode == 0
        return path

    return made


class TestPytest:
    def test_the_same_is_not_worse(self, user: Pytest, old_of: OldOf) -> None:
        old = old_of(f"{PORTS}:good")
        result = user(f"--port={PORTS}:good", f"--baseline={old}", "-v")
        assert result.ret == 0
        assert any("::baseline PASSED" in line for line in result.outlines)
        assert "nothing is worse of 1 port" in result.stdout.str()

    def test_what_is_worse_fails(
        self, user: Pytest, old_of: OldOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = old_of(PORT)
        state(monkeypatch, "hidden")
        result = user(f"--port={PORT}", f"--baseline={old}")
        assert result.ret == 1
        assert result.parseoutcomes()["failed"] == 1
        text = result.stdout.str()
        assert "activations.local at embed" in text
        assert "passed → not examined" in text

    def test_another_port(self, user: Pytest, old_of: OldOf) -> None:
        old = old_of(f"{PORTS}:good")
        result = user(f"--port={PORTS}:chatty", f"--baseline={old}")
        assert result.ret == 1
        assert "none of the ports is in the baseline" in result.stdout.str()
        result = user(f"--port={PORTS}:chatty", f"--port={PORTS}:good", f"--baseline={old}")
        assert result.ret == 0
        assert "only in the newer: " in result.stdout.str()

    def test_a_default_port_that_is_lost(self, user: Pytest, old_of: OldOf) -> None:
        old = old_of(f"{PORTS}:good")
        result = user(f"--baseline={old}", "-k", "sample_ports")
        assert result.ret == 1
        (port,) = json.loads(old.read_text())["ports"]
        passed = sum(check["status"] == "passed" for check in port["checks"])
        assert f"{passed} checks passed, and it is not judged" in result.stdout.str()

    def test_what_cannot_be_compared_is_one_line(self, user: Pytest, old_of: OldOf) -> None:
        old = old_of(f"{PORTS}:good")
        result = user("--baseline=missing.json", f"--port={PORTS}:good")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "missing.json: no such file" in result.stderr.str()
        result = user(f"--baseline={old}", f"--port={PORTS}:good", "--gpt-verify-seed=1")
        assert result.ret == pytest.ExitCode.INTERRUPTED
        assert "different inputs (seed)" in result.stdout.str()
        assert "Traceback" not in result.stdout.str()
