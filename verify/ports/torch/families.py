"""What is different where a torch module is of another family than GPT-2 and GPT."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import BackwardCFunction

from gpt_verify.port import (
    ACTIVATIONS,
    COPIES,
    FLOAT64_COPY,
    GRADIENTS,
    INPUT_GRADIENTS,
    LENS,
    PARAMETERS,
    TYING,
    Capability,
)
from gpt_verify.ports.torch.graph import HIDING
from gpt_verify.ports.torch.widening import on_weights_of, widening
from gpt_verify.reference.weights import tensor_table

if TYPE_CHECKING:
    from gpt_verify.port import Port
    from gpt_verify.ports.torch.module import TorchModule

#: What shows the inside of a port, found by its parameters.
INSIDE: Sequence[Capability[Any]] = (
    PARAMETERS,
    ACTIVATIONS,
    GRADIENTS,
    INPUT_GRADIENTS,
    TYING,
    COPIES,
    LENS,
)


def show_what_is_known(port: TorchModule) -> None:
    """Hide what cannot be judged of this module yet, so that it reads *not examined*.

    A float64 that is one takes a module that is built anew (``float64_copy``), and nobody has said
    how. Where several of the checkpoint's tensors are one parameter and are not found in it (a
    stack of experts in an order of its own), the inside is not seen.
    """
    port.withdraw(FLOAT64_COPY)
    port.not_in_float64 = (
        f"a module of {port.config.architecture} keeps norms, softmax and rotary tables in float32 "
        "where it is cast to float64, and nobody says how another one is built"
    )
    table = tensor_table(port.config)
    found = {place.tensor for place in port.matching.placements if place.exact}
    found |= {assembly.tensor for assembly in port.assemblies}
    if len(port.pieces) < len(table) and not set(table) <= found:
        port.withdraw(*INSIDE)


@contextmanager
def float64_copy(port: TorchModule, build: Callable[[], torch.nn.Module]) -> Iterator[Port]:
    """The port in float64, with its tables and whatever it asks for in float32.

    Args:
        port: any.
        build: makes another module of its kind, whatever its weights.
    """
    module = on_weights_of(build, port.module)
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any, **more: Any) -> Any:
        with widening():
            return inner(*args, **more)

    module.forward = forward
    made = port.like(module)
    try:
        with made.widened():
            _by_hand(port, made)
            yield made
    finally:
        made.close()


def _by_hand(port: TorchModule, made: TorchModule) -> None:
    """Derivatives written by hand are not asked for in float64."""
    if name := _derivative_by_hand(made):
        # Its constants have the digits that the author's precision needs, and no more.
        made.withdraw(GRADIENTS, INPUT_GRADIENTS)
        said = f"{name} has a derivative written by hand: gradients are judged in {port.dtype} only"
        port.remarks = tuple(dict.fromkeys((*port.remarks, said)))


def _derivative_by_hand(port: TorchModule) -> str | None:
    """An operation of a module whose derivative is not torch's; None where there is none."""
    length = min(2, port.config.n_ctx)
    # A graph keeps its leaves, which are to be the narrow parameters.
    with torch.enable_grad(), port.differentiable(lambda leaf, value: None):
        pending = [port.run(np.zeros((1, length), np.int64)).grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(node, "is_cast", False) or node.name() == HIDING
        if isinstance(node, BackwardCFunction) and not own:
            return str(node.name().removesuffix("Backward"))
        pending += [source for source, _ in node.next_functions]
    return None
