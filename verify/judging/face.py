"""The main job for whoever has a port in memory: in a test of their own, or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt_verify.findings import Report
from gpt_verify.judging.options import Options
from gpt_verify.judging.run import Progress, run_request
from gpt_verify.judging.selection import request

if TYPE_CHECKING:
    import torch

    from gpt_verify.port import Port

    Judged: TypeAlias = str | Port | torch.nn.Module | Callable[..., Any]


def run(
    port: Judged | Sequence[Judged] = (),
    checkpoint: str | PathLike[str] | None = None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    text: str | None = None,
    require: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Judge one port or several against a checkpoint.

    Args:
        port: what stands after ``--port``; a ``torch.nn.Module``, ids int64[B, T] to logits; a
            function tokens int64[B, T] → logits float[B, T, V]; or a ``Port``. A module is put into
            evaluation mode. None at all stands for every built-in port that is installed.
        checkpoint: a directory of either format; None takes the one that ships with the package.
        device: ``cpu`` or ``cuda``.
        dtype: the precision to load ports in; None leaves each as it declares itself.
        seed: of the inputs.
        lengths: seeded samples of these lengths, in tokens, in place of the default inputs.
        tokens: one sequence of ids in their place.
        text: the same, encoded with the checkpoint's own vocabulary.
        require: what must be examined, or the port is unjudged: ``all``, ``90%``, or a law.
        progress: told how far the run is.

    Returns:
        The report; ``report.verdict`` is ``verified``, ``refuted`` or ``unjudged``, and
        ``report.ports`` has the findings of each port.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        MissingDependency: no port was given, and no built-in one can run.
        UsageError: options that make no sense.
        A port that cannot be built or breaks is no exception: its report carries the error.
    """
    asked = list(port) if isinstance(port, list | tuple) else [port]
    options = Options(
        device=device,
        dtype=dtype,
        seed=seed,
        lengths=None if lengths is None else tuple(lengths),
        tokens=None if tokens is None else tuple(tokens),
        text=text,
        require=tuple(require),
    )
    directory = None if checkpoint is None else Path(checkpoint)
    return run_request(request(directory, asked, options), progress)
