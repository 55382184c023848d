"""A slip of the pen costs one line, before anything runs, and the line says what may be meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import PORTS, ROOT, Run, complaint
from hypothesis import given
from hypothesis import strategies as st

from gpt_verify.command.cli import main
from gpt_verify.errors import GptVerifyError
from gpt_verify.findings import Finding, Status
from gpt_verify.judging.waivers import waive
from gpt_verify.ports import named
from gpt_verify.ports.builtin import BUILTIN
from gpt_verify.text import nearest, nearest_path

pytest_plugins = ["pytester"]


@pytest.fixture
def early(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, whose run must not begin."""

    def late(*_: object) -> None:
        raise AssertionError("the run has started")

    monkeypatch.setattr("gpt_verify.judging.run.run_request", late)
    return run


def said(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a command that refuses."""
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    return complaint(err)


class TestWords:
    @pytest.mark.parametrize(
        ("words", "meant"),
        [
            (["rn"], "run"),
            (["cmpare"], "compare"),
            (["run", "--prt", "x"], "--port"),
            (["run", "--lenght=5"], "--length"),
            (["run", "--dtype", "flaot32"], "float32"),
            (["run", "--device", "cdua"], "cuda"),
            (["compare", "a.json", "--jsn", "x"], "--json"),
            (["synth", "--size", "124M", "--format", "opnai", "x"], "openai"),
            (["synth", "--size", "124", "x"], "124M"),
            (["synth", "--size", "openai-gtp", "x"], "openai-gpt"),
            (["power", "--fault", "gelu-er"], "gelu-erf"),
            (["power", "--family", "norms"], "norm"),
            (["claims", "tie-transpse"], "tie-transpose"),
            (["lens", "a", "--statistic", "probabilit"], "probability"),
            (["run", "--require", "causalty"], "causality"),
            (["run", "--port", "openai-ft"], "openai-tf"),
            (["lens", "a", "--port", "huggingfase"], "huggingface"),
            (["diagnose", "--port", "huggingfase"], "huggingface"),
        ],
    )
    def test_what_is_near_is_named(
        self, words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert f"; did you mean {meant}?" in said(capsys, words)

    @pytest.mark.parametrize("words", [["zzz"], ["run", "--zzz"], ["claims", "zzz"]])
    def test_what_is_near_nothing_is_not(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "did you mean" not in said(capsys, words)

    @given(st.text(), st.lists(st.text(), max_size=5))
    def test_any_word(self, word: str, known: list[str]) -> None:
        hint = nearest(word, known)
        assert hint == "" or (hint.isprintable() and hint.startswith("; did you mean "))

    def test_a_waived_law(self) -> None:
        found = [Finding("tying.value", Status.PASSED, "", "logits")]
        for slip, meant in (("tieing", "tying"), ("tying.vlaue", "tying.value")):
            assert waive(found, {slip: "why"})[2] == (
                f"the waiver of {slip} excuses nothing: no such law; did you mean {meant}?"
            )


class TestPorts:
    def test_every_built_in_port_by_a_slip(self) -> None:
        for name in ("huggingface", *BUILTIN):
            with pytest.raises(GptVerifyError, match=rf"did you mean {name[:4]}"):
                named.require_named(f"{name}x")

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            (
                "sample_prts.py:good",
                "sample_prts.py: no such file; did you mean {}/sample_ports.py?",
            ),
            ("process=./sample_prts.py x", "no such program"),
            ("process=no-such-program-at-all", "no-such-program-at-all: no such program"),
            ("process=", "names no program"),
            ("process='", "No closing quotation"),
            ("onnx=absent.onnx", "onnx=absent.onnx: no such file"),
            ("huggingface=./absent", "./absent: no such directory"),
            ("huggingfase", "did you mean huggingface?"),
            ("proces=x", "did you mean process?"),
            ("", "not FILE.py:factory"),
        ],
    )
    def test_is_refused_before_the_run(self, early: Run, spec: str, says: str) -> None:
        if spec.startswith("sample"):
            spec = str(PORTS.parent / spec)
        status, out, err = early("--port", spec)
        assert (status, out) == (2, "")
        assert says.format(PORTS.parent) in complaint(err)

    def test_a_function_of_the_file(self, run: Run) -> None:
        status, _, err = run(port="goood")
        assert status == 2
        assert "no function goood in" in complaint(err)
        assert complaint(err).endswith("; did you mean good?")

    def test_inputs_are_refused_before_the_default_ports_are_listed(self, early: Run) -> None:
        status, out, err = early("--length", "1000", port=None)
        assert (status, out) == (2, "")
        assert "length 1000: the model takes 1 … 24 tokens" in complaint(err)

    def test_in_pytest(
        self, pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        more = ("-p", "gpt_verify.plugin", f"--checkpoint={tiny}")
        result = pytester.runpytest_subprocess(*more, "--port=huggingfase")
        assert result.ret == pytest.ExitCode.INTERRUPTED
        assert "did you mean huggingface?" in result.stdout.str()


class TestCheckpoints:
    def test_a_directory_beside(self, early: Run, tiny: Path) -> None:
        status, out, err = early(checkpoint=tiny.with_name("chekpoint"))
        assert (status, out) == (2, "")
        assert f"chekpoint: no such directory; did you mean {tiny}?" in complaint(err)

    def test_the_directory_above(self, early: Run, tiny: Path) -> None:
        status, _, err = early(checkpoint=tiny.parent)
        assert status == 2
        assert complaint(err).endswith(f"; did you mean {tiny}?")

    def test_a_file_of_no_checkpoint(self, early: Run, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        status, _, err = early(checkpoint=tmp_path / "notes.txt")
        assert status == 2
        assert "notes.txt: is a file of no checkpoint that is read" in complaint(err)

    @pytest.mark.parametrize(
        ("name", "meant"), [("hparam.json", "hparams.json"), ("confg.json", "config.json")]
    )
    def test_a_file_of_the_format_by_a_slip(
        self, early: Run, tmp_path: Path, name: str, meant: str
    ) -> None:
        (tmp_path / name).write_text("{}")
        status, _, err = early(checkpoint=tmp_path)
        assert status == 2
        assert complaint(err).endswith(f"; it has {name}; did you mean {meant}?")

    def test_a_name_that_no_terminal_should_see(self, tmp_path: Path) -> None:
        (tmp_path / "mo\x1bdels").mkdir()
        assert nearest_path(tmp_path / "models").isprintable()
        shutil.rmtree(tmp_path)
        assert nearest_path(tmp_path / "models") == ""


class TestDevice:
    @pytest.fixture
    def without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(named, "_has_driver", lambda: False)
        monkeypatch.setattr(named, "_torch_has_cuda", lambda: False)

    @pytest.mark.usefixtures("without")
    def test_one_that_is_not_there_is_a_sentence(self, early: Run) -> None:
        for port in ("good", None):
            status, out, err = early("--device", "cuda", port=port)
            assert (status, out) == (2, "")
            assert "--device cuda: there is no CUDA device on this machine; " in complaint(err)

    @pytest.mark.usefixtures("without")
    def test_the_processor_is_always_there(self) -> None:
        named.require_all([f"{PORTS}:good"], "cpu")

    def test_a_driver_without_torchs_support(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(named, "_has_driver", lambda: True)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        status, _, err = run("--device", "cuda", "--port", "huggingface-eager", port=None)
        assert status == 2
        assert "finds no CUDA device" in complaint(err)
