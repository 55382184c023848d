"""``[tool.gpt-verify]`` in a project's pyproject.toml: what its ports are, and how they are judged.

    [tool.gpt-verify]
    ports = ["my_port.py:factory"]
    checkpoint = "models/124M"
    dtype = "float32"
    lengths = [16, 64]
    require = ["logits", "90%"]

    [tool.gpt-verify.waivers]
    "tokenizer.encode" = "it has none of its own"

Each key is the default of an option of the same name. Paths are those of the project's directory.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt_verify.errors import GptVerifyError, UsageError, shortened
from gpt_verify.findings import concerns
from gpt_verify.text import nearest

T = TypeVar("T")

_TABLE = "tool.gpt-verify"
#: A project's file is no larger.
_LARGEST = 10_000_000
#: What a port may be loaded in.
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Project:
    """What a project says; nothing where it has no such table.

    Attributes:
        ports: as after ``--port``.
        checkpoint: a directory, or the name of a model of the hub; None where it says none.
        dtype: the precision to load the ports in, or None.
        lengths: of the seeded samples, or None.
        require: what must be examined.
        waivers: specification of a port of the project → law → reason.
    """

    ports: tuple[str, ...] = ()
    checkpoint: Path | None = None
    dtype: str | None = None
    lengths: tuple[int, ...] | None = None
    require: tuple[str, ...] = ()
    waivers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def completed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of ``gpt_verify.judging.options.Options``, with what the project says
        where they say nothing."""
        own: dict[str, Any] = {
            "dtype": self.dtype,
            "require": self.require,
            "waivers": self.waivers,
        }
        if all(options.get(inputs) is None for inputs in ("lengths", "tokens", "text")):
            own["lengths"] = self.lengths
        return {**options, **{name: options.get(name) or value for name, value in own.items()}}


def read_project(directory: Path) -> Project:
    """What the nearest pyproject.toml says, in this directory or one above it.

    Raises:
        UsageError: it cannot be read, or says something that is not understood.
    """
    for folder in (directory, *directory.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            return _project(path)
    return Project()


def _project(path: Path) -> Project:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path}: is larger than {_LARGEST} bytes")
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {shortened(error)}") from None
    tool = document.get("tool", {})
    table = tool.get("gpt-verify", {}) if isinstance(tool, dict) else {}
    try:
        return _read(table, path.parent)
    except GptVerifyError as error:
        raise UsageError(f"{path}: [{_TABLE}] {error}") from None


def _read(table: Any, folder: Path) -> Project:
    if not isinstance(table, dict):
        raise UsageError("is no table")
    for key in table:
        if key not in _KEYS:
            raise UsageError(f"{shortened(key, 40)}: no such key{nearest(key, _KEYS)}")
    read = {key: _KEYS[key](key, value) for key, value in table.items()}
    from gpt_verify.judging.requirements import requirements

    requirements(read.get("require", ()))
    ports = tuple(_from_here(spec, folder) for spec in read.get("ports", ()))
    waivers = _of_each(read.get("waivers", {}), read.get("ports", ()), ports)
    checkpoint = read.get("checkpoint")
    if checkpoint is not None:
        # What does not exist may be a model of the hub.
        there = os.path.lexists(folder / checkpoint) or checkpoint.startswith(".")
        checkpoint = _relative(folder, checkpoint) if there else Path(checkpoint)
    return Project(**read | {"ports": ports, "checkpoint": checkpoint, "waivers": waivers})


def _of_each(
    waivers: Mapping[str, Any], named: Sequence[str], ports: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Specification of each port, one for each that a name stands for → law → reason."""
    from gpt_verify.ports.registry import expand

    if waivers and not ports:
        raise UsageError("waivers: there are no ports that they could be of")
    laws = {law: reason for law, reason in waivers.items() if isinstance(reason, str)}
    found: dict[str, dict[str, str]] = {}
    for name in waivers.keys() - laws.keys():
        if name not in named:
            raise UsageError(
                f"waivers: {shortened(name, 40)} is no port of the project, and no law with a "
                f"reason{nearest(name, named)}"
            )
    for name, port in zip(named, ports, strict=True):
        own = waivers.get(name, {})
        found |= {spec: laws | (own if isinstance(own, dict) else {}) for spec in expand([port])}
    return found


def _from_here(spec: str, folder: Path) -> str:
    """A specification whose file or directory is one of the project, from wherever we are."""
    kind, sign, source = spec.partition("=")
    if sign and "/" not in kind and kind != "process" and (folder / source).exists():
        return f"{kind}={_relative(folder, source)}"
    file, colon, name = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{_relative(folder, file)}:{name}"
    return spec


def _relative(folder: Path, file: str) -> Path:
    """As somebody would write it who is here: the name of a port is what a report says."""
    return Path(file) if os.path.isabs(file) else Path(os.path.relpath(folder / file))


def _should(key: str, what: str, value: object) -> UsageError:
    return UsageError(f"{key}: {shortened(repr(value), 60)}; it should be {what}")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _should(key, "a text", value)
    return value


def _dtype(key: str, value: object) -> str:
    if value not in _DTYPES:
        what = f"one of {', '.join(_DTYPES)}"
        hint = nearest(value, _DTYPES) if isinstance(value, str) else ""
        raise UsageError(f"{_should(key, what, value)}{hint}")
    return str(value)


def _positive(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _should(key, "whole numbers of at least 1", value)
    return value


def _list_of(read: Callable[[str, object], T], what: str) -> Callable[[str, object], tuple[T, ...]]:
    def all_of(key: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list) or not value:
            raise _should(key, what, value)
        return tuple(read(key, item) for item in value)

    return all_of


def _waivers(key: str, value: object) -> dict[str, Any]:
    """``law = "reason"`` for all ports, or such a table under the name of one."""
    if not isinstance(value, dict):
        raise _should(key, 'a table of law = "reason"', value)
    for name, reason in value.items():
        if isinstance(reason, dict):
            for law, words in reason.items():
                _waiver(f"{key}.{law}", law, words)
        else:
            _waiver(f"{key}.{name}", name, reason)
    return value


def _waiver(key: str, law: str, reason: object) -> None:
    from gpt_verify.laws.table import PARTS

    if not isinstance(reason, str) or not reason.strip():
        raise _should(shortened(key, 60), "a reason, as text", reason)
    if not any(concerns(law, part.id) for part in PARTS):
        known = dict.fromkeys(n for p in PARTS for n in (p.id.partition(".")[0], p.id))
        raise UsageError(f"waivers: no such law: {shortened(law, 40)}{nearest(law, known)}")


#: Key → reads its value, or refuses it.
_KEYS: dict[str, Callable[[str, object], Any]] = {
    "ports": _list_of(_text, "a list of texts, as after --port"),
    "checkpoint": _text,
    "dtype": _dtype,
    "lengths": _list_of(_positive, "a list of whole numbers"),
    "require": _list_of(_text, "a list of texts: all, N%, or a law"),
    "waivers": _waivers,
}
