"""What a law is: its parts, each with a check, and the faults that it must refute.

A law is a folder beside this file, whose ``__init__.py`` says ``LAW = Law(...)``. All that is made
of the laws is made from the folders: what a run checks, the rows of docs/laws.md, the faults that
``gpt-verify power`` injects (``table.py``, ``catalogue.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_verify.faults.fault import Fault
from gpt_verify.findings import Finding
from gpt_verify.graph.derivatives import noise_bytes
from gpt_verify.laws.reference_gradient import LENGTH
from gpt_verify.laws.subject import Subject
from gpt_verify.port import LAST_ONLY, Capability
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

Check = Callable[[Subject], Iterable[Finding]]
Sites = Callable[[Config], Sequence[str | None]]
#: Tokens that a check asks for where it says nothing else.
_TOKENS = 128


def nowhere(config: Config) -> list[str | None]:
    """One finding, at no site."""
    return [None]


def every_model(config: Config) -> str | None:
    """It binds whatever the architecture is."""
    return None


def little(config: Config) -> int:
    """Bytes of a check that looks at short sequences: five versions of their logits, and what it
    keeps of a table while that is overwritten."""
    length = min(_TOKENS, config.n_ctx)
    return 4 * config.n_vocab * (5 * length + config.n_embd)


def a_whole_context(config: Config) -> int:
    """Bytes of a check that runs n_ctx tokens: three versions of their logits, and the patterns of
    a layer in the reference's two arithmetics, each with what its softmax makes on the way."""
    logits, patterns = config.n_ctx * config.n_vocab, config.n_head * config.n_ctx**2
    return 4 * 3 * logits + (8 + 4) * 3 * patterns


def derivatives(config: Config) -> int:
    """Bytes of a check that asks for derivatives: the table, its widened copy and its derivative in
    float64, and the noisy runs of the reference."""
    return 8 * 3 * config.n_vocab * config.n_embd + noise_bytes(config, LENGTH)


def every_gradient(config: Config) -> int:
    """Bytes of a check in which the port is trained: its parameters keep what comes back to them
    until the last lesson is over."""
    return derivatives(config) + 4 * parameter_count(config)


@dataclass(frozen=True)
class Part:
    """One check of a law.

    Attributes:
        id: of its findings: ``law`` or ``law.part``.
        check: checks it for a port. What it raises on inputs that every GPT-2 takes is a
            failure of the port; ``NotExamined`` is none. None where the findings are made while the
            port runs on the inputs of the run (``gpt_verify.judging.judge``).
        holds: what must hold, for docs/laws.md.
        needs: what a port must offer; without it the check is not examined.
        sites: where it has a finding.
        free: why models of this kind are free of it; None of those that it binds.
        writes: whether it writes to the port's weights, and so must put them back.
        history: whether it asks what the port was asked before, or what building it has done: it is
            checked in the process that has run the port on the inputs.
        in_one_call: whether it needs the logits, or the loss, of all positions of one call.
        takes: how many bytes it takes beside the port, estimated. It is not begun where fewer are
            free.
    """

    id: str
    check: Check | None
    holds: str
    needs: tuple[Capability[Any], ...] = ()
    sites: Sites = nowhere
    free: Callable[[Config], str | None] = every_model
    writes: bool = False
    history: bool = False
    in_one_call: bool = False
    takes: Callable[[Config], int] = little

    def hold(self, subject: Subject) -> list[Finding]:
        """What the check finds.

        Raises:
            NotExamined: the port cannot show what it needs.
        """
        assert self.check is not None, f"{self.id} is held while the port runs"
        return list(self.check(subject))

    def lacking(self, subject: Subject) -> str | None:
        """Why it cannot be checked for this port: what the port lacks, or the model's kind."""
        if why := self.free(subject.config):
            return why
        if self.in_one_call and subject.port.by_prefixes:
            return LAST_ONLY
        offers = subject.offers
        return next((need.lacking for need in self.needs if need not in offers), None)


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        title: the heading of its rows in docs/laws.md.
        order: where it stands in a report and on that page; laws of one number stand by name.
        parts: in the order in which they are judged.
        faults: which it must refute, and by which ``gpt-verify power`` measures it.
        follows: the folder of a law whose outcome it asks for: both are checked in one process.
        shares: the folder of a law whose runs it uses again: both are checked in one process where
            there are no more than two.
    """

    title: str
    order: int
    parts: tuple[Part, ...]
    faults: tuple[Fault, ...] = ()
    follows: str = ""
    shares: str = ""
