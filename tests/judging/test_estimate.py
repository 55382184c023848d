"""What somebody who waits at a terminal is told: how long it will take, and the first failure."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from command import PORTS, ROOT

from gpt_verify.checkpoint.synthetic import resolve_size
from gpt_verify.judging.estimate import about, multiplications, plan_of, seconds
from gpt_verify.judging.options import Options
from gpt_verify.judging.selection import request
from gpt_verify.reference.weights import parameter_count

SIZES = json.loads((ROOT / "docs" / "results" / "sizes.json").read_text(encoding="utf-8"))


def test_it_grows_as_the_measured_times_do() -> None:
    """Of the four released sizes, up to one factor: that of the processor."""
    factors = []
    for name, run in SIZES["runs"].items():
        parameters = parameter_count(resolve_size(name.split(" ")[0]))
        factors.append(run["figures"]["cpu_s"] / multiplications(parameters, SIZES["length"]))
    assert len(factors) == 8
    assert max(factors) / min(factors) < 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "a few seconds"),
        (44, "about 40 s"),
        (89.9, "about 90 s"),
        (90, "about 2 min"),
        (1500, "about 25 min"),
        (9000, "about 2 h"),
    ],
)
def test_it_is_said_no_more_exactly_than_it_is_known(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_more_ports_take_longer_and_more_processes_shorter(tiny: Path) -> None:
    one, two = (request(tiny, ["huggingface-eager"] * n, Options(lengths=(5,))) for n in (1, 2))
    assert seconds(two, 1, 1e9) == 2 * seconds(one, 1, 1e9)
    assert seconds(two, 1, 1e9) > seconds(two, 2, 1e9) > seconds(one, 2, 1e9)
    assert plan_of(two, 2)[0].startswith("2 ports on 1 input, 5 tokens in 2 processes: ")


def test_the_plan_and_the_first_failure_are_shown_while_it_runs(tiny: Path) -> None:
    """Before the verdict; and nothing of it where nobody waits at a terminal."""
    words = ["run", "--checkpoint", str(tiny), "--length", "5", "--jobs", "1"]
    words += ["--port", f"{PORTS}:twice_too_large"]
    shown = _at_a_terminal(words)
    plan, first, verdict = (
        shown.find(text)
        for text in (
            "1 port on 1 input, 5 tokens: ",
            "logits fails at logits: ",
            "refuted: 1 check",
        )
    )
    assert -1 < plan < first < verdict, shown
    assert " left" in shown or "longer than estimated" in shown
    done = _command(words, capture_output=True)
    assert b"1 port on 1 input" not in done.stdout + done.stderr


def _command(words: list[str], **more: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "160"}
    command = [sys.executable, "-m", "gpt_verify", *words]
    return subprocess.run(command, env=environment, check=False, **more)  # type: ignore[call-overload,no-any-return]


def _at_a_terminal(words: list[str]) -> str:
    """All that the command shows on one."""
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # EIO: nobody writes any more
            while piece := os.read(ours, 4096):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    _command(words, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    reader.join()
    os.close(ours)
    return b"".join(pieces).decode()
