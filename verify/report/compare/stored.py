"""A JSON report that was written earlier, read back. Nobody has vouched for the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from gpt_verify.checkpoint.files import Malformed, parse_json, read_bytes
from gpt_verify.errors import CheckpointError, UsageError, shortened
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict, Waiver
from gpt_verify.report.json import SCHEMA_VERSION
from gpt_verify.text import nearest_path

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

#: Bytes: a report of the largest model with every port is a hundredth of it.
LARGEST = 1 << 30
_MAJOR = SCHEMA_VERSION.partition(".")[0]
_KINDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_report(path: Path) -> Report:
    """The report in a file: everything that a comparison takes from it.

    Raises:
        UsageError: no such file, or no report that can be compared; the line says what to do.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file{nearest_path(path)}")
    try:
        document = parse_json(read_bytes(path, LARGEST))
    except CheckpointError as error:  # its line begins with the path
        raise UsageError(str(error)) from None
    except Malformed as error:
        raise UsageError(_refusal(path, error)) from None
    try:
        return report_of(document)
    except Malformed as error:
        raise UsageError(_refusal(path, error)) from None


def _refusal(path: Path, why: object) -> str:
    return shortened(f"{path}: {why}; gpt-verify run --json OUT writes a report that can be read")


def report_of(document: Mapping[str, object]) -> Report:
    """The report that ``gpt_verify.report.json.as_dict`` wrote, without mappings and details.

    Raises:
        Malformed: something else, another schema, or a verdict that is not that of its checks.
    """
    if "schema_version" not in document or "ports" not in document:
        raise Malformed("no report of gpt-verify run: it has no schema_version and no ports")
    version = _get(document, "schema_version", str)
    if version.partition(".")[0] != _MAJOR:
        raise Malformed(f"schema {shortened(version, 20)}; this version reads {_MAJOR}.x")
    read = Report(
        checkpoint=_get(document, "checkpoint", dict),
        ports=tuple(_each(document, "ports", _port)),
        inputs=_get(document, "inputs", dict),
        environment=_get(document, "environment", dict),
        repeat=_get(document, "repeat", str),
    )
    _agrees(_one_of(document, "verdict", Verdict), read.verdict)
    return read


def _port(port: Mapping[str, object]) -> PortReport:
    read = PortReport(
        _get(port, "name", str),
        _get(port, "dtype", str),
        _get(port, "device", str),
        _get(port, "weights_from", str),
        tuple(_each(port, "checks", _finding)),
        tuple(_each(port, "waivers", _waiver)),
        error=_maybe(port, "error", str),
        first_divergence=_maybe(port, "first_divergence", str),
        explained_by=_texts(port, "explained_by"),
        logits_floors=_number(port, "logits_floors"),
        unmet=_texts(port, "unmet") if "unmet" in port else (),
    )
    _agrees(_one_of(port, "verdict", Verdict), read.verdict)
    return read


def _finding(check: Mapping[str, object]) -> Finding:
    return Finding(
        _get(check, "id", str),
        _one_of(check, "status", Status),
        _get(check, "message", str),
        _maybe(check, "site", str),
        _number(check, "score"),
        _number(check, "limit"),
    )


def _waiver(waiver: Mapping[str, object]) -> Waiver:
    words = _get(waiver, "law", str), _get(waiver, "reason", str)
    return Waiver(*words, _get(waiver, "failures", int))


def _agrees(said: Verdict, drawn: Verdict) -> None:
    if said is not drawn:
        raise Malformed(
            f"says {said.value} where its checks say {drawn.value}: it was edited, or is of an "
            "older version that judged otherwise"
        )


def _get(source: Mapping[str, object], key: str, kind: type[T]) -> T:
    """A value of this type; Malformed names the key."""
    if key not in source:
        raise Malformed(f"{key} is missing")
    value = source[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Malformed(f"{key} is {shortened(value, 40)!r}, not {_KINDS[kind]}")
    return value


def _maybe(source: Mapping[str, object], key: str, kind: type[T]) -> T | None:
    return None if key in source and source[key] is None else _get(source, key, kind)


def _one_of(source: Mapping[str, object], key: str, kind: type[E]) -> E:
    text = _get(source, key, str)
    try:
        return kind(text)
    except ValueError:
        raise Malformed(f"{key} is {shortened(text, 40)!r}, not {', '.join(kind)}") from None


def _number(source: Mapping[str, object], key: str) -> float | None:
    if key not in source:
        raise Malformed(f"{key} is missing")
    value = source[key]
    if value is None:
        return None
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise Malformed(f"{key} is {shortened(value, 40)!r}, no number that this tool writes")


def _each(
    source: Mapping[str, object], key: str, read: Callable[[Mapping[str, object]], T]
) -> Iterator[T]:
    """The items of a list, each read; what is wrong with one is said with its place."""
    for index, item in enumerate(_get(source, key, list)):
        try:
            if not isinstance(item, dict):
                raise Malformed("is not an object")
            yield read(item)
        except Malformed as error:
            raise Malformed(f"{key}[{index}]: {error}") from None


def _texts(source: Mapping[str, object], key: str) -> tuple[str, ...]:
    texts: list[Any] = _get(source, key, list)
    if not all(isinstance(text, str) for text in texts):
        raise Malformed(f"{key} is no list of texts")
    return tuple(texts)


def as_written(report: Report) -> Report:
    """A report of this process as it would be read back: the one form in which two are compared."""
    from gpt_verify.report.json import plain

    return replace(
        report,
        checkpoint=plain(report.checkpoint),
        inputs=plain(report.inputs),
        environment=plain(report.environment),
    )
