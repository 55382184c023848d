"""One port of a request, judged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt_verify.judging.checking import Elsewhere
from gpt_verify.judging.judge import judge
from gpt_verify.judging.options import chosen_inputs
from gpt_verify.judging.progress import Progress
from gpt_verify.judging.requirements import requirements

if TYPE_CHECKING:
    from gpt_verify.findings import PortReport
    from gpt_verify.judging.selection import Request
    from gpt_verify.numerics.weights import SharedWeights

#: Checks for which the sites of a port are compared.
SITED = ("architecture", "activations.local", "activations.cascaded")


def judge_one(
    asked: Request,
    spec: str,
    shared: SharedWeights,
    progress: Progress,
    checks: Collection[str] | None = None,
    elsewhere: Elsewhere | None = None,
    fail_fast: bool = False,
) -> PortReport:
    """The report of one port, with what was required of it and not examined.

    Args:
        asked: the request.
        spec: one of its ports.
        shared: what has been measured for its other ports.
        progress: told how far it is.
        checks: ids of those that are asked for; all where None.
        elsewhere: where some of its laws are checked.
        fail_fast: stop at the first failure.
    """
    options = asked.options
    judged = judge(
        spec,
        asked.checkpoint,
        chosen_inputs(asked.checkpoint, options),
        options.dtype,
        options.device,
        progress,
        options.seed,
        shared=shared,
        build=asked.builder(spec),
        laws=checks,
        sited=checks is None or any(law in SITED for law in checks),
        waivers=options.waivers.get(spec, {}),
        elsewhere=elsewhere,
        fail_fast=fail_fast,
    )
    missing = (needed.unmet(judged.findings) for needed in requirements(options.require))
    report = replace(judged, unmet=tuple(filter(None, missing)))
    progress.done(report)
    return report
