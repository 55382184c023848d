"""A report file is there as a whole or not at all; one that cannot be written is found early."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from verify.errors import GptVerifyError, UsageError


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
        other = next(n for n, o in given.items() if o == out)
        if other != name:
            raise UsageError(f"{out}: --{other} and --{name} cannot share a file")
    return {name: OutputFile(Path(out)) for name, out in given.items() if out != "-"}


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
