"""What no port should do, no file should be and no stream should have: one line, and status 2."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command import PORTS, ROOT, Run, command, complaint

HOSTILE = PORTS.with_name("hostile_ports.py")


@pytest.mark.parametrize(
    ("port", "says"),
    [
        ("generator_exit", "GeneratorExit"),
        ("cancelled", "CancelledError: xxx"),
        ("mute", "Mute (whose message cannot be made: RuntimeError)"),
        ("endless", "ValueError: xxx"),
        ("factory_cancelled", "the factory raised CancelledError"),
        ("factory_mute", "the factory raised Mute (whose message"),
    ],
)
def test_whatever_a_port_raises_is_one_short_line(run: Run, port: str, says: str) -> None:
    status, _, err = run("--port", f"{HOSTILE}:{port}", "--quiet", port=None)
    assert status == 2
    assert says in complaint(err)
    assert "bug" not in err
    assert len(err) < 1500


def test_what_is_raised_in_a_law_is_a_finding(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ("--port", f"{HOSTILE}:cancelled_beyond", "--json", out)
    status, _, err = run(*words, port=None)
    assert (status, err) == (1, "")
    (report,) = json.loads(out.read_text())["ports"]
    failed = [c for c in report["checks"] if c["status"] == "failed"]
    assert [c["id"] for c in failed] == ["positions.beyond"]
    assert "the port raised CancelledError" in failed[0]["message"]


def test_warnings_do_not_stand_ahead_of_the_line(tiny: Path) -> None:
    words = ("run", "--checkpoint", tiny, "--length", "5", "--port", f"{HOSTILE}:warns", "--quiet")
    done = command(*words)
    assert done.returncode == 2
    assert "the factory raised ValueError: broken" in complaint(done.stderr)
    assert "look here" in command(*words, "--debug").stderr


def test_a_thread_that_is_left_running_keeps_nobody(tiny: Path) -> None:
    port = f"{HOSTILE}:leaves_a_thread"
    words = ("run", "--checkpoint", tiny, "--length", "5", "--port", port, "--quiet")
    done = command(*words)  # within 300 s; the thread sleeps for 600
    assert (done.returncode, done.stderr) == (0, "")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


OPENAI = ("checkpoint", "encoder.json", "hparams.json", "vocab.bpe", "model.ckpt.index")
OPENAI += ("model.ckpt.data-00000-of-00001",)
HUGGINGFACE = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


@pytest.mark.parametrize("kind", [fifo, device, listening])
@pytest.mark.parametrize(
    ("form", "name"),
    [("openai", name) for name in OPENAI] + [("huggingface", name) for name in HUGGINGFACE],
)
def test_only_files_are_opened(run: Run, tmp_path: Path, form: str, name: str, kind) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "verify/data/default" / form, directory)
    (directory / name).unlink()
    kind(directory / name)
    status, _, err = run("--quiet", checkpoint=directory)
    assert status == 2
    line = complaint(err)
    # A link out of the directory is refused for that.
    outside = "is a link to /dev/zero, outside its directory"
    assert "not a regular file" in line or (kind is device and outside in line)
    assert str(directory) in line


@pytest.mark.parametrize(
    ("form", "name"),
    [("openai", name) for name in (*OPENAI, "model.ckpt.meta")]
    + [("huggingface", name) for name in HUGGINGFACE],
)
def test_a_file_without_end_is_not_read(run: Run, tmp_path: Path, form: str, name: str) -> None:
    """A terabyte of which nothing is on the disk: its digest alone would take an hour."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "verify/data/default" / form, directory)
    with (directory / name).open("wb") as file:
        file.truncate(1 << 40)
    status, _, err = run("--quiet", checkpoint=directory)
    assert status == 2
    assert str(directory) in complaint(err)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_only_files_are_opened_of_a_port(run: Run, tiny: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "port"
    shutil.copytree(tiny, directory)
    (directory / name).unlink(missing_ok=True)
    fifo(directory / name)
    status, _, err = run("--port", f"huggingface-sdpa={directory}", "--quiet", port=None)
    assert status == 2
    assert f"{directory / name}: not a regular file" in complaint(err)


def test_a_graph_is_a_file(tmp_path: Path) -> None:
    from gpt_verify.errors import CheckpointError
    from gpt_verify.ports.openai_tf import _meta_graph

    fifo(tmp_path / "model.ckpt.meta")
    with pytest.raises(CheckpointError, match="not a regular file"):
        _meta_graph(None, tmp_path / "model.ckpt", None)  # type: ignore[arg-type]  # not reached


@pytest.mark.parametrize(
    ("redirection", "port", "status"),
    [
        (">&-", "good", 2),
        (">&- 2>&-", "twice_too_large", 2),
        (">/dev/full", "twice_too_large", 2),
        ("2>&-", "raises", 2),
        ("2>&-", "twice_too_large", 1),
        ("<&-", "good", 0),
    ],
)
def test_streams_that_take_nothing(tiny: Path, redirection: str, port: str, status: int) -> None:
    """The verdict stands where it could be said, and is never 1 by accident."""
    words = ["run", "--checkpoint", str(tiny), "--length", "5", "--port", f"{PORTS}:{port}"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m gpt_verify "$@" {redirection}', sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) == (redirection in (">&-", ">/dev/full"))


def test_a_full_standard_error(tiny: Path) -> None:
    words = ["run", "--checkpoint", str(tiny), "--port", f"{PORTS}:raises"]
    for more in ([], ["--nonsense"], ["--debug"]):
        done = subprocess.run(
            ["sh", "-c", 'exec "$0" -m gpt_verify "$@" 2>/dev/full', sys.executable, *words, *more],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
        assert done.returncode == 2


@pytest.mark.parametrize("kind", [["gpt2"], {"gpt2": 1}, 7, None, True])
def test_a_model_type_that_is_no_string(run: Run, damaged: Path, kind: object) -> None:
    path = damaged / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    status, _, err = run(checkpoint=damaged)
    assert status == 2
    assert f"{path}: model_type = " in complaint(err) and "is no name" in complaint(err)


@pytest.mark.parametrize("kind", ["nested", "sparse", "quantized", "complex", "list", "number"])
def test_a_stored_value_that_is_no_plain_tensor(run: Run, damaged: Path, kind: str) -> None:
    """And nothing of what torch warns of when it loads one."""
    import warnings

    import torch
    from safetensors.torch import load_file

    state = load_file(damaged / "model.safetensors")
    (damaged / "model.safetensors").unlink()
    name = "transformer.wte.weight"
    plain = state[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state[name] = {
            "nested": lambda: torch.nested.nested_tensor([plain[:1], plain]),
            "sparse": plain.to_sparse_csr,
            "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            "complex": lambda: plain.to(torch.complex64),
            "list": lambda: [plain],
            "number": lambda: 1.0,
        }[kind]()
        torch.save(state, damaged / "pytorch_model.bin")
    status, _, err = run(checkpoint=damaged)
    assert status == 2
    assert f"{damaged / 'pytorch_model.bin'}: " in complaint(err)
    assert "bug" not in err


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    from gpt_verify.errors import CheckpointError
    from gpt_verify.judging.run import sha256

    link = tmp_path / "weights"
    link.symlink_to("/proc/self/mem")  # a regular file, whose first page is an error of reading
    with pytest.raises(CheckpointError, match=f"{link}: cannot be read: Input/output error"):
        sha256([link])


def test_no_report_replaces_an_input(run: Run, damaged: Path, tmp_path: Path) -> None:
    port = tmp_path / "port.py"
    shutil.copy(PORTS, port)
    hard = tmp_path / "hard"
    os.link(damaged / "config.json", hard)
    (tmp_path / "soft").symlink_to(damaged / "model.safetensors")
    before = {p: p.read_bytes() for p in (*damaged.iterdir(), port)}
    for out in (damaged / "config.json", hard, tmp_path / "soft", port):
        words = ("--port", f"{port}:good", "--json", out)
        status, printed, err = run(*words, port=None, checkpoint=damaged)
        assert (status, printed) == (2, "")
        assert f"{out}: --json would replace an input of the run" in complaint(err)
    assert {p: p.read_bytes() for p in (*damaged.iterdir(), port)} == before
    # What else lies there may be written, and written anew.
    for _ in range(2):
        words = ("--port", f"{port}:good", "--json", damaged / "report.json", "--quiet")
        assert run(*words, port=None, checkpoint=damaged)[0] == 0


def test_one_file_by_two_names(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "old").touch()
    os.link(tmp_path / "old", tmp_path / "hard")
    pairs = [("x", "./x"), ("x", tmp_path / "x"), ("link", "x"), ("old", "hard")]
    for one, other in pairs:
        status, _, err = run("--json", one, "--html", other)
        assert status == 2
        assert "--json and --html cannot share a file" in complaint(err)
    assert run("--json", "/dev/null", "--html", "/dev/null", "--quiet")[0] == 0
