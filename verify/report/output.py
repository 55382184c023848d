"""A report file is there as a whole or not at all; one that cannot be written is found early."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from verify.errors import UsageError


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

    def write(self, text: str) -> None:
        """Replace the file by ``text``; on failure the old file stays as it was."""
        try:
            if self._in_place:
                self._target.write_text(text, encoding="utf-8")
                return
            scratch = self._create()
            try:
                with open(scratch, "w", encoding="utf-8") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(scratch, self._target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(scratch)
                raise
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from error
