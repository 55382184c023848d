"""One port, all the laws: from a spec to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import (
    LONGEST_REFUSAL,
    GptVerifyError,
    ReferenceChanged,
    located,
    shortened,
)
from gpt_verify.findings import Cause, Finding, PortReport, Status, unanchored
from gpt_verify.graph.stored import self_check
from gpt_verify.inputs import Input
from gpt_verify.judging.checking import Elsewhere
from gpt_verify.judging.examination import Examination, Steps
from gpt_verify.judging.waivers import waive
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.ports import registry
from gpt_verify.process.memory import reuse
from gpt_verify.process.replaced import Watch
from gpt_verify.process.state import Loading, snapshot
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites
from gpt_verify.text import listing

if TYPE_CHECKING:
    from gpt_verify.port import Port


Floats = NDArray[np.floating]


def judge(
    spec: str,
    checkpoint: Checkpoint,
    inputs: Sequence[Input],
    dtype: str | None,
    device: str,
    progress: Steps,
    seed: int = 0,
    *,
    build: Callable[[], Port] | None = None,
    laws: Collection[str] | None = None,
    shared: SharedWeights | None = None,
    sited: bool = True,
    waivers: Mapping[str, str] = MappingProxyType({}),
    elsewhere: Elsewhere | None = None,
    fail_fast: bool = False,
) -> PortReport:
    """Build a port, check every law for it, and close it.

    Whatever the port raises ends up in the report's ``error``, in one line, with the traceback
    chained for ``--debug``; findings made before that are kept.

    Args:
        spec: what stands after ``--port``.
        checkpoint: what the port is a port of.
        inputs: the tokens that it is run on.
        dtype: the precision to run it in; its own where None.
        device: ``cpu`` or ``cuda``, as torch names it.
        progress: is told of each step.
        seed: of whatever the laws draw.
        build: makes the port, where it is made by no spec; ``spec`` is its name then.
        laws: ids of the laws to check for it (``gpt_verify.laws.table``) beside its weights, its
            sites and its logits; all where None. The others are reported as not examined.
        shared: where several ports are judged against one checkpoint: what one has had measured,
            the next one need not.
        sited: whether its sites are compared; those are reported as not examined otherwise.
        waivers: law → reason, beside those of the port itself.
        elsewhere: other processes, in which some of its laws are checked.
        fail_fast: stop at the first failure; the rest is reported as not examined.
    """
    start = time.perf_counter()
    reuse()
    work = Examination(checkpoint, inputs, progress, seed, laws, shared, sited, elsewhere)
    work.fail_fast = fail_fast
    error = name = None
    remarks: tuple[str, ...] = ()
    declared, where, source = dtype or "float32", device, "checkpoint"
    watch = Watch()
    work.glance = watch.glance
    try:
        require_itself(watch, "before the port was built")
        before = snapshot()
        made = build or partial(registry.build, spec, checkpoint, dtype, device)  # type: ignore[arg-type]
        work.build = made
        port = made()
        name, declared, where, source = port.name, port.dtype, port.device, port.provenance()
        waivers, remarks = {**waivers, **port.waivers}, tuple(port.remarks)
        work.waived = waivers.keys()
        work.loading = Loading(before, snapshot())
        require_itself(watch, f"by {name}")
        progress.port(name, work.steps(port))
        try:
            with one_blas_thread():
                work.examine(port)
        finally:
            source = port.provenance()
            port.close()
            require_itself(watch, f"by {name}")
    except ReferenceChanged as e:
        error, work.exception = shortened(e, LONGEST_REFUSAL), e
        work.forget()
    except GptVerifyError as e:
        error, work.exception = shortened(e, LONGEST_REFUSAL), e
    except (KeyboardInterrupt, SystemExit):
        watch.replaced()
        raise
    except BaseException as e:  # GeneratorExit and CancelledError of a port among them
        error, work.exception = f"{name or spec}: {located(e)}", e
    findings, waived, unused = waive(work.diagnosis.annotated(work.complete(error)), waivers)
    if unused and error is None:
        error = f"{name}: {unused}"
    if error is None and (missing := unanchored(findings)):
        error = f"{name}: {missing}"
    diverges = first_divergence(findings, checkpoint.config)
    causes = tuple(standing(work.diagnosis.causes, findings))
    return PortReport(
        name=name or spec,
        dtype=declared,
        device=where,
        weights_from=source,
        findings=tuple(findings),
        waived=waived,
        remarks=(*remarks, *work.remarks),
        error=error,
        first_divergence=diverges,
        explained_by=tuple(dict.fromkeys(cause.fault for cause in causes)),
        causes=causes,
        explanations=tuple(work.diagnosis.explanations.values()),
        mapping=work.mapping,
        logits_floors=work.logits_floors,
        seconds=round(time.perf_counter() - start, 2),
        exception=work.exception,
    )


def first_divergence(findings: Sequence[Finding], config: Config) -> str | None:
    """The earliest site at which something is wrong by itself; else where it first shows."""
    order = {name: i for i, name in enumerate(sites(config))}
    failed = [f for f in findings if f.status is Status.FAILED and f.site in order]
    own = [f for f in failed if f.id in ("architecture", "activations.local", "weights.values")]
    return min((f.site for f in own or failed if f.site), key=order.__getitem__, default=None)


def standing(causes: Sequence[Cause], findings: Sequence[Finding]) -> list[Cause]:
    """Those that explain something. What a port has waived fails no more, and explains nothing."""
    failed = {f.id for f in findings if f.status is Status.FAILED}
    left = [replace(c, laws=tuple(law for law in c.laws if law in failed)) for c in causes]
    return [c for c, whole in zip(left, causes, strict=True) if c.where or not whole.where]


def one_blas_thread() -> AbstractContextManager[object]:
    """Leave the cores to the port.

    NumPy's BLAS and torch each keep a pool of threads that wait by spinning. Taking turns, as the
    oracle and a port do, each spins while the other works: measured, that doubles the time.
    """
    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def require_itself(watch: Watch, when: str) -> None:
    """The reference is what it was, by its parts and by what it computes. What was replaced is put
    back, so that the next port can be judged.

    Raises:
        ReferenceChanged: it is not.
    """
    if names := watch.replaced():
        raise ReferenceChanged(f"the reference was changed {when}: {listing(names)} replaced")
    if words := self_check():
        raise ReferenceChanged(
            f"the reference was changed {when}, in a way that is unknown: {words}"
        )
