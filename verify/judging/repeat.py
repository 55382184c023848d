"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from collections.abc import Container, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt_verify.judging.options import Options


def repeat_command(
    checkpoint: Path | None, ports: Sequence[str], options: Options, command: str = "run"
) -> str:
    """``gpt-verify run …`` with everything that is not a default, quoted for a shell.

    Args:
        checkpoint: the directory, or None for the default checkpoint.
        ports: port specifications as they are given on the command line.
        options: of the run.
        command: another one that takes the same: ``diagnose``.
    """
    words = _arguments(command, checkpoint, ports, options)
    for length in options.lengths or ():
        words += ["--length", str(length)]
    if options.tokens is not None:
        words += ["--tokens", ",".join(str(token) for token in options.tokens)]
    if options.text is not None:
        # One word, so that a text that begins with a dash is not read as an option.
        words += [f"--text={options.text}"]
    for required in options.require:
        words += ["--require", required]
    return shlex.join(words)


def repeat_call(
    checkpoint: Path | None,
    ports: Sequence[str],
    held: Container[str],
    options: Options,
    function: str = "run",
    **more: object,
) -> str:
    """``gpt_verify.run(model, …)``: the same in Python, where a port is an object in memory.

    Args:
        checkpoint: the directory, or None for the default checkpoint.
        ports: specifications, and names of objects.
        held: which of them are names.
        options: of the run.
        function: of ``gpt_verify``.
        more: arguments of its own that are no defaults.
    """
    named = [port if port in held else repr(port) for port in ports]
    words = [named[0] if len(named) == 1 else f"[{', '.join(named)}]"]
    if checkpoint is not None:
        words.append(f"checkpoint={str(checkpoint)!r}")
    for option in fields(options):
        value = getattr(options, option.name)
        if value != getattr(type(options)(), option.name):
            words.append(f"{option.name}={list(value) if isinstance(value, tuple) else value!r}")
    words += [f"{name}={value!r}" for name, value in more.items()]
    return f"gpt_verify.{function}({', '.join(words)})"


def lens_command(
    checkpoint: Path | None, ports: Sequence[str], options: Options, *more: str
) -> str:
    """``gpt-verify lens …``, in the same way; ``more`` are options of its own."""
    words = [*_arguments("lens", checkpoint, ports, options), *more]
    if options.tokens is not None:
        words += ["--tokens", ",".join(str(token) for token in options.tokens)]
    if options.text is not None:
        # After this sign nothing is read as an option.
        words += ["--"] * options.text.startswith("-") + [options.text]
    return shlex.join(words)


def _arguments(
    command: str, checkpoint: Path | None, ports: Sequence[str], options: Options
) -> list[str]:
    """What both commands say alike."""
    words = ["gpt-verify", command]
    if checkpoint is not None:
        words += ["--checkpoint", str(checkpoint)]
    for port in ports:
        words += ["--port", port]
    words += [f"--ignore-key={key}" for key in options.ignore_keys]
    for name in ("device", "dtype", "seed"):
        value = getattr(options, name)
        if value != getattr(type(options)(), name):
            words += [f"--{name}", str(value)]
    return words
