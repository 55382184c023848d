"""Which operation makes a site: the only place that knows operations by their names."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from gpt_verify.graph import operations
from gpt_verify.graph.operation import Operation
from gpt_verify.sites import Site

#: ``Site.operation`` → what it is. A new operation is a new file.
OPERATIONS: dict[str, Operation] = {
    found.name: import_module(f"{operations.__name__}.{found.name}").OPERATION
    for found in pkgutil.iter_modules(operations.__path__)
}


def made_by(site: Site) -> Operation:
    """The operation whose value this site is."""
    return OPERATIONS[site.operation]
