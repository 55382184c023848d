"""All claims, each with its evidence."""

from __future__ import annotations

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
    """The claims of these ids, all where there is none.

    Raises:
        UsageError: no such claim.
    """
    known = ledger()
    asked = list(dict.fromkeys(ids))
    if unknown := [name for name in asked if name not in known]:
        near = sorted(name for name in known if name.split("-")[0] == unknown[0].split("-")[0])
        hint = ", ".join(near or sorted({name.split("-")[0] for name in known}))
        raise UsageError(
            f"no claim {one_line(unknown[0])}; there is: {hint}{nearest(unknown[0], known)}"
        )
    return [known[name] for name in asked] or list(known.values())
