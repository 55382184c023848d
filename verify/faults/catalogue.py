"""Every fault, by name."""

from __future__ import annotations

from reference.config import Config
from verify.faults import (
    attention,
    attention_heads,
    attention_mask,
    attention_positions,
    batch,
    cache,
    determinism,
    embeddings,
    gelu,
    gradient,
    head,
    linear,
    loss,
    norm,
    norm_place,
    padding,
    positions,
    precision,
    residual,
    tokenizer,
    tying,
    weights,
)
from verify.faults.fault import Fault

_FAMILIES = (
    gelu,
    norm,
    norm_place,
    attention,
    attention_mask,
    attention_positions,
    attention_heads,
    linear,
    residual,
    embeddings,
    head,
    weights,
    loss,
    cache,
    batch,
    precision,
    padding,
    positions,
    gradient,
    determinism,
    tying,
    tokenizer,
)

#: Name → fault, in the order of the families.
CATALOGUE: dict[str, Fault] = {fault.name: fault for family in _FAMILIES for fault in family.FAULTS}
if len(CATALOGUE) != sum(len(family.FAULTS) for family in _FAMILIES):
    raise AssertionError("two faults have one name")


def faults_of(config: Config) -> dict[str, Fault]:
    """Those that a model of this architecture can have."""
    firsts = (None, config.norm_first)
    return {name: fault for name, fault in CATALOGUE.items() if fault.norm_first in firsts}
