"""One port, built for nothing but its laws: what another process does for a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gpt_verify.judging.checking import Checked, check
from gpt_verify.judging.judge import one_blas_thread, require_itself
from gpt_verify.judging.last_position import ask_by_prefixes, returns_the_last_only
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.selection import request
from gpt_verify.laws.subject import NotExamined
from gpt_verify.laws.table import CHECKS
from gpt_verify.laws.unchanged import Weights
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.process.memory import require, reuse
from gpt_verify.process.replaced import Watch

if TYPE_CHECKING:
    from gpt_verify.judging.side_by_side import Task

#: Tokens of the call after which its weights are what they were, or its calls write to them.
FEW = 16


class Desk:
    """A port and what its laws are handed.

    Args:
        task: which port, of which run.

    Raises:
        GptVerifyError: the checkpoint cannot be read, or the port cannot be built.
        Exception: whatever the port raises.
    """

    def __init__(self, task: Task) -> None:
        reuse()
        self.task = task
        asked = request(task.path, [task.spec], task.options)
        opened = asked.checkpoint
        self._watch = Watch()
        self._port = asked.builder(task.spec)()
        try:
            require_itself(self._watch, f"by {self._port.name}")
            prepared = prepare(self._port, opened, SharedWeights(opened.tensors, record=False))
            if returns_the_last_only(self._port, opened.config):
                ask_by_prefixes(self._port)
            self._subject = prepared.subject(task.options.seed)
            self._held = Weights(self._port.name, prepared.parameters)
            self._held.note()
            with suppress(Exception):  # which its laws will find
                self._port.logits(self._subject.tokens(1, min(FEW, opened.config.n_ctx)))
            self._held.after_calls()
            self._subject.written = self._held.written
        except BaseException:
            self.close()
            raise

    def check(self, ids: Sequence[str]) -> dict[str, Checked | None]:
        """Each of these checks; None where there is no room for it beside the other processes.

        Raises:
            ReferenceChanged: the port has changed the reference.
            GptVerifyError: it broke.
        """
        found: dict[str, Checked | None] = {}
        with one_blas_thread():
            for part in (part for part in CHECKS if part.id in ids):
                try:
                    require(part.takes(self._subject.config))
                except NotExamined:
                    found[part.id] = None
                else:
                    found[part.id] = check(part, self._subject, self._held, room=False)
        require_itself(self._watch, f"by {self._port.name}")
        return found

    def close(self) -> None:
        """Close the port."""
        self._port.close()
