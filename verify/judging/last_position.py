"""Ports that return the logits of the last position only, as code for generation does.

Such a port is no less the model for that: what it says after each prefix can be compared. The laws
that need all positions of one call are not examined, and the report says how to show them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt_verify.inputs import revealing_lengths
from gpt_verify.port import (
    GRADIENTS,
    INPUT_GRADIENTS,
    LAST,
    LAST_ONLY,
    LENS,
    MASKED,
    PADDED,
    PADDED_AT,
    STEP,
    STEP_PADDED,
    STEP_PADDED_AT,
    Floats,
    NotExamined,
    Port,
    Tokens,
)
from gpt_verify.reference.config import Config

LastLogits = Callable[[Tokens], Floats]

#: Tokens of a sequence whose positions are all asked for, a call for each; of a longer one that
#: would take too long.
MOST = 64

#: What the report says, and by what such a port returns the logits of all positions.
REMARKS = (
    f"{LAST_ONLY}: compared after prefixes of every input; what needs all positions of one call is "
    "not examined. To have that examined, return the logits of all positions, or call it so:",
    "lambda tokens: np.stack([np.asarray(port(tokens[:, :n])).reshape(len(tokens), -1) "
    "for n in range(1, tokens.shape[1] + 1)], axis=1)",
)


class LastPositionOnly(Exception):
    """The port that is running turned out to return the logits of the last position only."""


def looks_so(shape: Sequence[int], tokens: Tokens, config: Config) -> bool:
    """Whether logits of this shape, [B, V] or [B, 1, V], may be those of the last position."""
    rows, length = tokens.shape
    return tuple(shape) == (rows, config.n_vocab) or (
        length > 1 and tuple(shape) == (rows, 1, config.n_vocab)
    )


def returns_the_last_only(port: Port, config: Config) -> bool:
    """Ask a port for a few rows of another number of tokens, so that no shape stands for two."""
    length = min(3, config.n_ctx)
    rows = 3 if length == 2 else 2
    tokens = np.arange(rows * length).reshape(rows, length) % config.n_vocab
    try:
        return looks_so(np.shape(port.logits(tokens)), tokens, config)
    except Exception:  # what it raises is found again where it is judged
        return False


def ask_by_prefixes(port: Port) -> None:
    """Make ``logits`` return those of all positions of a short sequence, one call for each, and
    ``last`` what the port returns. What would need more in one call is not asked for."""
    run = port.logits

    def last(tokens: Tokens) -> Floats:
        returned = np.array(run(tokens))
        if returned.ndim == 3 and returned.shape[1] == 1:
            return np.asarray(returned[:, 0])
        return returned

    def logits(tokens: Tokens) -> Floats:
        if tokens.shape[1] > MOST:
            raise NotExamined(f"{LAST_ONLY}: {tokens.shape[1]} would take as many calls")
        return after(last, tokens, range(tokens.shape[1]))

    port.by_prefixes = True
    port.offer(LAST, last)
    port.logits = logits  # type: ignore[method-assign]
    port.withdraw(GRADIENTS, INPUT_GRADIENTS, STEP, LENS, PADDED, PADDED_AT)
    port.withdraw(MASKED, STEP_PADDED, STEP_PADDED_AT)


def after(last: LastLogits, tokens: Tokens, positions: Sequence[int]) -> Floats:
    """The logits at some positions, [B, N, V], each the last of a call with what comes before."""
    return np.stack([last(tokens[:, : at + 1]) for at in positions], axis=1)


def asked(length: int) -> list[int]:
    """The positions of a sequence at which the logits are compared: those of revealing lengths."""
    return [n - 1 for n in revealing_lengths(length)]
