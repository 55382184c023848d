"""What the code of transformers does, found out in a process of its own.

Several versions can be examined in one run, each by the interpreter that it is installed for. The
process runs ``transformers_probe.py``, which needs nothing of this package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint import default_checkpoint
from gpt_verify.claims import first_gpt
from gpt_verify.errors import PortError, shortened
from gpt_verify.process.children import output_of
from gpt_verify.process.scratch import scratch

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
        with scratch() as first:
            return self._examined(default_checkpoint("huggingface"), first_gpt.write(Path(first)))

    def _examined(self, second: Path, first: Path) -> dict[str, Any]:
        script = Path(__file__).with_name("transformers_probe.py")
        words = [self.python, "-P", str(script), str(second), str(first)]
        words += [str(self.before)] if self.before else []
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        try:
            status, output, last = output_of(words, TIMEOUT, environment)
        except OSError as error:  # TimeoutError is one
            raise PortError(f"{self.python}: {shortened(error)}") from None
        lines = output.strip().splitlines()
        if status or not lines:
            raise PortError(f"{self.python}: {shortened(last) or f'exit status {status}'}")
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
