"""A program as a port: questions on its standard input, answers on its standard output."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import LONGEST, PortError, Refused, UsageError, shortened
from gpt_verify.port import Dtype, Floats, Port, Tokens
from gpt_verify.ports.remote.protocol import answer, largest, question
from gpt_verify.ports.remote.timed import Deadline, TimedPipes
from gpt_verify.process.children import Child, signal_name
from gpt_verify.process.scratch import Scratch

#: Seconds that one answer may take.
TIMEOUT = 600.0


class ProcessPort(Port):
    """A program that is started once and asked many times.

    One that ends, or takes too long, is an error of the port; it is started anew for the next
    question, because ending is how a program may refuse one.

    Args:
        command: program and arguments. ``{checkpoint}`` stands for the directory of the checkpoint,
            and ``{huggingface}`` for one with ``config.json`` and ``model.safetensors`` of the same
            tensors, which is written if need be.
        checkpoint: what is judged against.
        name: as reports print it.
        dtype: what it declares to compute in.
        timeout: seconds that one answer may take.
    """

    def __init__(
        self,
        command: str,
        checkpoint: Checkpoint,
        name: str | None = None,
        dtype: Dtype | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.name = name or f"process={command}"
        self.dtype = dtype or "float32"
        self._timeout = timeout
        self._vocabulary = checkpoint.config.n_vocab
        self._directory: Scratch | None = None
        try:
            words = shlex.split(command)
        except ValueError as e:
            raise UsageError(f"{self.name}: {e}") from None
        if not words:
            raise UsageError(f"{self.name}: names no program")
        self._words = [self._filled(word, checkpoint) for word in words]
        self._program: _Program | None = None
        # What it reads from the directory whose name it is given, nobody sees.
        self.weights_from = "port" if self._directory is None else "checkpoint"

    def logits(self, tokens: Tokens) -> Floats:
        if self._program is None:
            self._program = _Program(self._words, self.name)
        try:
            return self._program.ask(tokens, self._timeout, largest(tokens, self._vocabulary))
        except Refused:
            raise
        except BaseException:
            # What it says next may belong to this question.
            self._program.end()
            self._program = None
            raise

    def close(self) -> None:
        if self._program is not None:
            self._program.end()
            self._program = None
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _filled(self, word: str, checkpoint: Checkpoint) -> str:
        if "{huggingface}" in word:
            word = word.replace("{huggingface}", os.fspath(self._huggingface(checkpoint)))
        return word.replace("{checkpoint}", os.path.abspath(checkpoint.path))

    def _huggingface(self, checkpoint: Checkpoint) -> Path:
        from gpt_verify.checkpoint.write import write_huggingface

        if self._directory is None:
            self._directory = Scratch()
            write_huggingface(self._directory.path, checkpoint.config, checkpoint.tensors)
        return self._directory.path


class _Program:
    """A running program."""

    def __init__(self, words: list[str], name: str) -> None:
        self._name = name
        try:
            self._child = Child(words)
        except OSError as e:
            raise PortError(f"{name}: {words[0]} cannot be started: {e.strerror}") from None
        self._pipes = TimedPipes(self._child.stdin.fileno(), self._child.stdout.fileno())
        self.end = self._child.end

    def ask(self, tokens: Tokens, timeout: float, most: int) -> Floats:
        """One question. After any error but Refused the program is of no use any more."""
        self._pipes.deadline = Deadline(timeout)
        try:
            self._pipes.write(question(tokens))
            return answer(self._pipes, self._name, most)
        except TimeoutError:
            raise self._error(f"gave no answer within {timeout:g} s") from None
        except (EOFError, OSError):
            raise self._error(self._how()) from None

    def _how(self) -> str:
        status = self._child.wait(5)
        if status is None:
            return "closed its output"
        if status >= 0:
            return f"ended with exit status {status}"
        return f"died of {signal_name(-status)}"

    def _error(self, what: str) -> PortError:
        said = shortened(self._child.last_words(LONGEST))
        last = f"; it last said: {said}" if said else ""
        return PortError(f"{self._name}: the program {what}{last}")
