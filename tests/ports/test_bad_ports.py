"""Ports that cannot be built, break in use or return nonsense: one line, and the right status.

Status 2 where nothing could be judged; status 1 where the port ran and what it returned is wrong.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from command import SIZE, Run, command, complaint
from file_layouts import POINTER
from models import TESTS, checkpoint, failed, failures, finding, judged
from safetensors.torch import load_file, save_file

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.findings import Status, Verdict
from gpt_verify.inputs import seeded

BROKEN = TESTS / "broken_ports.py"
SOURCE = checkpoint()


class TestWrongOutput:
    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            ("nan", "100] = nan, should be "),
            ("infinite", "100] = inf, should be "),
            ("all_nan", "= nan, should be "),
            ("zeros", "= 0, should be "),
            ("probabilities", "RMS error "),
            ("rows_reversed", "RMS error "),
            ("integers", "dtype int64, should be a floating-point type"),
            ("complex_numbers", "dtype complex64, should be a floating-point type"),
            ("wrong_vocabulary", "shape [1, 19, 100], should be [1, 19, 101]"),
            ("transposed", "shape [1, 101, 19], should be [1, 19, 101]"),
            ("wrong_batch", "shape [2, 19, 101], should be [1, 19, 101]"),
            ("no_batch", "shape [19, 101], should be [1, 19, 101]"),
            ("a_number", "shape [], should be [1, 19, 101]"),
            ("returns_text", "should be"),
        ],
    )
    def test_refuted(self, factory: str, says: str) -> None:
        report = judged(f"{BROKEN}:{factory}", SOURCE)
        assert report.error is None
        assert report.verdict is Verdict.REFUTED
        assert report.first_divergence == "logits"
        laws = {f.id for f in failures(report)}
        assert "logits" in laws
        # Logits of a wrong shape, or of NaN, agree with nothing, not with themselves either.
        agree = {"batch", "batch.sizes", "causality.bits", "lengths", "calls"}
        agree |= {"history", "history.prompts"}
        assert laws <= {"logits", "positions.limit", *agree}
        assert says in finding(report, "logits", "logits").message

    @pytest.mark.parametrize(
        "factory", ["correct", "as_list", "as_torch", "WritesTokens", "last_position_only"]
    )
    def test_right_numbers_in_any_wrapping_are_verified(self, factory: str) -> None:
        report = judged(f"{BROKEN}:{factory}", SOURCE)
        assert report.verdict is Verdict.VERIFIED
        assert failures(report) == []


class TestBreaks:
    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            ("raises", "the factory raised FileNotFoundError: weights.bin"),
            ("none", "the factory returned NoneType; it should return"),
            ("text", "the factory returned str; it should return"),
            ("a_class", "TypeError"),
            ("no_arguments", "the factory raised TypeError"),
            ("two_arguments", "missing 1 required positional argument: 'more'"),
            ("not_a_function", "no function not_a_function in"),
            ("no_such_name", "no function no_such_name in"),
            ("raises_midway", "RuntimeError: the server"),
            ("returns_none", "returned NoneType, not an array"),
            ("returns_ragged", "returned list, not an array"),
        ],
    )
    def test_unjudged_in_one_line(self, factory: str, says: str) -> None:
        report = judged(f"{BROKEN}:{factory}", SOURCE)
        assert report.verdict is Verdict.UNJUDGED
        assert report.error is not None
        assert says in report.error
        assert factory in report.error
        assert "\n" not in report.error
        assert report.exception is not None
        assert {f.status for f in report.findings} == {Status.NOT_EXAMINED}

    @pytest.mark.parametrize("factory", ["Empty", "BreaksInside", "WrongShape"])
    def test_a_module_without_the_weights_is_refuted_by_that(self, factory: str) -> None:
        report = judged(f"{BROKEN}:{factory}", SOURCE)
        assert report.verdict is Verdict.REFUTED
        assert "wpe is nowhere in the port" in finding(report, "weights.values", "embed").message
        assert (report.error is None) == (factory == "WrongShape")


class TestFactoryFiles:
    """The command: one line on standard error, status 2, and the traceback only on request."""

    def check(self, run: Run, spec: str, says: str) -> None:
        status, out, err = run("--port", spec, port=None)
        assert status == 2
        assert says in complaint(err)
        assert "verified:" not in out
        status, _, err = run("--port", spec, "--debug", port=None)
        assert status == 2
        assert "Traceback" in err

    def test_no_such_file(self, run: Run, tmp_path: Path) -> None:
        self.check(run, f"{tmp_path}/absent.py:factory", "no such file")

    def test_no_such_module(self, run: Run) -> None:
        self.check(run, "no_such_package.at_all:factory", "ModuleNotFoundError")

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("def factory(checkpoint:\n", "SyntaxError"),
            ("import no_such_module\n", "No module named 'no_such_module'"),
            ("raise OSError('disk on fire')\n", "OSError: disk on fire"),
            ("def other(checkpoint): ...\n", "no function factory in"),
            ("", "no function factory in"),
        ],
        ids=["syntax", "import", "raises", "another_name", "empty"],
    )
    def test_bad_file(self, run: Run, tmp_path: Path, source: str, says: str) -> None:
        (tmp_path / "mine.py").write_text(source)
        self.check(run, f"{tmp_path}/mine.py:factory", says)

    def test_no_such_built_in(self, run: Run) -> None:
        self.check(run, "hugingface", "hugingface: not FILE.py:factory")

    @pytest.mark.parametrize(
        ("factory", "expected"),
        [("raises", 2), ("raises_midway", 2), ("returns_none", 2), ("nan", 1), ("integers", 1)],
    )
    def test_status(self, run: Run, factory: str, expected: int) -> None:
        lengths = [word for n in (1, 2, 3, 4) for word in ("--length", n)]
        status, out, err = run(*lengths, "--port", f"{BROKEN}:{factory}", port=None)
        assert status == expected
        assert "Traceback" not in out + err


@pytest.fixture
def other(tiny: Path, tmp_path: Path) -> Path:
    """A Hugging Face directory to alter, which a port loads by itself."""
    return Path(shutil.copytree(tiny, tmp_path / "other"))


def alter(directory: Path, name: str, value: torch.Tensor | None) -> None:
    """Write one tensor anew, or leave it out."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    (key,) = [k for k in tensors if k.endswith(name)]
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    save_file(tensors, path, metadata={"format": "pt"})


class TestHuggingFaceDirectory:
    """``huggingface=DIR``: two sides loaded independently, and compared."""

    def judge(self, run: Run, directory: Path) -> tuple[int, str, str]:
        return run("--port", f"huggingface-sdpa={directory}", port=None)

    def test_equal_is_verified(self, run: Run, other: Path) -> None:
        status, out, err = self.judge(run, other)
        assert (status, err) == (0, "")
        assert str(other) in out

    @pytest.mark.parametrize(
        ("name", "site"),
        [
            ("h.1.mlp.c_fc.weight", "h.1.mlp.pre"),
            ("h.0.ln_2.bias", "h.0.ln_2"),
            ("wpe.weight", "embed"),
        ],
    )
    def test_a_weight_that_differs(
        self, run: Run, tiny: Path, other: Path, name: str, site: str
    ) -> None:
        tensors = load_file(other / "model.safetensors")
        (key,) = [k for k in tensors if k.endswith(name)]
        changed = tensors[key].clone()
        changed.view(-1)[3] += 0.5
        alter(other, name, changed)
        status, out, _ = self.judge(run, other)
        assert status == 1
        assert f"refuted at {site}" in out
        source = open_checkpoint(tiny)
        report = judged(f"huggingface-sdpa={other}", source, [seeded(source.config, 3, 0)])
        assert failed(report, "weights.values") == {site}
        assert report.weights_from == str(other)

    def test_a_weight_that_is_missing(self, run: Run, other: Path) -> None:
        alter(other, "h.1.mlp.c_fc.weight", None)
        status, _, err = self.judge(run, other)
        assert status == 2
        assert "missing keys" in complaint(err)
        assert "h.1.mlp.c_fc.weight" in err

    def test_a_weight_of_another_shape(self, run: Run, other: Path) -> None:
        """transformers points to a table that it has printed, where nobody can see it."""
        alter(other, "ln_f.weight", torch.ones(7))
        status, out, err = self.judge(run, other)
        assert status == 2
        width = json.loads((other / "config.json").read_text())["n_embd"]
        said = complaint(err)
        assert said == (
            f"gpt-verify: huggingface={other}: mismatched keys: transformer.ln_f.weight is [7] in "
            f"the file, and config.json makes it [{width}]"
        )
        assert "report above" not in out + err
        assert "above report" not in out + err

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
    def test_a_git_lfs_pointer(self, run: Run, other: Path, name: str) -> None:
        (other / name).write_text(POINTER)
        status, _, err = self.judge(run, other)
        assert status == 2
        assert f"{other}/{name}: a Git LFS pointer, which stands for a file of" in complaint(err)

    def test_a_pickle_that_is_more_than_tensors(self, run: Run, other: Path) -> None:
        """torch advises to load it all the same; nobody is told so."""
        (other / "model.safetensors").unlink()
        torch.save({"transformer.wte.weight": Fraction(1, 2)}, other / "pytorch_model.bin")
        status, out, err = self.judge(run, other)
        assert status == 2
        assert complaint(err)
        assert "weights_only" not in out + err

    def test_other_sizes(self, run: Run, tmp_path: Path) -> None:
        directory = tmp_path / "larger"
        sizes = SIZE.split(",")
        sizes[-1] = "3"
        size = ",".join(sizes)
        assert main(["synth", "--size", size, "--format", "huggingface", str(directory)]) == 0
        status, _, err = self.judge(run, directory)
        assert status == 2
        assert "n_layer is 3, the checkpoint's is 2" in complaint(err)

    def test_other_constants_are_refuted_by_the_numbers(self, run: Run, other: Path) -> None:
        """The port's own configuration counts: here another activation."""
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "activation_function": "gelu"}))
        status, out, _ = self.judge(run, other)
        assert status == 1
        assert "refuted at h.0.mlp.act" in out

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("./no/such/directory", "no such directory"),
            ("openai-community/gpt2", "cannot be loaded from the hub"),
        ],
    )
    def test_cannot_be_loaded(
        self, tiny: Path, source: str, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a process of its own, because the hub's settings are read when it is imported."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        port = f"huggingface-sdpa={source}"
        done = command("run", "--checkpoint", tiny, "--length", 5, "--port", port)
        assert done.returncode == 2
        assert says in complaint(done.stderr)
        assert source in done.stderr

    def test_damaged(self, run: Run, other: Path) -> None:
        path = other / "model.safetensors"
        path.write_bytes(path.read_bytes()[:999])
        status, _, err = self.judge(run, other)
        assert status == 2
        assert "header" in complaint(err)
        assert str(other) in err
