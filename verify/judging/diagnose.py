"""``gpt-verify diagnose``: what is wrong with one port, and proof that nothing else is."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.diagnosis.left_over import left_over
from gpt_verify.diagnosis.proof import Injected, Proof, named_faults, prove
from gpt_verify.errors import GptVerifyError, described
from gpt_verify.explanation import Explanation
from gpt_verify.findings import Finding, PortReport, Verdict
from gpt_verify.inputs import Input
from gpt_verify.judging.judge import judge, one_blas_thread
from gpt_verify.judging.options import chosen_inputs
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.run import Progress, Silent
from gpt_verify.judging.selection import Request
from gpt_verify.laws.subject import NotExamined
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.ports import registry


@dataclass(frozen=True)
class Diagnosed:
    """One port, and why it fails.

    Attributes:
        port: what ``gpt-verify run`` says of it.
        injected: the faults that were named and change a forward pass, each with its place.
        proof: the port against the reference with these faults; None where there are none, or it
            could not be made.
        no_proof: why it could not be made, or None.
        unexplained: the sites and tensors that are wrong by themselves and no fault explains.
        left: failures that the named faults do not account for.
        repeat: the command line that says it again.
    """

    port: PortReport
    injected: tuple[Injected, ...]
    proof: Proof | None
    no_proof: str | None
    unexplained: tuple[Explanation, ...]
    left: tuple[Finding, ...]
    repeat: str

    @property
    def complete(self) -> bool:
        """Everything that fails is accounted for, and the proof holds where one is needed."""
        if self.port.verdict is not Verdict.REFUTED or not self.port.causes:
            return False
        proved = self.proof is not None and self.proof.holds if self.injected else True
        return proved and not self.unexplained and not self.left

    @property
    def exit_status(self) -> int:
        """0 nothing to explain; 1 refuted, explained or not; 2 could not judge."""
        return {Verdict.VERIFIED: 0, Verdict.REFUTED: 1, Verdict.UNJUDGED: 2}[self.port.verdict]


def diagnose_run(asked: Request, progress: Progress | None = None) -> Diagnosed:
    """Judge a port, name what is wrong, and compare it with the reference that has it.

    Args:
        asked: a request for one port.
        progress: told how far the run is.

    Raises:
        UsageError: options that make no sense.
    """
    opened, options, (spec,) = asked.checkpoint, asked.options, asked.specs
    inputs = chosen_inputs(opened, options)
    shared = SharedWeights(opened.tensors, record=False)
    report = judge(
        spec,
        opened,
        inputs,
        options.dtype,
        options.device,
        progress or Silent(),
        options.seed,
        shared=shared,
    )
    injected = tuple(named_faults(report, opened.config))
    proof, no_proof = None, None
    if injected:
        try:
            proof = _proved(asked, injected, inputs, shared)
        except (GptVerifyError, NotExamined) as e:
            no_proof = str(e)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # whatever a port raises when it is run once more
            no_proof = described(e)
    elif any(cause.fault in FORMS for cause in report.causes):
        no_proof = "what was read off the port's numbers is not predicted for others"
    left = tuple(left_over(report, proof)) if report.verdict is Verdict.REFUTED else ()
    unexplained = tuple(e for e in report.explanations if e.best is None)
    repeat = asked.repeat("diagnose")
    return Diagnosed(report, injected, proof, no_proof, unexplained, left, repeat)


def _proved(
    asked: Request, injected: tuple[Injected, ...], inputs: list[Input], shared: SharedWeights
) -> Proof:
    (spec,), options = asked.specs, asked.options
    port = registry.build(spec, asked.checkpoint, options.dtype, options.device)  # type: ignore[arg-type]
    try:
        subject = prepare(port, asked.checkpoint, shared).subject(options.seed)
        with one_blas_thread():
            return prove(subject, injected, inputs)
    finally:
        port.close()
