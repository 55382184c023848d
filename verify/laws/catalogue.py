"""Every fault, by name: of the forward pass (``gpt_verify.faults``), and of the laws."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from gpt_verify import faults
from gpt_verify.faults.fault import Fault
from gpt_verify.laws.table import LAWS
from gpt_verify.reference.config import Config


def _of_files() -> Iterator[Fault]:
    """``FAULTS`` of each file that has any; the others say what a fault is, and how it is injected.

    Those that import torch are not looked into: what they define is used in functions.
    """
    for found in pkgutil.iter_modules(faults.__path__):
        if found.name != "model":
            yield from getattr(import_module(f"{faults.__name__}.{found.name}"), "FAULTS", ())


_ALL = (*_of_files(), *(fault for law in LAWS for fault in law.faults))
#: Name → fault, by family.
CATALOGUE: dict[str, Fault] = {fault.name: fault for fault in _ALL}
if len(CATALOGUE) != len(_ALL):
    raise AssertionError("two faults have one name")


def faults_of(config: Config) -> dict[str, Fault]:
    """Those that such a model can have."""
    return {name: fault for name, fault in CATALOGUE.items() if fault.of(config)}
