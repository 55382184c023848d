"""What can be told of a port by its name alone: whether there is such a thing, before any runs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from gpt_verify.errors import PortError, UsageError
from gpt_verify.ports.builtin import BUILTIN
from gpt_verify.text import nearest, nearest_path

_FORMS = "FILE.py:factory, package.module:factory, process=COMMAND, http://…"


def require_named(spec: str) -> None:
    """Nothing is imported, started or fetched for it.

    Raises:
        UsageError: no such built-in port, or a spec of no known form.
        PortError: the file, directory or program that it names is not there.
    """
    name, _, source = spec.partition("=")
    if spec in BUILTIN or spec.startswith(("http://", "https://")):
        return
    if name == "process":
        _require_program(spec, source)
    elif name == "onnx" and source:
        if not Path(source).is_file():
            raise PortError(f"{spec}: no such file{nearest_path(Path(source))}")
    elif name.startswith("huggingface-") and name in BUILTIN and source:
        if source.startswith((".", "/", "~")) and not Path(source).is_dir():
            raise PortError(f"{source}: no such directory{nearest_path(Path(source))}")
    elif ":" not in spec:
        known = ["huggingface", *BUILTIN]
        raise UsageError(
            f"--port {spec}: not {_FORMS}, or one of {', '.join(known)}"
            f"{nearest(name, [*known, 'process'])}"
        )
    else:
        where = spec.rpartition(":")[0]
        if where.endswith(".py") and not Path(where).is_file():
            raise PortError(f"{spec}: {where}: no such file{nearest_path(Path(where))}")


def _require_program(spec: str, command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"{spec}: {e}") from None
    if not words:
        raise UsageError(f"{spec}: names no program")
    program = words[0]
    if "{" not in program and shutil.which(program) is None:
        hint = nearest_path(Path(program)) if os.sep in program else ""
        raise PortError(f"{spec}: {program}: no such program{hint}")


def require_all(specs: Iterable[str], device: str) -> None:
    """Each of them, and the device that they are to run on.

    Raises:
        UsageError, PortError: as ``require_named`` does; there is no such device.
    """
    for spec in specs:
        require_named(spec)
    if device == "cuda" and not (_has_driver() or _torch_has_cuda()):
        raise UsageError(
            "--device cuda: there is no CUDA device on this machine; without --device, ports run "
            "on the CPU"
        )


def _has_driver() -> bool:
    """Whether CUDA's own library is there. It is not asked for devices, which would begin to use
    them; a framework that finds none says so."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def _torch_has_cuda() -> bool:
    """AMD's devices are called so too, by torch alone."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
