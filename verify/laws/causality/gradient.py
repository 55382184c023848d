"""The law of causality by gradient: what is predicted early does not depend on what comes later.

d loss_i / d input_j is exactly zero for j > i. The forward pass may be causal where the backward
pass is not: a fused attention has a kernel for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.laws.causality.boundaries import AFTER, RUNGS, SHORT, WORK, powers_of_two
from gpt_verify.laws.causality.sight import Sight
from gpt_verify.laws.law import a_whole_context
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.port import FLOAT64_COPY, INPUT_GRADIENTS
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

Floats = NDArray[np.floating]

LAW = "causality.gradient"
#: A derivative takes about as long as this many passes: forward, and back to inputs and weights.
PASSES = 3


@dataclass(frozen=True)
class _Leak:
    """The largest derivative that should be zero."""

    position: int
    source: int
    channel: int
    got: float


def takes(config: Config) -> int:
    """Bytes of this law: of the longest sequence what a forward pass takes, and as much again for
    what comes back to it; the table, widened where that is, and what comes back to it by its two
    ends."""
    if config.n_ctx == 1:
        return 0
    longest = max(length for length, _ in _tried(config))
    tables = (8 + 2 * 4) * config.n_vocab * config.n_embd
    return 2 * a_whole_context(replace(config, n_ctx=longest)) + tables


def check_causal_gradient(subject: Subject) -> Iterator[Finding]:
    """Every position of a short sequence, and the last ones before the edge of a tile."""
    config = subject.config
    if config.n_ctx == 1:
        raise NotExamined("a context of one token has nothing that comes later")
    if config.n_vocab == 1:
        raise NotExamined("a vocabulary of one token: the loss is zero whatever the input is")
    said, reached = [], False
    for length, positions in _tried(config):
        runs = _Gradients(subject, length)
        for position in positions:
            reached |= runs.look(position)
        if runs.worst is not None:
            yield runs.finding()
            return
        said.append(f"{len(positions)} positions of {length} tokens")
    if not reached:
        # Nothing is propagated back, or the loss is saturated: the law of the gradient tells.
        raise NotExamined("the derivatives are zero at the earlier inputs as well")
    words = f"loss at {' and '.join(said)}: derivatives at all later inputs are exactly zero"
    yield Finding(LAW, Status.PASSED, words)


def _tried(config: Config) -> list[tuple[int, list[int]]]:
    """Lengths, and the positions whose loss is differentiated: those before a power of two."""
    n_ctx, every = config.n_ctx, parameter_count(config)
    short = min(SHORT, n_ctx)
    positions = [power - 1 for power in powers_of_two(n_ctx - 1)]
    if PASSES * (len(positions) + 1) * n_ctx * every <= WORK:
        long = sorted({*positions, n_ctx - 2})
        first = list(range(short - 1))
        return [(short, first), (n_ctx, long)] if n_ctx > short else [(short, first)]
    length = min(RUNGS[0] + AFTER, n_ctx)
    return [(length, sorted({0, *(rung - 1 for rung in RUNGS if rung < length), length - 2}))]


class _Gradients:
    """Derivatives of the loss at single positions of one sequence."""

    def __init__(self, subject: Subject, length: int) -> None:
        self._subject = subject
        self._tokens = subject.tokens(1, length)
        self._sees = np.zeros((length, length), np.bool_)
        self._tried = np.zeros_like(self._sees)
        self.worst: _Leak | None = None

    def look(self, position: int) -> bool:
        """Note what leaks into the loss at a position; whether it depends on anything."""
        gradient_TD = self._gradient(position)
        later_SD = gradient_TD[position + 1 :]
        self._tried[position, position + 1 :] = True
        self._sees[position, position + 1 :] = (later_SD != 0).any(axis=-1)
        at, channel = np.unravel_index(int(np.argmax(np.abs(later_SD))), later_SD.shape)
        got = float(later_SD[at, channel])
        if got and (self.worst is None or abs(got) > abs(self.worst.got)):
            self.worst = _Leak(position, position + 1 + int(at), int(channel), got)
        return bool(gradient_TD[: position + 1].any())

    def _gradient(self, position: int) -> Floats:
        """In the declared precision, or where that overflows, in float64."""
        port, shape = self._subject.port, (self._tokens.shape[1], self._subject.config.n_embd)
        with ExitStack() as stack:
            for again in (False, True):
                if again:
                    if not (float64 := self._subject.offers.get(FLOAT64_COPY)):
                        break
                    port = stack.enter_context(float64())
                found = port.offers()[INPUT_GRADIENTS](self._tokens, position)
                if found.shape != shape:
                    raise ValueError(f"derivatives of shape {list(found.shape)}, not {list(shape)}")
                if np.isfinite(found).all():
                    return found
        raise NotExamined(f"the derivatives of the loss at {position} are not finite")

    def finding(self) -> Finding:
        """What leaks, and how."""
        assert self.worst is not None, "something leaks"
        leak = self.worst
        words = Sight(self._sees, self._tried, self._subject.config.n_layer).describe()
        message = (
            f"d loss[{leak.position}] / d input[{leak.source}, {leak.channel}] = {leak.got:.9g}, "
            f"should be 0; {words}"
        )
        details = {"leaking": int(self._sees.sum()), "tried": int(self._tried.sum())}
        return Finding(LAW, Status.FAILED, message, None, None, None, details)
