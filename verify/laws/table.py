"""The laws, as their folders have them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from gpt_verify import laws
from gpt_verify.laws.law import Law, Part
from gpt_verify.reference.config import Config


def folders() -> Iterator[tuple[str, Law]]:
    """Each folder's name and its law, by name."""
    for found in pkgutil.iter_modules(laws.__path__):
        if found.ispkg:
            yield found.name, import_module(f"{laws.__name__}.{found.name}").LAW


#: In the order of the report.
LAWS: tuple[Law, ...] = tuple(law for _, law in sorted(folders(), key=lambda row: row[1].order))
#: What they say, one id after the other.
PARTS: tuple[Part, ...] = tuple(part for law in LAWS for part in law.parts)
if len({part.id for part in PARTS}) != len(PARTS):
    raise AssertionError("two parts of laws have one name")
#: What is checked for a port after it was run on the inputs.
CHECKS: tuple[Part, ...] = tuple(part for part in PARTS if part.check is not None)


def expected_checks(config: Config) -> list[tuple[str, str | None]]:
    """Every ``(finding id, site)`` that a run yields for each port, in the order of the report.

    A port that cannot show what a check needs still yields it, as not examined.
    """
    return [(part.id, site) for part in PARTS for site in part.sites(config)]
