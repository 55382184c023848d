"""A report file is there as a whole or not at all; one that cannot be written is found early."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpt_verify.errors import GptVerifyError, UsageError


class OutputFile:
    """A file that will be written once, at the end of a long run.

    Creating the object proves that the directory takes a file, and leaves nothing behind.

    Args:
        path: where the text goes.

    Raises:
        UsageError: the path is a directory, its directory does not exist or takes no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A link is followed, so that the file it points to is replaced and not the link.
        self._target = Path(os.path.realpath(path))
        if self._target.is_dir():
            raise UsageError(f"{path}: is a directory, not a file to write a report to")
        # A device or a pipe (/dev/null, process substitution) cannot be replaced: it is written to.
        self._in_place = self._target.exists() and not self._target.is_file()
        if self._in_place:
            return
        if self._target.exists() and not os.access(self._target, os.W_OK):
            raise UsageError(f"{path}: cannot be written (permission denied)")
        try:
            scratch = self._create()
            os.unlink(scratch)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})") from error

    def is_same(self, other: OutputFile) -> bool:
        """Whether both write to one file, by whatever names. A device may take several."""
        if self is other:
            return True
        return not self._in_place and (self._target == other._target or self.is_file(other._target))

    def is_file(self, path: Path) -> bool:
        """Whether this is that file, which need not be under the same name."""
        try:
            return os.path.samefile(self._target, path)
        except OSError:  # one of them does not exist yet
            return False

    def _create(self) -> Path:
        scratch = self._target.with_name(f".{secrets.token_hex(8)}.tmp")
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return scratch

    def write(self, content: str | bytes) -> None:
        """Replace the file by this (text as UTF-8); on failure the old file stays as it was."""
        data = content.encode("utf-8") if isinstance(content, str) else content
        try:
            if self._in_place:
                self._target.write_bytes(data)
                return
            scratch = self._create()
            try:
                with open(scratch, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(scratch, self._target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(scratch)
                raise
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from error


def open_outputs(asked: Mapping[str, str | None]) -> dict[str, OutputFile]:
    """The files of the reports that were asked for, before the long run: a report that cannot be
    written is no reason to have waited.

    Args:
        asked: option → path, or None where it was not given. ``json`` may be ``-``, the standard
            output, which is no file.

    Raises:
        UsageError: a path that cannot be written, or one for two reports.
    """
    given = {name: out for name, out in asked.items() if out is not None}
    for name, out in given.items():
        if out == "-" and name != "json":
            raise UsageError(f"--{name} needs a file")
    files = {name: OutputFile(Path(out)) for name, out in given.items() if out != "-"}
    for name, file in files.items():
        other = next(n for n, o in files.items() if o.is_same(file))
        if other != name:
            raise UsageError(f"{file.path}: --{other} and --{name} cannot share a file")
    return files


#: What a directory of weights holds, by the ends of the names; all else in it is somebody's own.
_OF_A_MODEL = [
    "checkpoint",
    "config.json",
    "encoder.json",
    "hparams.json",
    "vocab.json",
    "vocab.bpe",
    "merges.txt",
    "tokenizer.json",
    "added_tokens.json",
    "params_shapes.json",
    ".npy",
    "special_tokens_map.json",
    ".safetensors",
    ".index.json",
    ".index",
    ".meta",
    ".bin",
    ".msgpack",
    ".h5",
]


def spare_inputs(
    outputs: Mapping[str, OutputFile],
    checkpoint: Path | None,
    ports: Sequence[str],
    others: Sequence[str] = (),
) -> None:
    """No report replaces what the run is about.

    Args:
        outputs: of ``open_outputs``.
        checkpoint, ports: as they were given.
        others: whatever else was given that may be a file.

    Raises:
        UsageError: an output is a file of the checkpoint, or of a port.
    """
    named = list(others)
    if checkpoint is not None:
        # A file of a checkpoint stands for its directory.
        whole = checkpoint.parent if os.path.isfile(checkpoint) else checkpoint
        named.append(os.fspath(whole))
    for spec in ports:
        kind, _, source = spec.partition("=")
        named += [spec, spec.rpartition(":")[0], source]
        if kind == "process":
            with contextlib.suppress(ValueError):
                named += shlex.split(source)
    for name in filter(None, named):
        with contextlib.suppress(OSError, ValueError):  # not every word is the name of a file
            inputs = [Path(name)] if os.path.isfile(name) else []
            if os.path.isdir(name):
                inputs = [p for p in Path(name).iterdir() if _of_a_model(p.name)]
            for option, output in outputs.items():
                if any(output.is_file(path) for path in inputs):
                    raise UsageError(
                        f"{output.path}: --{option} would replace an input of the run, {name}"
                    )


def _of_a_model(name: str) -> bool:
    return name.endswith(tuple(_OF_A_MODEL)) or ".data-" in name


def write_outputs(
    outputs: Mapping[str, OutputFile], render: Mapping[str, Callable[[], str | bytes]]
) -> GptVerifyError | None:
    """Write each report. One that fails does not keep the others from being written; the first
    failure is returned, to be raised when everything has been said."""
    unwritten: GptVerifyError | None = None
    for name, output in outputs.items():
        try:
            output.write(render[name]())
        except GptVerifyError as error:
            unwritten = unwritten or error
    return unwritten
