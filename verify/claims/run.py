"""One run of the ledger: every chosen claim put to the evidence, and what became of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint import need_gpt2, open_checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Decided, Kind, Measured
from gpt_verify.claims.debates import DEBATES, Debate
from gpt_verify.claims.evidence import EVIDENCE
from gpt_verify.claims.ledger import chosen, ledger
from gpt_verify.claims.transformers_code import TransformersCode, installed
from gpt_verify.errors import GptVerifyError, described
from gpt_verify.judging.judge import one_blas_thread
from gpt_verify.judging.run import environment, sha256
from gpt_verify.port import NotExamined
from gpt_verify.reference.weights import parameter_count
from gpt_verify.shown import Shown
from gpt_verify.text import number


@dataclass(frozen=True, repr=False)
class ClaimsReport(Shown):
    """Every claim that was asked for.

    Attributes:
        checkpoint: ``path``, ``config``, ``parameters``, ``files`` (name → sha256), ``released``.
        claims: in the order of the ledger, or as asked.
        environment: versions and platform.
        repeat: the command line.
    """

    checkpoint: dict[str, Any]
    claims: tuple[Decided, ...]
    environment: dict[str, Any]
    repeat: str

    @property
    def debates(self) -> list[Debate]:
        """Those of which every claim is here."""
        here = {decided.claim.id for decided in self.claims}
        return [d for d in DEBATES if all(name in here for name in ledger() if d.has(name))]

    @property
    def debate(self) -> Debate | None:
        """The one that the whole report is about."""
        about = (d for d in self.debates if all(d.has(one.claim.id) for one in self.claims))
        return next(about, None)

    @property
    def unasserted(self) -> list[Decided]:
        """Those about OpenAI's weights that were measured on others, and so not asserted."""
        return [decided for decided in self.claims if decided.unasserted]

    @property
    def contradicted(self) -> list[Decided]:
        """Those on which the evidence says something else than what is expected."""
        return [decided for decided in self.claims if decided.contradicted]

    @property
    def unjudged(self) -> list[Decided]:
        """Those that could not be judged."""
        return [decided for decided in self.claims if decided.measured is None]

    @property
    def exit_status(self) -> int:
        """0 all as expected, 1 evidence contradicts an expected verdict, 2 could not judge."""
        if self.contradicted:
            return 1
        return 2 if self.unjudged or not self.claims else 0


def claims_run(
    checkpoint: Path | None = None,
    ids: Sequence[str] = (),
    text: str | None = None,
    interpreters: Sequence[str] = (),
    ignore_keys: Sequence[str] = (),
) -> ClaimsReport:
    """Decide claims on a checkpoint.

    Args:
        checkpoint: a directory of either format; None takes the one that ships with the package.
        ids: of claims, or what they begin with (`tie`); none takes all.
        text: in the place of the prose that claims about weights are measured on.
        interpreters: further Pythons whose transformers is examined.
        ignore_keys: keys of the checkpoint's configuration that do not alter what is computed.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UsageError: no such claim, or another model than the claims are about.
        LedgerError: the ledger is not whole.
    """
    opened = open_checkpoint(checkpoint, ignore_keys)
    need_gpt2(opened, "the claims are")
    code = [*installed(), *map(TransformersCode, interpreters)]
    words = _arguments(checkpoint, text, interpreters, ignore_keys)
    with Case(opened, code=code, text=text) as case:
        return report_on(case, ids, words)


def report_on(
    case: Case, ids: Sequence[str] = (), words: Sequence[str] = ("gpt-verify", "claims")
) -> ClaimsReport:
    """Decide claims with what a case has at hand.

    Args:
        case: of a checkpoint.
        ids: of claims, or what they begin with (`tie`); none takes all.
        words: of the command line that repeats it; ids come after the second.

    Raises:
        UsageError: no such claim.
        LedgerError: the ledger is not whole.
    """
    opened, asked = case.checkpoint, chosen(ids)
    size = case.released
    with one_blas_thread():
        decided = tuple(decide(claim, case, size is not None, words) for claim in asked)
    return ClaimsReport(
        checkpoint={
            "path": str(opened.path),
            "format": opened.format,
            "config": opened.config.as_dict(),
            "parameters": parameter_count(opened.config),
            "files": sha256(opened.files),
            "released": size,
        },
        claims=decided,
        environment=environment(),
        repeat=shlex.join([*words[:2], *ids, *words[2:]]),
    )


def decide(
    claim: Claim,
    case: Case,
    on_released: bool = False,
    words: Sequence[str] = ("gpt-verify", "claims"),
) -> Decided:
    """Put one claim to its evidence. What that raises is no verdict.

    Args:
        claim: the claim.
        case: what its evidence is handed.
        on_released: the checkpoint has the size of a released one, so that a claim about its
            weights must come out as expected.
        words: of the command line that repeats it; the claim's id comes after the second.
    """
    function = EVIDENCE[claim.id]
    name = f"{function.__module__}:{function.__name__}"
    repeat = shlex.join([*words[:2], claim.id, *words[2:]])
    try:
        measured = function(case)
    except (NotExamined, GptVerifyError) as missing:
        return Decided(claim, None, name, missing=str(missing), repeat=repeat, exception=missing)
    except Exception as error:
        return Decided(claim, None, name, missing=described(error), repeat=repeat, exception=error)
    asserted = on_released and claim.kind is Kind.WEIGHTS and claim.released is not None
    return Decided(claim, measured, name, asserted, "", _answer(claim, measured), repeat)


def _answer(claim: Claim, measured: Measured) -> str:
    """The paragraph with its numbers."""
    return claim.answer.format_map({k: _Figure(v) for k, v in measured.numbers.items()})


class _Figure:
    """A number as a reader wants it; a format of its own where the answer asks for one."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, wanted: str) -> str:
        value = self._value
        if wanted:
            return format(value, wanted)
        if isinstance(value, bool | str):
            return str(value)
        if isinstance(value, int):
            return f"{value:,}"
        return number(value) if isinstance(value, float) else str(value)


def _arguments(
    checkpoint: Path | None,
    text: str | None,
    interpreters: Sequence[str],
    ignore_keys: Sequence[str],
) -> list[str]:
    words = ["gpt-verify", "claims"]
    if checkpoint is not None:
        words += ["--checkpoint", str(checkpoint)]
    words += [f"--ignore-key={key}" for key in ignore_keys]
    if text is not None:
        words += [f"--text={text}"]
    for python in interpreters:
        words += ["--python", python]
    return words
