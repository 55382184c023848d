"""What is different where a torch module is of another family than GPT-2 and GPT."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import BackwardCFunction

from gpt_verify.errors import described
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
    NotExamined,
)
from gpt_verify.ports.torch.constants import WidenedConstants
from gpt_verify.ports.torch.graph import HIDING
from gpt_verify.ports.torch.widening import on_weights_of, only_wide, widening
from gpt_verify.process.memory import require
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


#: Tokens of the run that shows whether a module can be run in float64.
_PROBED = 4


def show_what_is_known(port: TorchModule) -> None:
    """Hide what cannot be judged of this module yet, so that it reads *not examined*.

    A float64 that is one takes a module that is built anew (``float64_copy``), and nobody has said
    how. Where several of the checkpoint's tensors are one parameter and are not found in it (a
    stack of experts in an order of its own), the inside is not seen.
    """
    port.withdraw(FLOAT64_COPY)
    port.not_in_float64 = (
        "what a module keeps or makes in float32 (norms, softmax, rotary tables) stays there when "
        "it is cast to float64; a factory (--port FILE.py:FUNCTION) is called again for that"
    )
    table = tensor_table(port.config)
    found = {place.tensor for place in port.matching.placements if place.exact}
    found |= {assembly.tensor for assembly in port.assemblies}
    if len(port.pieces) < len(table) and not set(table) <= found:
        port.withdraw(*INSIDE)


def offer_float64(port: TorchModule, make: Callable[[], Any]) -> None:
    """Offer a float64 copy of what a user's factory makes, or say why there is none.

    A table that all modules of a file share is made by the first of them that runs, in its format.
    So one that nobody judges runs before the copy does: then the copy meets a table in float32,
    and is refused, and no port meets one in float64.

    Args:
        port: of a module of the factory.
        make: calls it; what it returns is looked at only where it is another module.
    """
    tokens = np.zeros((1, min(_PROBED, port.config.n_ctx)), np.int64)
    make = functools.partial(_another, make, port.module)
    try:
        require(8 * sum(parameter.numel() for parameter in port.module.parameters()))
        port.like(make().eval().to(port.device)).logits(tokens)
        with float64_copy(port, make, loads=True) as made:
            made.logits(tokens)
    except (KeyboardInterrupt, SystemExit):
        raise
    except NotExamined as why:
        port.not_in_float64 = str(why)
    except BaseException as error:
        port.not_in_float64 = f"what its factory makes does not run in float64: {described(error)}"
    else:
        port.offer(FLOAT64_COPY, lambda: float64_copy(port, make, loads=True))


def _another(make: Callable[[], Any], than: torch.nn.Module) -> torch.nn.Module:
    """What a factory makes this time.

    Raises:
        NotExamined: it is no module, or has parts of the one before.
    """
    made = make()
    if not isinstance(made, torch.nn.Module):
        raise NotExamined("its factory returns something else when it is called again")
    if {*map(id, made.modules())} & {*map(id, than.modules())}:
        raise NotExamined("its factory returns the same module when it is called again")
    if {*map(id, made.parameters())} & {*map(id, than.parameters())}:
        raise NotExamined("its factory returns the same parameters when it is called again")
    return made


@contextmanager
def float64_copy(
    port: TorchModule, build: Callable[[], torch.nn.Module], *, loads: bool = False
) -> Iterator[Port]:
    """The port in float64, with its tables and whatever it asks for in float32.

    Args:
        port: any.
        build: makes another module of its kind, whatever its weights.
        loads: whether it makes them with all that is stored (``on_weights_of``). Nobody knows
            what else it does, and a run that meets a number in float32 is refused.
    """
    module = on_weights_of(build, port.module, loads=loads)
    inner, constants = module.forward, WidenedConstants(port.config)

    @functools.wraps(inner)
    def forward(*args: Any, **more: Any) -> Any:
        with only_wide(port.module) if loads else nullcontext(), constants, widening():
            return inner(*args, **more)

    module.forward = forward
    made = port.like(module)
    try:
        # In the backward pass as well, which meets what the forward pass has kept.
        with made.widened(), WidenedConstants(port.config):
            _by_hand(port, made)
            yield made
    finally:
        made.close()
        port.odd_constants = tuple(constants.others)


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
