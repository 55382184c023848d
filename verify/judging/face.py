"""The main job, and the lens, for whoever has a port in memory: in a test of their own, or in a
notebook."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt_verify.errors import UsageError
from gpt_verify.findings import Report
from gpt_verify.judging.lens import LensReport, lens_run
from gpt_verify.judging.options import Options
from gpt_verify.judging.run import Progress, run_request
from gpt_verify.judging.selection import request
from gpt_verify.judging.side_by_side import jobs_for
from gpt_verify.text import typed_path

if TYPE_CHECKING:
    import torch

    from gpt_verify.port import Port

    Judged: TypeAlias = str | Port | torch.nn.Module | Callable[..., Any]

#: Where ports run, and in which precisions they are loaded.
DEVICES, DTYPES = ("cpu", "cuda"), ("float32", "bfloat16", "float16")


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
    require: str | Sequence[str] = (),
    ignore_keys: str | Sequence[str] = (),
    progress: Progress | None = None,
    jobs: int = 1,
    fail_fast: bool = False,
) -> Report:
    """Judge one port or several against a checkpoint.

    A report prints itself as the command does, and is its page in a notebook.

    Args:
        port: what stands after ``--port``; a ``torch.nn.Module``, ids int64[B, T] to logits; a
            function tokens int64[B, T] → logits float[B, T, V]; or a ``Port``. A module is put into
            evaluation mode, and a ``Port`` is closed when it is judged. None at all stands for
            every built-in port that is installed.
        checkpoint: a directory of either format; None takes the one that ships with the package.
        device: ``cpu`` or ``cuda``.
        dtype: the precision to load ports in: ``float32``, ``bfloat16`` or ``float16``; None leaves
            each as it declares itself.
        seed: of the inputs.
        lengths: seeded samples of these lengths, in tokens, in place of the default inputs.
        tokens: one sequence of ids in their place.
        text: the same, encoded with the checkpoint's own vocabulary.
        require: what must be examined, or the port is unjudged: ``all``, ``90%``, or a law.
        ignore_keys: keys of the checkpoint's configuration that alter nothing.
        progress: told how far the run is.
        jobs: processes that judge ports, and laws of a port, side by side; what is found does not
            depend on it. A script that asks for more than one begins below ``if __name__ ==
            "__main__":``, because each process imports it. A port that is handed over as an object
            is judged in this one.
        fail_fast: stop at the first failure: what comes after it is not examined.

    Returns:
        The report; ``report.verdict`` is ``verified``, ``refuted`` or ``unjudged``, and
        ``report.ports`` has the findings of each port. A port that cannot be built, or breaks, is
        no exception: its report carries the error.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        MissingDependency: no port was given, and no built-in one can run.
        UsageError: options that make no sense.

    Example:
        >>> report = gv.run(port, lengths=[5])
        >>> report.verdict
        <Verdict.REFUTED: 'refuted'>
        >>> report.ports[0].first_divergence, report.ports[0].explained_by
        ('h.1.mlp.act', ('gelu-erf',))
    """
    options = _options(
        device=device,
        dtype=dtype,
        seed=seed,
        lengths=lengths,
        tokens=tokens,
        text=text,
        require=require,
        ignore_keys=ignore_keys,
    )
    asked = request(_path(checkpoint), _asked(port), options)
    (processes,) = _whole("jobs", [jobs], least=1)
    return run_request(asked, progress, jobs=jobs_for(asked, processes), fail_fast=fail_fast)


def lens(
    port: Judged | Sequence[Judged] = (),
    text: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    *,
    tokens: Sequence[int] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    decoder: str = "ln_f",
    top: int = 5,
    attention: bool = False,
    ignore_keys: str | Sequence[str] = (),
) -> LensReport:
    """Read one text through the logit lens: what each layer would predict if it were the last.

    The float64 reference is read in any case, and the ports beside it. The result prints itself as
    the command does, and is its page in a notebook.

    Args:
        port: as for ``run``; none at all reads the reference alone. A port that shows nothing but
            logits has no states to read.
        text: what is read, encoded with the checkpoint's own vocabulary.
        checkpoint: a directory of either format; None takes the one that ships with the package.
        tokens: ids, in the place of a text; 2 … ``n_ctx`` of them.
        device: ``cpu`` or ``cuda``.
        dtype: the precision to load ports in; None leaves each as it declares itself. The states
            are decoded in float64 in any case.
        decoder: how a state becomes logits: ``ln_f``; ``none``, without a layer norm; ``block:J``,
            through block J and all after it; or the file of a tuned lens.
        top: how many of the most probable tokens are kept of each state, k.
        attention: keep the patterns of attention too, n_layer · H · T² numbers of each reading.
        ignore_keys: keys of the checkpoint's configuration that alter nothing.

    Returns:
        The report; ``report.reference`` is the ``Lens`` of the reference, and ``report.readings``
        has one ``Reading`` for it and for each port. Of N states and T tokens, statistics are
        [N, T]: ranks count tokens from 0, and what ends in ``_nats`` is in nats.
        ``reading.attributions["top1"].terms_ST`` has what each sub-block adds to the logit of the
        final top-1, and ``reading.patterns[3]`` the attention of layer 3. A port that cannot be
        read is no exception: its reading carries the error.

    Raises:
        CheckpointError: the checkpoint or the tuned lens cannot be read, or there is no vocabulary
            for a text.
        UsageError: neither a text nor tokens, or both; too few or too many; an id outside the
            vocabulary; no such decoder; an architecture without ln_f.

    Example:
        >>> read = gv.lens(port, "the cat sat on the")
        >>> read.reference.sites[:3]
        ('embed', 'h.0.resid_mid', 'h.0.resid_post')
        >>> read.reference.loss_nats.shape == (9, len(read.reference.tokens_T))
        True
        >>> [reading.name for reading in read.readings]
        ['reference', 'GPT2']
    """
    if (text is None) == (tokens is None):
        raise UsageError("a text or tokens are read, one of the two")
    (k,) = _whole("top", [top], least=1)
    options = _options(
        device=device, dtype=dtype, tokens=tokens, text=text, ignore_keys=ignore_keys
    )
    return lens_run(_path(checkpoint), _asked(port), options, k, decoder, attention=bool(attention))


def _asked(port: Judged | Sequence[Judged]) -> list[Any]:
    return list(port) if isinstance(port, list | tuple) else [port]


def _path(checkpoint: str | PathLike[str] | None) -> Path | None:
    return None if checkpoint is None else typed_path(os.fspath(checkpoint))


def _options(
    *,
    device: str,
    dtype: str | None,
    tokens: Sequence[int] | None,
    text: str | None,
    ignore_keys: str | Sequence[str],
    seed: int = 0,
    lengths: Sequence[int] | None = None,
    require: str | Sequence[str] = (),
) -> Options:
    """The options, refused where the command line would refuse them.

    Raises:
        UsageError: one of them makes no sense.
    """
    if device not in DEVICES:
        raise UsageError(f"device {device!r}: one of {', '.join(DEVICES)}")
    if dtype not in (None, *DTYPES):
        raise UsageError(f"dtype {dtype!r}: None, or one of {', '.join(DTYPES)}")
    if not isinstance(text, str | None):
        raise UsageError(f"text: a string, not {type(text).__name__}")
    (whole,) = _whole("seed", [seed], least=0)
    return Options(
        device=device,
        dtype=dtype,
        seed=whole,
        lengths=None if lengths is None else _whole("lengths", lengths, least=1),
        tokens=None if tokens is None else _whole("tokens", tokens, least=0),
        text=text,
        require=_strings(require),
        ignore_keys=_strings(ignore_keys),
    )


def _whole(name: str, values: Sequence[Any], least: int) -> tuple[int, ...]:
    """The same as Python's own integers, of which every report can be made.

    Raises:
        UsageError: one of them is no whole number, or too small.
    """
    try:
        found = tuple(operator.index(value) for value in values)
    except TypeError:
        raise UsageError(f"{name}: whole numbers are needed, in one dimension") from None
    if wrong := [value for value in found if value < least]:
        raise UsageError(f"{name}: {wrong[0]} is less than {least}")
    return found


def _strings(values: str | Sequence[str]) -> tuple[str, ...]:
    """One string is one, and not its letters."""
    return (values,) if isinstance(values, str) else tuple(values)
