"""What a run makes of the calls of a port: its logits, kept, and the same call once more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gpt_verify.errors import PortError
from gpt_verify.inputs import Input
from gpt_verify.laws.determinism.check import Determinism
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.port import LAST, Floats, Tokens, Visit

if TYPE_CHECKING:
    from gpt_verify.port import Port


def kept(port: Port, value: object) -> Floats:
    """A copy of logits, because a port may use its memory again."""
    copy: Floats = np.array(value)
    if copy.dtype == object:
        raise PortError(f"{port.name}: returned {type(value).__name__}, not an array of numbers")
    return copy


def visited(activations: Callable[[Tokens, Visit], Floats], visit: Visit, tokens: Tokens) -> Floats:
    """The logits of a run that is watched."""
    return activations(tokens, visit)


def again(
    port: Port, item: Input, first: Floats, repeats: Determinism, logits: LogitsComparison
) -> None:
    """Run a port for the second time; what differs from the first is compared as well.

    Args:
        port: what is judged.
        item: the input.
        first: the logits of the first run, [B, T, V].
        repeats: takes both, and says whether they are the same bits.
        logits: takes the second ones where they are not.
    """
    second, at = returned(port, item.tokens), None
    if port.by_prefixes:
        at = [item.tokens.shape[1] - 1]
    once_more = partial(returned, port, item.tokens)
    if not repeats.add(item.name, item.tokens, first, second, once_more):
        logits.add_again(item.tokens, second, at=at)


def returned(port: Port, tokens: Tokens) -> Floats:
    """The logits of one call: of all positions, or where there are no others, of the last, [B, 1,
    V]."""
    if port.by_prefixes:
        return port.offers()[LAST](tokens)[:, None]
    return port.logits(tokens)
