"""What the code of transformers does, found out in a process of its own.

Several versions can be examined in one run, each by the interpreter that it is installed for. The
process runs ``transformers_probe.py``, which needs nothing of this package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from verify.checkpoint import default_checkpoint
from verify.claims import first_gpt
from verify.errors import PortError

#: Seconds that one examination may take; importing torch on a busy machine is most of it.
TIMEOUT = 600


@dataclass(frozen=True)
class TransformersCode:
    """One installed version.

    Attributes:
        python: the interpreter.
        before: a Python file that is run in that process before anything is examined; so a
            version with a fault is made.
    """

    python: str
    before: Path | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Everything that was found out; see ``transformers_probe.py``.

        Raises:
            PortError: the interpreter cannot be run, or lacks transformers or torch.
        """
        with TemporaryDirectory() as first:
            return self._examined(default_checkpoint("huggingface"), first_gpt.write(Path(first)))

    def _examined(self, second: Path, first: Path) -> dict[str, Any]:
        script = Path(__file__).with_name("transformers_probe.py")
        words = [self.python, "-P", str(script), str(second), str(first)]
        words += [str(self.before)] if self.before else []
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=TIMEOUT, env=environment
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PortError(f"{self.python}: {error}") from None
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise PortError(f"{self.python}: {said[-1]}")
        facts: dict[str, Any] = json.loads(lines[-1])
        return facts

    @property
    def name(self) -> str:
        return f"transformers {self.facts['version']}"


def installed() -> list[TransformersCode]:
    """That of this interpreter, if it has one."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return []
    return [TransformersCode(sys.executable)]
