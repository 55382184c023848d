"""Every fault of the catalogue as a port factory whose name says which fault, and where.

``gelu-erf@1`` is in layer 1, ``gelu-erf`` in every layer, ``a@0+b@2`` are two at once, and
``logits a@0`` shows nothing but its logits. A module's ``__getattr__`` makes them when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fault_ports import injected

from gpt_verify.checkpoint import Checkpoint


def __getattr__(name: str) -> Callable[[Checkpoint], Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    only_logits = name.startswith("logits ")

    def factory(checkpoint: Checkpoint) -> Any:
        faults = []
        for part in name.removeprefix("logits ").split("+"):
            fault, _, layers = part.partition("@")
            every = range(checkpoint.config.n_layer)
            faults.append((fault, [int(layers)] if layers else every))
        port = injected(checkpoint, *faults)
        return (lambda tokens: port.logits(tokens)) if only_logits else port

    return factory
