"""The laws of tying: lm_head is wte, by value, in memory, in the graph, and after being copied.

By gradient: ``tied_gradient.py``. Through copies: ``tied_copies.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.laws.explain import agreed
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.table_rows import TableRows
from gpt_verify.laws.tying.ends import ends_of
from gpt_verify.laws.worst import Worst
from gpt_verify.matching.match import Matching, Placement
from gpt_verify.port import TYING, Parameter, StoredGraph
from gpt_verify.reference.config import Config

SITE = "logits"


def at_the_logits(config: Config) -> list[str | None]:
    """Where the laws of tying have their finding."""
    return [SITE]


@dataclass(frozen=True)
class Tables:
    """The matrices of a port that are wte.

    Attributes:
        wte: the one that was matched to it.
        names: every parameter in its memory, that one first.
        own: further matrices, each a head of its own.
    """

    wte: Placement
    names: tuple[str, ...]
    own: tuple[Placement, ...]

    def __str__(self) -> str:
        return " is ".join(self.names)


def tables_of(parameters: Sequence[Parameter], matching: Matching | None) -> Tables:
    """Find them.

    Raises:
        NotExamined: no parameter is wte.
    """
    found = [p for p in matching.placements if p.tensor == "wte"] if matching else []
    if not found:
        raise NotExamined("no parameter could be matched to wte")
    wte = next((p for p in found if not p.head), found[0])
    storage = next(p.storage for p in parameters if p.name == wte.parameter)
    shared = [p.name for p in parameters if p.storage == storage and p.name != wte.parameter]
    own = tuple(p for p in found if p is not wte)
    return Tables(wte, (wte.parameter, *sorted(shared)), own)


def check_value(subject: Subject) -> Iterable[Finding]:
    """Every matrix that stands for wte holds the same bits."""
    law = "tying.value"
    tables = tables_of(subject.parameters, subject.matching)
    if not tables.own:
        one = f"{tables}: " if len(tables.names) > 1 else f"{tables.wte.parameter}: "
        yield Finding(law, Status.PASSED, f"{one}one matrix, hence one value", SITE)
        return
    problems = differences(subject.parameters, tables, subject.config)
    if problems:
        message = f"{'; '.join(problems)}: the head is not tied"
        yield Finding(law, Status.FAILED, message, SITE)
    else:
        names = " and ".join(head.parameter for head in tables.own)
        message = f"{names} equals {tables.wte.parameter} bit for bit"
        yield Finding(law, Status.PASSED, message, SITE)


def check_storage(subject: Subject) -> Iterable[Finding]:
    """One piece of memory, which both ends read: a write through each of its names shows at both,
    in those tokens and in no others, and is undone."""
    law = "tying.storage"
    tables = tables_of(subject.parameters, subject.matching)
    if tables.own:
        heads = " and ".join(head.parameter for head in tables.own)
        message = f"{heads} is a matrix of its own, {tables.wte.parameter} another: not tied"
        copied = all(head.exact for head in tables.own)
        named = naming("head-copied" if copied else None)
        yield Finding(law, Status.FAILED, message, SITE, named=named)
        return
    writable = [p for p in _named(subject.parameters, tables.names) if p.write is not None]
    if not writable:
        raise NotExamined("its weights cannot be written to")
    problems: list[str] = []
    unseen: list[str] = []
    faults: set[str | None] = set()
    for parameter in writable:
        layout = transposed(parameter, tables, subject.parameters, subject.config)
        ends = ends_of(subject, parameter, layout)
        problems += ends.problems
        unseen += ends.unseen
        faults |= set(ends.faults)
    if problems:
        message = "; ".join(dict.fromkeys(problems))
        yield Finding(law, Status.FAILED, message, SITE, named=agreed(faults))
    elif unseen:
        raise NotExamined(f"no write can show in {' and '.join(dict.fromkeys(unseen))}")
    else:
        through = " and through ".join(p.name for p in writable)
        message = f"{tables}: a write through {through} shows in the lookup and in the logits"
        yield Finding(law, Status.PASSED, f"{message} of those tokens alone; undone", SITE)


def check_graph(subject: Subject) -> Iterable[Finding]:
    """In the graph that is run, one piece of memory feeds the lookup and the last product."""
    tied, description = subject.offers[TYING]()
    status = Status.PASSED if tied else Status.FAILED
    yield Finding("tying.graph", status, description, SITE)


def with_stored_graph(findings: Sequence[Finding], stored: StoredGraph) -> list[Finding]:
    """What a graph that came with the checkpoint says of tying, added to what the port's own said.

    Both must be tied; one that says nothing (it holds no forward pass) changes nothing.
    """
    law = "tying.graph"
    if stored.tied is None:
        return list(findings)
    others = [f for f in findings if f.id != law]
    words = f"stored graph: {stored.description}"
    found = Finding(law, Status.PASSED if stored.tied else Status.FAILED, words, SITE)
    for own in (f for f in findings if f.id == law and f.status is not Status.NOT_EXAMINED):
        status = Status.FAILED if own.status is Status.FAILED else found.status
        found = replace(own.saying(after=f"; {words}"), status=status)
    return [*others, found]


def differences(parameters: Sequence[Parameter], tables: Tables, config: Config) -> list[str]:
    """Heads of their own that do not hold the bits of wte, each in the grammar of all messages."""
    by_name = {p.name: p for p in parameters}
    shape_VD = (config.n_vocab, config.n_embd)
    problems = []
    for head in tables.own:
        head_rows, wte_rows = (
            TableRows(by_name[placement.parameter], shape_VD, placement.transposed)
            for placement in (head, tables.wte)
        )
        worst = Worst()
        for (at, head_RD), (_, wte_RD) in zip(head_rows.tiles(), wte_rows.tiles(), strict=True):
            worst.see(head_RD, wte_RD, at.start)
        if worst.unequal:
            problems.append(f"{head.parameter}{worst}; {worst.count} ({tables.wte.parameter})")
    return problems


def transposed(
    parameter: Parameter, tables: Tables, parameters: Sequence[Parameter], config: Config
) -> bool:
    """Whether a name in the memory of wte is [D, V]: by shape, and by content where that is
    square."""
    if parameter.name == tables.wte.parameter:
        return tables.wte.transposed
    if config.n_vocab != config.n_embd:
        return parameter.shape[-1] == config.n_vocab and config.n_vocab != 1
    (wte,) = _named(parameters, [tables.wte.parameter])
    same = np.array_equal(np.squeeze(parameter.read()), np.squeeze(wte.read()))
    return tables.wte.transposed == same


def _named(parameters: Sequence[Parameter], names: Sequence[str]) -> list[Parameter]:
    by_name = {p.name: p for p in parameters}
    return [by_name[name] for name in names]
