"""A program as a port: questions on its standard input, answers on its standard output."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

from verify.checkpoint import Checkpoint
from verify.errors import PortError, UsageError
from verify.ports.port import Dtype, Floats, Port, Tokens
from verify.ports.remote.protocol import answer, question

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
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        try:
            words = shlex.split(command)
        except ValueError as e:
            raise UsageError(f"{self.name}: {e}") from None
        if not words:
            raise UsageError(f"{self.name}: names no program")
        self._words = [self._filled(word, checkpoint) for word in words]
        self._program: _Program | None = None

    def logits(self, tokens: Tokens) -> Floats:
        if self._program is None:
            self._program = _Program(self._words, self.name)
        try:
            return self._program.ask(tokens, self._timeout)
        except _Ended as e:
            self._program = None
            raise PortError(str(e)) from None

    def close(self) -> None:
        if self._program is not None:
            self._program.end()
            self._program = None
        if self._directory is not None:
            self._directory.cleanup()

    def _filled(self, word: str, checkpoint: Checkpoint) -> str:
        if "{huggingface}" in word:
            word = word.replace("{huggingface}", os.fspath(self._huggingface(checkpoint)))
        return word.replace("{checkpoint}", os.path.abspath(checkpoint.path))

    def _huggingface(self, checkpoint: Checkpoint) -> Path:
        from verify.checkpoint.write import write_huggingface

        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="gpt-verify-")
            write_huggingface(self._directory.name, checkpoint.config, checkpoint.tensors)
        return Path(self._directory.name)


class _Ended(Exception):
    """The program is gone."""


class _Program:
    """A running program."""

    def __init__(self, words: list[str], name: str) -> None:
        self._name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # the finalizer closes it
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                # A program may start others; all of them end with it.
                start_new_session=True,
            )
        except OSError as e:
            self._stderr.close()
            raise PortError(f"{name}: {words[0]} cannot be started: {e.strerror}") from None
        self.end = weakref.finalize(self, _end, self._process, self._stderr)

    def ask(self, tokens: Tokens, timeout: float) -> Floats:
        """One question; _Ended where there is no program any more."""
        process, expired = self._process, threading.Event()
        assert process.stdin is not None and process.stdout is not None

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(question(tokens))
            process.stdin.flush()
            return answer(process.stdout, self._name)  # type: ignore[arg-type]  # a reader of bytes
        except (EOFError, OSError):
            if expired.is_set():
                raise self._ended(f"gave no answer within {timeout:g} s") from None
            raise self._ended(self._how()) from None
        finally:
            timer.cancel()

    def _how(self) -> str:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status >= 0:
            return f"ended with exit status {status}"
        return f"died of {signal.Signals(-status).name}"

    def _ended(self, what: str) -> _Ended:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 4096))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.end()
        last = f"; it last said: {lines[-1].strip()[:400]}" if lines else ""
        return _Ended(f"{self._name}: the program {what}{last}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The program and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    _kill(process)
    for stream in (process.stdin, process.stdout, stderr):
        if stream is not None:
            with suppress(OSError):  # a question that was never read
                stream.close()
    process.wait()
