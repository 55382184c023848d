"""No port can end the process that says the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, command, complaint

START = """
import atexit, ctypes, gc, os, signal, sys, threading, time
from concurrent.futures import Future
sys.path.insert(0, {tests!r})
from sample_ports import good, twice_too_large
"""
ENDS = "gpt-verify: a port ended the process, with exit status 0 and without a verdict"

#: Each ends the process before there is a verdict → what the one line says.
WITHOUT: dict[str, tuple[str, str]] = {
    "import": ("os._exit(0)", ENDS),
    "factory": ("def port(checkpoint): os._exit(0)", ENDS),
    "call": ("def port(checkpoint): return lambda tokens: os._exit(0)", ENDS),
    "thread": (
        "def port(checkpoint):\n"
        "    threading.Thread(target=os._exit, args=(0,)).start()\n"
        "    time.sleep(60)\n",
        ENDS,
    ),
    "close": (
        "from gpt_verify.port import Port\n"
        "class port(Port):\n"
        "    name = 'mine'\n"
        "    def __init__(self, checkpoint): self.logits = good(checkpoint)\n"
        "    def close(self): os._exit(0)\n",
        ENDS,
    ),
    "from C": ("def port(checkpoint): ctypes.CDLL(None)._exit(0)", ENDS),
    "another status": (
        "def port(checkpoint): os._exit(1)",
        ENDS.replace("status 0", "status 1"),
    ),
    "crash": ("def port(checkpoint): os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
    "killed": (
        "def port(checkpoint): os.kill(os.getpid(), signal.SIGKILL)",
        "died of SIGKILL (out",
    ),
    "closes everything": (
        "def port(checkpoint):\n    os.closerange(3, 256)\n    os._exit(0)\n",
        ENDS,
    ),
    "leaves a child that holds the pipe": (
        "def port(checkpoint):\n"
        "    if os.fork() == 0:\n"
        "        os.close(0); os.close(1); os.close(2); time.sleep(20)\n"
        "    os._exit(0)\n",
        ENDS,
    ),
}

#: Each is judged; what it does after that changes nothing.
WITH: dict[str, tuple[str, int]] = {
    "right": ("port = good", 0),
    "wrong": ("port = twice_too_large", 1),
    "exit handler of a wrong one": (
        "def port(checkpoint):\n"
        "    atexit.register(os._exit, 0)\n"
        "    return twice_too_large(checkpoint)\n",
        1,
    ),
    "exit handler that fails": (
        "def port(checkpoint):\n    atexit.register(os._exit, 1)\n    return good(checkpoint)\n",
        0,
    ),
    "a copy of the process": (
        "def port(checkpoint):\n"
        "    right = good(checkpoint)\n"
        # The copy has no threads: what is hashed beside it would never be done.
        "    while not all(f.done() for f in gc.get_objects() if type(f) is Future):\n"
        "        time.sleep(0.01)\n"
        "    if os.fork() == 0:\n"
        "        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "        return right\n"
        "    os.wait()\n"
        "    return twice_too_large(checkpoint)\n",
        1,
    ),
    "a thread that never ends": (
        "def port(checkpoint):\n"
        "    threading.Thread(target=time.sleep, args=(3000,)).start()\n"
        "    return good(checkpoint)\n",
        0,
    ),
}


def written(directory: Path, source: str) -> str:
    (directory / "mine.py").write_text(START.format(tests=str(ROOT / "tests")) + source + "\n")
    return f"{directory / 'mine.py'}:port"


def judged(tiny: Path, port: str, *words: object) -> subprocess.CompletedProcess[str]:
    return command("run", "--checkpoint", tiny, "--length", 3, "--port", port, *words)


@pytest.mark.parametrize("way", WITHOUT)
def test_an_end_without_a_verdict_is_status_2_and_one_line(
    tiny: Path, tmp_path: Path, way: str
) -> None:
    source, says = WITHOUT[way]
    done = judged(tiny, written(tmp_path, source), "--json", tmp_path / "out.json")
    assert done.returncode == 2
    assert says in complaint(done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("way", WITH)
def test_a_verdict_stands(tiny: Path, tmp_path: Path, way: str) -> None:
    source, status = WITH[way]
    start = time.monotonic()
    done = judged(tiny, written(tmp_path, source), "--json", tmp_path / "out.json", "--quiet")
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("verified: " if status == 0 else "refuted: ")
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] in done.stdout
    assert time.monotonic() - start < 1000  # and not 3,000 s


@pytest.mark.parametrize("name", ["lens", "diagnose", "recipe"])
def test_so_are_the_other_commands_that_run_ports(tiny: Path, tmp_path: Path, name: str) -> None:
    words = ["--tokens", "1,2"] if name == "lens" else ["--length", "3"]
    port = written(tmp_path, WITHOUT["factory"][0])
    done = command(name, "--checkpoint", tiny, "--port", port, *words)
    assert done.returncode == 2
    assert complaint(done.stderr) == ENDS


def test_a_port_may_run_the_command_itself(tiny: Path, tmp_path: Path) -> None:
    """What it starts is no child of ours."""
    inner = "[sys.executable, '-m', 'gpt_verify', 'run', '--port', 'no-such-port']"
    source = (
        "import subprocess\n"
        "def port(checkpoint):\n"
        f"    done = subprocess.run({inner}, capture_output=True, text=True)\n"
        "    raise ValueError(f'{done.returncode}: {done.stderr}')\n"
    )
    done = judged(tiny, written(tmp_path, source))
    assert done.returncode == 2
    assert "ValueError: 2: gpt-verify: --port no-such-port: not FILE.py" in complaint(done.stderr)


def _started(tiny: Path, tmp_path: Path, waits: str) -> subprocess.Popen[str]:
    """The command, and a port that has written its process id and waits."""
    source = (
        "def port(checkpoint):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    print('ready', flush=True)\n"
        f"    {waits}\n"
    )
    words = ["run", "--checkpoint", str(tiny), "--port", written(tmp_path, source)]
    child = subprocess.Popen(
        [sys.executable, "-m", "gpt_verify", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _gone(pid: int) -> bool:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


SLEEP = "time.sleep(600)"


@pytest.mark.parametrize(
    ("number", "waits"),
    [
        (signal.SIGTERM, SLEEP),
        (signal.SIGHUP, SLEEP),
        (signal.SIGKILL, SLEEP),
        # As one that is inside of a library.
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP),
    ],
)
def test_the_port_ends_with_the_command(
    tiny: Path, tmp_path: Path, number: int, waits: str
) -> None:
    with _started(tiny, tmp_path, waits) as child:
        child.send_signal(number)
        child.wait(60)
        assert child.returncode == -number
        assert _gone(int((tmp_path / "pid").read_text()))


def test_help_and_bad_words_need_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt_verify.command import cli
    from gpt_verify.process import supervisor

    monkeypatch.setattr(supervisor, "supervise", lambda: pytest.fail("started a process"))
    monkeypatch.setattr(cli, "arrive", lambda: None)
    monkeypatch.setattr(cli, "leave", sys.exit)
    for words, status in (
        (["run", "--help"], 0),
        (["run", "--no-such-option"], 2),
        (["--version"], 0),
        (["ports"], 0),
    ):
        monkeypatch.setattr(sys, "argv", ["gpt-verify", *words])
        with pytest.raises(SystemExit) as left:
            cli.entry()
        assert left.value.code == status


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans on")
@pytest.mark.parametrize("detached", [False, True])
def test_what_a_port_has_started_and_left_ends_with_the_command(
    tiny: Path, tmp_path: Path, detached: bool
) -> None:
    """A server of its own, for instance; an orphan in a session of its own, too."""
    note = tmp_path / "server"
    sleeping = (
        "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    )
    start = f"[sys.executable, '-c', {sleeping!r}, {str(note)!r}], start_new_session={detached}"
    if detached:
        between = f"import subprocess, sys; subprocess.Popen({start})"
        start = f"[sys.executable, '-c', {between!r}]"
    source = (
        "import subprocess\n"
        "def port(checkpoint):\n"
        f"    subprocess.Popen({start})\n"
        f"    while not (os.path.exists({str(note)!r}) and open({str(note)!r}).read()):\n"
        "        time.sleep(0.01)\n"
        "    return lambda tokens: None\n"
    )
    done = judged(tiny, written(tmp_path, source))
    assert done.returncode == 2
    assert _gone(int(note.read_text()))
