"""All claims, each with its evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import ModuleType

from gpt_verify.claims import (
    activation,
    attention,
    embedding,
    heads,
    lens,
    lens_weights,
    loss,
    norms,
    positions,
    tokenizer,
    tying,
    tying_code,
    undecidable,
)
from gpt_verify.claims.claim import Claim
from gpt_verify.claims.evidence import EVIDENCE, Evidence, LedgerError
from gpt_verify.errors import UsageError
from gpt_verify.text import nearest, one_line

#: One file for each topic, in the order in which they are printed.
TOPICS: tuple[ModuleType, ...] = (
    tying,
    tying_code,
    embedding,
    attention,
    heads,
    positions,
    norms,
    activation,
    loss,
    tokenizer,
    lens,
    lens_weights,
    undecidable,
)


def ledger() -> dict[str, Claim]:
    """Every claim by its id.

    Raises:
        LedgerError: a claim without evidence, evidence without a claim, or an id twice.
    """
    return complete((claim for topic in TOPICS for claim in topic.CLAIMS), EVIDENCE)


def complete(claims: Iterable[Claim], evidence: Mapping[str, Evidence]) -> dict[str, Claim]:
    """The claims by their ids, after a look at whether each has its evidence.

    Raises:
        LedgerError: as `ledger`.
    """
    found: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in found:
            raise LedgerError(f"{claim.id}: two claims")
        found[claim.id] = claim
    if orphans := sorted(set(found) - set(evidence)):
        raise LedgerError(f"no evidence: {', '.join(orphans)}")
    if orphans := sorted(set(evidence) - set(found)):
        raise LedgerError(f"evidence without a claim: {', '.join(orphans)}")
    return found


def chosen(ids: Iterable[str]) -> list[Claim]:
    """The claims of these ids, each once, or all where none is asked for.

    An id may be cut short: ``tie`` is every claim that begins so.

    Raises:
        UsageError: no claim is called so or begins so.
    """
    known = ledger()
    asked = {claim: known[claim] for name in ids for claim in _named(name, known)}
    return list((asked or known).values())


def _named(name: str, known: Mapping[str, Claim]) -> list[str]:
    """The claim of this id, or those that begin so; case and the kind of hyphen are overlooked."""
    wanted = "-".join(re.split(r"[\s_-]+", name.strip().casefold()))
    if wanted in known:
        return [wanted]
    begun = [claim for claim in known if claim.startswith(wanted)] if wanted.strip("-") else []
    if not begun:
        raise UsageError(_unknown(name, wanted, known))
    return begun


def _unknown(name: str, wanted: str, known: Mapping[str, Claim]) -> str:
    """One line: what there is, and what may be meant."""
    group = wanted.split("-")[0]
    groups = sorted({claim.split("-")[0] for claim in known})
    near = sorted(claim for claim in known if claim.split("-")[0] == group)
    within = [claim for claim in known if len(wanted) > 2 and wanted in claim]
    hint = nearest(wanted, [*known, *groups]) or nearest("".join(within[:1]), within)
    return f"no claim {one_line(name)}; there is: {', '.join(near or groups)}{hint}"
