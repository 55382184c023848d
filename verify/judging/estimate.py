"""How long a run will take, said before it begins: from the sizes, and a short calibration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from gpt_verify.judging.options import chosen_inputs
from gpt_verify.reference.weights import parameter_count
from gpt_verify.text import count

if TYPE_CHECKING:
    from gpt_verify.judging.selection import Request

#: Multiplications that a port takes for each parameter, whatever the inputs (the laws have their
#: own), and for each parameter and token of the inputs. The first fits docs/results/sizes.json on a
#: processor that makes 50e9 of them in a second; the second is estimated.
FOR_LAWS, FOR_TOKENS = 62_000, 14
#: The same for what does not depend on the size: of a tiny model most of the time is Python's.
FOR_A_PORT = 400e9
#: Of a matrix product by which the processor is measured: float32, one thread.
ROWS, INNER, COLUMNS = 256, 768, 3072
#: What another process adds, of what it does: it builds the port again, and shares the caches.
GAIN = 0.7


def multiplications(parameters: int, tokens: int) -> float:
    """What it takes to judge one port by every law."""
    return FOR_A_PORT + parameters * (FOR_LAWS + FOR_TOKENS * tokens)


def seconds(asked: Request, jobs: int, per_second: float | None = None) -> float:
    """How long a run will take.

    Args:
        asked: the run.
        jobs: processes.
        per_second: multiplications of one core; measured where None.
    """
    tokens = sum(item.tokens.size for item in chosen_inputs(asked.checkpoint, asked.options))
    parameters = parameter_count(asked.checkpoint.config)
    work = len(asked.specs) * multiplications(parameters, tokens)
    return work / (per_second or speed()) / (1 + GAIN * (jobs - 1))


def plan_of(asked: Request, jobs: int) -> tuple[str, float]:
    """One line for whoever waits, and the seconds that it speaks of."""
    inputs = chosen_inputs(asked.checkpoint, asked.options)
    tokens, takes = sum(item.tokens.size for item in inputs), seconds(asked, jobs)
    beside = f" in {jobs} processes" if jobs > 1 else ""
    words = f"{count(len(asked.specs), 'port')} on {count(len(inputs), 'input')}, {tokens:,} tokens"
    return f"{words}{beside}: {about(takes)}", takes


def speed() -> float:
    """Multiplications of one core in a second, float32: the best of a few products."""
    x, w = np.ones((ROWS, INNER), np.float32), np.ones((INNER, COLUMNS), np.float32)
    best = np.inf
    with threadpool_limits(limits=1, user_api="blas"):
        for _ in range(5):
            start = time.perf_counter()
            x @ w
            best = min(best, time.perf_counter() - start)
    return ROWS * INNER * COLUMNS / float(best)


def about(seconds: float) -> str:
    """``about 40 s``, ``about 3 min``, ``about 2 h``: no more exact than it is."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h"
