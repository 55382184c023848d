"""Files that nobody has vouched for: measured before they are read, and refused in one line."""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import CheckpointError

#: Large enough for the vocabulary of any GPT-2 and the index of any sharded one.
LARGEST_JSON = 1 << 26
#: Of a stored graph: protocol buffers hold no more.
LARGEST_GRAPH = (1 << 31) - 1
#: How a file begins that stands for another one, and the most bytes that it has:
#: git-lfs ``docs/spec.md``, "The Pointer".
POINTER, LARGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024
#: Bytes from which on a tensor that is handed out is mapped and not copied: every matrix of a
#: released model. (Until Python 3.13 a mapping also holds a descriptor of its file.)
SMALLEST_MAPPING = 1 << 18


class Malformed(ValueError):
    """What is wrong with some bytes; ``refusal`` adds the file that they came from."""


def refusal(path: Path, what: object) -> CheckpointError:
    """One line, ``file: what``, however long or unprintable the offending text is."""
    text = str(what)
    if len(text) > 600:
        text = f"{text[:600]} …"
    line = f"{path}: {text}"
    return CheckpointError("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def need_content(path: Path, start: bytes) -> None:
    """CheckpointError where a file that begins so is what Git LFS leaves in its place."""
    if start.startswith(POINTER):
        size = re.search(rb"^size (\d{1,18})$", start, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise refusal(
            path,
            f"a Git LFS pointer, which stands for a file{of} that was not fetched: run "
            f"`git lfs pull` in {path.parent}",
        )


def size_of(path: Path) -> int:
    """Length in bytes; CheckpointError for what is missing, or is no regular file.

    A pipe or a device must not be opened: it could block for ever, or never end.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise refusal(path, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise refusal(path, f"cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, "not a regular file")
    return status.st_size


def need_at_most(path: Path, largest: int) -> int:
    """The size in bytes; CheckpointError where it is larger than such a file may be."""
    if (size := size_of(path)) > largest:
        raise refusal(path, f"{size} bytes; at most {largest} are read")
    return size


def read_bytes(path: Path, largest: int) -> bytes:
    """The whole of a small file; CheckpointError if it is larger than it may be."""
    size = need_at_most(path, largest)
    try:
        with path.open("rb") as file:
            data = file.read(size)  # read(largest) would take that much memory at once
    except OSError as error:
        raise refusal(path, f"cannot be read: {error}") from None
    need_content(path, data)
    return data


def parse_json(text: bytes) -> dict[str, object]:
    """A JSON object, strictly: no key twice, no NaN or infinity.

    Raises:
        Malformed: anything else.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise Malformed(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
        return found

    def not_a_number(text: str) -> object:
        raise Malformed(f"{text} is not a number of JSON")

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=not_a_number)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value


def read_json(path: Path) -> dict[str, object]:
    """``parse_json`` of a file; CheckpointError names the file and what is wrong with it."""
    text = read_bytes(path, LARGEST_JSON)
    if not text:
        raise refusal(path, "the file is empty")
    try:
        return parse_json(text)
    except Malformed as error:
        raise refusal(path, error) from None


class MappedFile:
    """A file of which read-only views are made without copying, for the reference, and writable
    ones that share nothing with it, for ports.

    The file is mapped at the first view. When a view is no longer in use its pages are given back,
    so that reading every tensor of a model in turn occupies the memory of one.

    Raises:
        CheckpointError: the file is missing, is no regular file, or is a Git LFS pointer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = size_of(path)
        if self.size <= LARGEST_POINTER:
            read_bytes(path, LARGEST_POINTER)
        self._map: mmap.mmap | None = None
        self._identity: tuple[int, ...] = ()

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """``size`` bytes from ``offset``: read-only uint8[size], zero-copy.

        Raises:
            CheckpointError: the file ends before, or has changed its length since it was measured.
        """
        if not 0 <= offset <= offset + size <= self.size:
            end = offset + size
            raise refusal(self.path, f"bytes {offset} … {end} lie outside its {self.size} bytes")
        if size == 0:
            empty = np.zeros(0, np.uint8)
            empty.setflags(write=False)
            return empty
        mapped = self._mapped()
        view = np.frombuffer(mapped, np.uint8, size, offset)
        view.setflags(write=False)
        if hasattr(mapped, "madvise"):
            # Whole pages alone: with its page would be lost what was written to a neighbour.
            start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
            # Every array made from this one keeps it as its base, so this runs after the last use;
            # and a page that is wanted again is merely read again.
            if length > 0:
                weakref.finalize(
                    view, mapped.madvise, mmap.MADV_DONTNEED, start, length
                ).atexit = False
        return view

    def own(self, offset: int, size: int) -> NDArray[np.uint8]:
        """The same bytes for somebody to keep: writable, and a write reaches neither the file nor
        any view.

        What is large is a copy-on-write mapping of its own: no byte is copied before it is written
        to, and all of it is given back when the array and everything made from it are gone. What is
        small is copied, because a mapping takes more.

        Raises:
            CheckpointError: as for `view`.
        """
        view = self.view(offset, size)
        if size < SMALLEST_MAPPING:
            return np.array(view)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                if _identity(file.fileno()) != self._identity:
                    raise refusal(self.path, "was replaced while it was being read")
                mapped = mmap.mmap(
                    file.fileno(), offset + size - start, access=mmap.ACCESS_COPY, offset=start
                )
        except OSError:  # no more files may be open, or no more memory be promised
            return np.array(view)
        return np.frombuffer(mapped, np.uint8, size, offset - start)

    def _mapped(self) -> mmap.mmap:
        try:
            if self._map is None:
                with self.path.open("rb") as file:
                    self._identity = _identity(file.fileno())
                    if os.fstat(file.fileno()).st_size == self.size:
                        self._map = _map(file.fileno(), self.size)
            # Past the end of a file that has shrunk, a page fault would kill the process.
            if self._map is None or self._map.size() != self.size:
                raise refusal(self.path, f"is no longer {self.size} bytes long: it was changed")
        except (OSError, ValueError) as error:
            raise refusal(self.path, f"cannot be mapped: {error}") from None
        return self._map


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A whole file. torch writes to what NumPy hands out as read-only: in a mapping that cannot be
    written to that would end the process; in this one a write reaches a private page."""
    try:
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    except OSError:  # so much memory is not promised
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


def _identity(descriptor: int) -> tuple[int, ...]:
    """Which file it is, whatever its name is now."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
