"""Every fault, by name."""

from __future__ import annotations

from verify.faults import gelu
from verify.faults.fault import Fault

_FAMILIES = (gelu,)

#: Name → fault, in the order of the families.
CATALOGUE: dict[str, Fault] = {fault.name: fault for family in _FAMILIES for fault in family.FAULTS}
if len(CATALOGUE) != sum(len(family.FAULTS) for family in _FAMILIES):
    raise AssertionError("two faults have one name")
