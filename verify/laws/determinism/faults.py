"""Faults of what a port leaves behind or leaves on: other bits at the next call, training mode, and
settings and random states of the whole process. A plain pass may be right.

``gpt_verify.laws.determinism.check`` tells them apart, by what moves from call to call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.fault import AroundPort, Fault, Inject, InjectPort, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch

#: What noise adds, relative to one; what a dropout leaves out.
NOISE, DROPPED = 1e-6, 0.1


# Other bits


def _inject_after_mlp(change: Callable[[Any, Any], Any], model: Any, layers: Sequence[int]) -> None:
    """``change(mlp, what it made)`` in its place."""
    for block in model.blocks(layers):
        wrap(block.mlp, "forward", lambda self, right, x: change(self, right(x)))


def _noise(mlp: Any, x: Any) -> Any:
    return x + NOISE * torch.randn(x.shape, dtype=x.dtype)


def _mask_of_numpy(mlp: Any, x: Any) -> Any:
    kept = torch.from_numpy(np.random.random(tuple(x.shape)) >= DROPPED)
    return x * kept.to(x.dtype) / (1 - DROPPED)


def _mean_of_all_calls(mlp: Any, x: Any) -> Any:
    """As batch norm has it in training; begun again where the port is cast."""
    now = x.mean((0, 1)).detach()
    before = getattr(mlp, "mean", now)
    mlp.mean = torch.lerp(before.to(now.dtype), now, 0.1)
    return x - NOISE * mlp.mean


def _inject_dropouts(model: Any, layers: Sequence[int]) -> None:
    for block in model.blocks(layers):
        block.mlp.dropout = torch.nn.Dropout(DROPPED)
        wrap(block.mlp, "forward", lambda self, right, x: self.dropout(right(x)))


def _left_in_training_mode(port: Any, checkpoint: Checkpoint) -> None:
    port.module.train()


# The process


def _inject_at_calls(act: Callable[[], object], model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        act()
        return right(*args, **kwargs)

    wrap(model, "forward", forward)


def _inject_at_loading(act: Callable[[], object], model: Any, layers: Sequence[int]) -> None:
    act()


def _inject_threads(model: Any, layers: Sequence[int]) -> None:
    """Another number than there is: one, or two where there is one."""
    number = 1 + (torch.get_num_threads() == 1)
    _inject_at_calls(lambda: torch.set_num_threads(number), model, layers)


def _determinism(
    name: str,
    summary: str,
    law: str,
    in_model: Inject,
    seen: str = "",
    around_port: InjectPort | None = None,
) -> Fault:
    inject = AroundPort(around_port, in_model) if around_port else InModel(in_model, layered=False)
    return Fault(f"determinism-{name}", "determinism", summary, seen, inject, law=law)


_MODE, _STATE = "determinism.mode", "determinism.state"

FAULTS = (
    _determinism(
        "training-mode",
        "is left in training mode, as a whole or a part of it, so that its dropout acts",
        _MODE,
        _inject_dropouts,
        "model.eval() that was forgotten, or that a part does not obey",
        _left_in_training_mode,
    ),
    _determinism(
        "noise",
        "adds normal noise from torch's generator, whatever the mode is",
        _MODE,
        partial(_inject_after_mlp, _noise),
    ),
    _determinism(
        "foreign-draws",
        "computes with random numbers of NumPy or of Python, which no mode turns off and no seed "
        "of torch repeats",
        _MODE,
        partial(_inject_after_mlp, _mask_of_numpy),
    ),
    _determinism(
        "own-state",
        "computes something else at the next call although no random state of the process moves: "
        "by what it keeps from call to call, reads before it is written or sums in no fixed order, "
        "or by a generator of its own",
        "determinism",
        partial(_inject_after_mlp, _mean_of_all_calls),
    ),
    _determinism(
        "seeds",
        "seeds a generator of the whole process at every call, so that whoever draws draws the "
        "same",
        _STATE,
        partial(_inject_at_calls, lambda: torch.manual_seed(0)),
    ),
    _determinism(
        "draws",
        "draws random numbers at every call that change nothing of what it returns",
        _STATE,
        partial(_inject_at_calls, lambda: random.random()),
    ),
    _determinism(
        "default-dtype",
        "sets torch's default dtype, and does not set it back",
        _STATE,
        partial(_inject_at_calls, lambda: torch.set_default_dtype(torch.float64)),
    ),
    _determinism(
        "grad-mode",
        "turns gradients off for the whole process when it is loaded",
        _STATE,
        partial(_inject_at_loading, lambda: torch.set_grad_enabled(False)),
    ),
    _determinism(
        "threads",
        "sets torch's number of threads, and does not set it back",
        _STATE,
        _inject_threads,
    ),
    _determinism(
        "float32-products",
        "sets in what precision every float32 product of the process is computed, as in TF32",
        _STATE,
        partial(_inject_at_calls, lambda: torch.set_float32_matmul_precision("high")),
    ),
    _determinism(
        "numpy-errors",
        "sets what NumPy does about overflow and division by zero, for everybody",
        _STATE,
        partial(_inject_at_calls, lambda: np.seterr(all="ignore")),
    ),
    _determinism(
        "algorithms",
        "makes torch refuse what is not deterministic, in every later port too",
        _STATE,
        partial(_inject_at_calls, lambda: torch.use_deterministic_algorithms(True)),
    ),
)
