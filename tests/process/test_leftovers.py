"""Whatever ends a run, nothing of it is left: no process, no directory. Each program here tries to
stay in another way."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from command import ROOT
from models import checkpoint

from gpt_verify.errors import PortError
from gpt_verify.ports.remote.process import ProcessPort
from gpt_verify.process.children import Child, output_of
from gpt_verify.process.scratch import Scratch, scratch, sweep

TOKENS = np.array([[5, 9, 2], [1, 1, 7]])

#: A process that writes its id to a file, beside the program that starts it.
STAYS = "import os, sys, time\nopen(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\ntime.sleep(600)"


def starting(how: str, ids: Path) -> str:
    """A command that starts one that stays, and does ``how`` then."""
    code = (
        "import os, subprocess, sys, time\n"
        f"words = [sys.executable, '-S', '-c', {STAYS!r}, {os.fspath(ids)!r}]\n"
        f"wait = lambda: [time.sleep(0.01) for _ in iter(lambda: os.path.exists({os.fspath(ids)!r})"
        ", True)]\n"
        f"{how}\n"
    )
    return f"{shlex.quote(sys.executable)} -S -c {shlex.quote(code)}"


#: The program → what it does: it ends or stays; what it has started shares its group or has left.
WAYS = {
    "stays": "subprocess.Popen(words); time.sleep(600)",
    "has ended": "subprocess.Popen(words); wait(); sys.exit(0)",
    "started one in another session": "subprocess.Popen(words, start_new_session=True); "
    "time.sleep(600)",
    "ended before one in another session": "subprocess.Popen(words, start_new_session=True); "
    "wait(); sys.exit(0)",
    "ignores signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "signal.signal(signal.SIGHUP, signal.SIG_IGN); subprocess.Popen(words); time.sleep(600)",
}


def running(ids: Path) -> list[int]:
    """Of the processes that wrote their ids, those that run (a zombie does not)."""
    return [pid for pid in map(int, ids.read_text().split()) if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(condition, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize("how", WAYS)
def test_the_time_ends_all_of_it(how: str, tmp_path: Path) -> None:
    """The output is held open by what the program started, and so has no end."""
    ids = tmp_path / "ids"
    port = ProcessPort(starting(WAYS[how], ids), checkpoint(), "child", timeout=5.0)
    start = time.monotonic()
    with pytest.raises(PortError, match="gave no answer within 5 s"):
        port.logits(TOKENS)
    assert time.monotonic() - start < 60
    assert soon(ids.exists)
    assert not running(ids)
    port.close()


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("ended before one in another session", signal.SIGTERM),
        ("stays", signal.SIGHUP),
        ("ended before one in another session", signal.SIGKILL),
    ],
)
def test_the_end_of_the_command_ends_all_of_it(
    how: str, number: signal.Signals, tmp_path: Path, tiny: Path
) -> None:
    """And takes the copy of the weights along: at once, or when the next run begins."""
    ids, temporary = tmp_path / "ids", tmp_path / "tmp"
    temporary.mkdir()
    spec = "process=" + starting(WAYS[how], ids) + " {huggingface}"
    words = ["run", "--checkpoint", str(tiny), "--length", "5", "--port", spec]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "gpt_verify", *words], env=environment) as command:
        assert soon(lambda: ids.exists() and ids.read_text().endswith("\n"), 120)
        assert running(ids)
        assert list(temporary.glob("gpt-verify-*/content/model.safetensors"))
        command.send_signal(number)
        assert command.wait(60) == -number
    assert soon(lambda: not running(ids))
    if number == signal.SIGKILL:
        code = "from gpt_verify.process.scratch import sweep; sweep()"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(temporary.iterdir()) == []


def test_the_end_of_the_port_ends_all_of_it(tmp_path: Path, tiny: Path) -> None:
    """That of the process that runs it, which the command outlives."""
    ids, temporary, port = tmp_path / "ids", tmp_path / "tmp", tmp_path / "port.py"
    temporary.mkdir()
    port.write_text(
        "import os, signal, time\n"
        "from gpt_verify.process.children import Child\n"
        "from gpt_verify.process.scratch import Scratch\n"
        "def port(checkpoint):\n"
        "    made = Scratch()\n"
        f"    child = Child({shlex.split(starting(WAYS['stays'], ids))!r})\n"
        f"    while not os.path.exists({os.fspath(ids)!r}): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    words = ["run", "--checkpoint", str(tiny), "--port", f"{port}:port"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_verify", *words],
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert soon(lambda: not running(ids))
    assert list(temporary.iterdir()) == []


def test_who_kills_the_keeper_kills_the_program() -> None:
    child = Child([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    keeper = int(Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(keeper, signal.SIGKILL)
    assert soon(lambda: not runs(child.pid))
    assert child.wait(1) is None
    child.end()


def test_a_program_outlives_the_thread_that_started_it() -> None:
    started: list[Child] = []
    thread = threading.Thread(target=lambda: started.append(Child(["cat"])))
    thread.start()
    thread.join()
    (child,) = started
    child.stdin.write(b"still here\n")
    assert child.stdout.read(11) == b"still here\n"
    child.end()


def test_a_fork_of_ours_ends_nothing() -> None:
    """It has copies of everything, and its end runs what is to be run at the end."""
    child = Child(["cat"])
    with scratch() as directory:
        pid = os.fork()
        if pid == 0:
            import atexit

            atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.path.isdir(directory)
        child.stdin.write(b"x")
        assert child.stdout.read(1) == b"x"
    child.end()


@pytest.mark.parametrize(
    ("body", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -35 $$", -35)]
)
def test_how_it_ended(body: str, status: int) -> None:
    assert output_of(["sh", "-c", f"echo out; echo err >&2; {body}"], 60) == (
        status,
        "out\n",
        "err",
    )


def test_no_such_program() -> None:
    for words, number in ((["/nowhere"], 2), (["/"], 13), (["a\0b"], 22)):
        with pytest.raises((OSError, ValueError)) as error:
            Child(words)
        assert isinstance(error.value, ValueError) or error.value.errno == number


def test_endless_standard_error_fills_no_disk() -> None:
    code = "import os\nfor _ in range(300): os.write(2, b'x' * (1 << 20))\nos.write(2, b'\\nlast')"
    child = Child([sys.executable, "-S", "-c", code + "\nimport time; time.sleep(600)"])
    stored = lambda: os.fstat(child.stderr.fileno()).st_blocks * 512  # noqa: E731
    assert soon(lambda: child.last_words(100) == "last" and stored() < 1 << 26)
    child.end()


class TestScratch:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def test_it_is_gone_afterwards(self, tmp_path: Path) -> None:
        with scratch() as directory:
            Path(directory, "x").write_text("x")
            assert os.listdir(directory) == ["x"]
        made = Scratch()
        del made
        assert list(tmp_path.iterdir()) == []

    def test_what_is_in_use_stays(self, tmp_path: Path) -> None:
        code = "import sys, time; from gpt_verify.process.scratch import Scratch; s = Scratch()\n"
        code += "(s.path / 'x').touch(); print(s.path, flush=True); time.sleep(600)"
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        with (
            scratch() as ours,
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
            ) as owner,
        ):
            assert owner.stdout is not None
            theirs = Path(owner.stdout.readline().strip())
            sweep()
            assert (theirs / "x").exists()
            owner.kill()
            owner.wait()
            assert (theirs / "x").exists()
            sweep()
            assert not theirs.parent.exists()
            assert os.path.isdir(ours)

    def test_what_is_not_ours_stays(self, tmp_path: Path) -> None:
        (tmp_path / "gpt-verify-file").touch()
        (tmp_path / "gpt-verify-other").mkdir()
        (tmp_path / "gpt-verify-other" / "x").touch()
        (tmp_path / "gpt-verify-pipe").mkdir()
        os.mkfifo(tmp_path / "gpt-verify-pipe" / "owner.lock")
        target = tmp_path / "target"
        target.mkdir()
        (target / "owner.lock").touch()
        (tmp_path / "gpt-verify-link").symlink_to(target)
        (tmp_path / "gpt-verify-linked").mkdir()
        (tmp_path / "gpt-verify-linked" / "owner.lock").symlink_to(target / "owner.lock")
        before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
        sweep()
        assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} == before
