"""The command line, run by a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORTS = ROOT / "tests" / "sample_ports.py"
SIZE = "97,24,12,3,2"

Run = Callable[..., tuple[int, str, str]]


def command(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "gpt_verify", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        **more,
    )


def complaint(err: str) -> str:
    """The one line that standard error holds."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]
