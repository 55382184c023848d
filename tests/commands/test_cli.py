"""The command: its exit status, what it prints where, and that bad input costs one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from command import PORTS, ROOT, Run, command, complaint

from gpt_verify.command.cli import main
from gpt_verify.report import json as json_report


class TestVerdict:
    def test_verified_is_0(self, run: Run) -> None:
        status, out, err = run()
        assert status == 0
        assert out.splitlines()[-1].startswith("verified: 1 port, ")
        assert err == ""

    def test_refuted_is_1(self, run: Run) -> None:
        status, out, _ = run(port="twice_too_large")
        assert status == 1
        assert "twice_too_large: refuted at logits" in out
        assert "should be" in out
        assert f"--port {PORTS}:twice_too_large" in out

    def test_the_command_that_is_printed_repeats_the_run(self, run: Run) -> None:
        _, out, _ = run(port="twice_too_large")
        repeat = next(line for line in out.splitlines() if line.startswith("  repeat: "))
        words = repeat.removeprefix("  repeat: gpt-verify ").split()
        again = command(*words)
        assert again.returncode == 1
        assert again.stdout == out

    @pytest.mark.parametrize("port", ["nan", "wrong_shape", "wrong_dtype"])
    def test_wrong_output_is_refuted(self, run: Run, port: str) -> None:
        status, out, _ = run(port=port)
        assert status == 1
        assert f"{port}: refuted at logits" in out

    @pytest.mark.parametrize(
        ("port", "says"),
        [
            ("raises", "the factory raised ValueError: no weights today"),
            ("raises_in_use", "RuntimeError: out of order"),
            ("returns_a_number", "the factory returned int"),
            ("no_such_function", "no function no_such_function"),
            ("exits", "a port ended the process"),
        ],
    )
    def test_a_port_that_breaks_is_2(self, run: Run, port: str, says: str) -> None:
        status, out, err = run(port=port)
        assert status == 2
        assert says in complaint(err)
        assert "verified:" not in out

    def test_one_broken_port_spoils_a_verified_one(self, run: Run) -> None:
        status, out, err = run("--port", f"{PORTS}:raises")
        assert status == 2
        assert "no weights today" in complaint(err)
        assert out.splitlines()[-1].startswith("unjudged: 2 ports")

    def test_debug_shows_the_traceback(self, run: Run) -> None:
        status, _, err = run("--debug", port="raises")
        assert status == 2
        assert "Traceback" in err
        assert "in raises" in err

    def test_interrupt_is_130(self, run: Run) -> None:
        assert run(port="interrupted")[0] == 130

    def test_interrupt_in_a_process_of_its_own(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "slow.py").write_text(
            "import time\n"
            "def port(checkpoint):\n"
            "    print('ready', flush=True)\n"
            "    time.sleep(60)\n"
        )
        words = ["run", "--checkpoint", str(tiny), "--port", f"{tmp_path / 'slow.py'}:port"]
        with subprocess.Popen(
            [sys.executable, "-m", "gpt_verify", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job in the background of a shell inherits that interrupts are ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (130, "", "")

    def test_a_bug_is_named_as_one(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def bug(*_: object) -> None:
            raise ZeroDivisionError("x")

        monkeypatch.setattr("gpt_verify.judging.run.run_request", bug)
        status, _, err = run()
        assert status == 2
        assert "this is a bug in gpt-verify" in complaint(err)
        assert "Traceback" in run("--debug")[2]

    def test_no_memory_is_2(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def large(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr("gpt_verify.judging.run.run_request", large)
        status, _, err = run()
        assert (status, complaint(err)) == (2, "gpt-verify: not enough memory")

    def test_quiet_prints_the_verdict_alone(self, run: Run) -> None:
        status, out, err = run("--quiet")
        assert status == 0
        assert len(out.splitlines()) == 1
        assert err == ""


class TestReports:
    def test_json_and_junit(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        json_out, junit_out = tmp_path / "out" / "a.json", tmp_path / "out" / "a.xml"
        status, _, _ = run("--json", json_out, "--junit", junit_out, port="twice_too_large")
        assert status == 1
        loaded = json.loads(json_out.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(json_report.schema()).validate(loaded)
        assert loaded["verdict"] == "refuted"
        assert loaded["ports"][0]["first_divergence"] == "logits"
        assert loaded["checkpoint"]["parameters"] == 5244
        assert loaded["inputs"]["lengths"] == [5]
        root = ET.parse(junit_out).getroot()
        assert root.get("failures") == "1"
        assert len(loaded["ports"][0]["checks"]) == int(root.get("tests", ""))
        assert sorted(p.name for p in junit_out.parent.iterdir()) == ["a.json", "a.xml"]

    def test_a_broken_port_has_a_valid_report_too(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "a.json"
        assert run("--json", out, port="raises")[0] == 2
        loaded = json.loads(out.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(json_report.schema()).validate(loaded)
        assert loaded["verdict"] == "unjudged"
        assert "no weights today" in loaded["ports"][0]["error"]
        assert {check["status"] for check in loaded["ports"][0]["checks"]} == {"not_examined"}

    def test_json_to_standard_output_stays_whole(self, run: Run) -> None:
        status, out, err = run("--json", "-", port="chatty")
        assert status == 0
        assert json.loads(out)["verdict"] == "verified"
        assert "the port speaks\n" in err
        assert "the port speaks from C\n" in err
        assert "verified: 1 port" in err

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--json", "missing/out.json"], "missing/out.json: cannot be written"),
            (["--junit", "."], "is a directory"),
            (["--json", "same", "--junit", "same"], "cannot share a file"),
            (["--junit", "-"], "--junit needs a file"),
        ],
    )
    def test_output_that_cannot_be_written_is_found_before_the_run(
        self,
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        says: str,
    ) -> None:
        def late(*_: object) -> None:
            raise AssertionError("the run has started")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("gpt_verify.judging.run.run_request", late)
        status, _, err = run(*words)
        assert status == 2
        assert says in complaint(err)
        assert list(tmp_path.iterdir()) == []

    def test_a_report_that_fails_late_spares_the_others(self, run: Run, tmp_path: Path) -> None:
        status, out, err = run("--json", "/dev/full", "--junit", tmp_path / "a.xml")
        assert status == 2
        assert "/dev/full: cannot be written" in complaint(err)
        assert "verified: 1 port" in out
        assert (tmp_path / "a.xml").exists()

    @pytest.mark.parametrize(
        "words",
        [
            ["lens", "--tokens", "1,2"],
            ["diagnose", "--port", f"{PORTS}:good", "--length", "3"],
            ["recipe", "--port", "huggingface-eager", "--dtype", "bfloat16", "--tokens", "1,2"],
            ["power", "--fault", "gelu-erf", "--quick", "--jobs", "1"],
            ["compare", "--port", "huggingface-eager", "--port", f"{PORTS}:good", "--length", "3"],
        ],
        ids=lambda words: words[0],
    )
    def test_no_verdict_of_any_command_without_the_report_that_was_asked_for(
        self, tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        name, *more = words
        assert main([name, "--checkpoint", str(tiny), *more, "--json", "/dev/full"]) == 2
        out, err = capsys.readouterr()
        assert "/dev/full: cannot be written" in complaint(err)
        assert out  # what was found out is said all the same

    @pytest.mark.parametrize("buffered", [True, False])
    def test_nobody_reads(self, wrong: list[str], buffered: bool) -> None:
        """The verdict stands where standard output is a pipe that was closed."""
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "gpt_verify", *wrong],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
            timeout=300,
        )
        os.close(writer)
        assert done.returncode == 1
        assert done.stderr == ""

    def test_a_full_disk_is_no_verdict(self, wrong: list[str]) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "gpt_verify", *wrong],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                timeout=300,
            )
        assert done.returncode == 2
        assert "No space left on device" in complaint(done.stderr)

    def test_a_terminal_without_the_signs_is_no_failure(self, wrong: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "gpt_verify", *wrong],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 1
        assert b"refuted" in done.stdout


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--length", "0"], "0 is less than 1"),
            (["--length", "x"], "'x' is not a whole number"),
            (["--length", "25"], "length 25"),
            (["--seed", "-1"], "-1 is less than 0"),
            (["--tokens", "1,2"], "not allowed with argument --length"),
            (["--dtype", "int8"], "invalid choice: 'int8'"),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
            (["--chec", "x"], "unrecognized arguments: --chec"),
        ],
    )
    def test_one_line_and_2(self, run: Run, words: list[str], says: str) -> None:
        status, out, err = run(*words)
        assert status == 2
        assert out == ""
        assert says in complaint(err)

    @pytest.mark.parametrize("words", [[], ["nonsense"], ["run", "--tokens", "1,,2"]], ids=str)
    def test_command_line_that_makes_no_sense(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert complaint(capsys.readouterr().err).startswith("gpt-verify")

    def test_token_ids(self, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["run", "--checkpoint", str(tiny), "--port", f"{PORTS}:good"]
        assert main([*words, "--tokens", "1, 2,96"]) == 0
        capsys.readouterr()
        assert main([*words, "--tokens", "1,97"]) == 2
        assert "97" in complaint(capsys.readouterr().err)

    @pytest.mark.parametrize("spec", ["nonsense", "huggingfac", "missing.py:port", "no.such:port"])
    def test_unknown_port(self, run: Run, spec: str) -> None:
        status, out, err = run("--port", spec, port=None)
        assert status == 2
        assert spec.split(":")[0] in complaint(err)
        assert "verified:" not in out
