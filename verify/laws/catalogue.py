"""Every fault, by name."""

from __future__ import annotations

from gpt_verify.faults import (
    attention,
    attention_heads,
    attention_mask,
    attention_positions,
    embeddings,
    gelu,
    head,
    linear,
    norm,
    norm_place,
    residual,
    weights,
)
from gpt_verify.faults.fault import Fault
from gpt_verify.laws.batch import faults as batch
from gpt_verify.laws.cache import faults as cache
from gpt_verify.laws.determinism import faults as determinism
from gpt_verify.laws.gradient import faults as gradient
from gpt_verify.laws.loss import faults as loss
from gpt_verify.laws.padding import faults as padding
from gpt_verify.laws.positions import faults as positions
from gpt_verify.laws.precision import faults as precision
from gpt_verify.laws.tokenizer import faults as tokenizer
from gpt_verify.laws.tying import faults as tying
from gpt_verify.reference.config import Config

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
