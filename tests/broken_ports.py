"""Port factories that are broken in one way each: in themselves, or in what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gpt_verify import reference
from gpt_verify.checkpoint import Checkpoint

Function = Callable[[Any], Any]


def _correct(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    rows = [reference.logits(checkpoint.tensors, checkpoint.config, row) for row in tokens]
    return np.stack(rows).astype(np.float32)


def _but(change: Callable[[np.ndarray], Any]) -> Callable[[Checkpoint], Function]:
    """A correct function whose result is changed."""

    def factory(checkpoint: Checkpoint) -> Function:
        return lambda tokens: change(_correct(checkpoint, tokens))

    return factory


def _set_last(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[-1, -1, -1] = value
        return logits

    return change


correct = _but(lambda x: x)
nan = _but(_set_last(np.nan))
infinite = _but(_set_last(np.inf))
all_nan = _but(lambda x: x * np.nan)
zeros = _but(np.zeros_like)
integers = _but(lambda x: x.astype(np.int64))
complex_numbers = _but(lambda x: x.astype(np.complex64))
wrong_vocabulary = _but(lambda x: x[..., :-1])
transposed = _but(lambda x: x.swapaxes(-1, -2))
wrong_batch = _but(lambda x: np.concatenate([x, x]))
no_batch = _but(lambda x: x[0])
last_position_only = _but(lambda x: x[:, -1:])
rows_reversed = _but(lambda x: x[::-1])
a_number = _but(lambda x: 1.5)
returns_none = _but(lambda x: None)
returns_text = _but(lambda x: "logits")
returns_ragged = _but(lambda x: [[1.0], [1.0, 2.0]])
probabilities = _but(lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True))
as_list = _but(lambda x: x.tolist())
as_torch = _but(lambda x: torch.from_numpy(x).requires_grad_())


def raises_midway(checkpoint: Checkpoint) -> Function:
    calls = 0

    def logits(tokens: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("the server\nwent away")
        return _correct(checkpoint, tokens)

    return logits


def _raising(
    when: Callable[[np.ndarray, int], bool], make: Callable[[], BaseException]
) -> Callable[[Checkpoint], Function]:
    """A correct function that raises on some calls."""

    def factory(checkpoint: Checkpoint) -> Function:
        calls = 0

        def logits(tokens: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if when(tokens, calls):
                raise make()
            return _correct(checkpoint, tokens)

        return logits

    return factory


whole_context = _raising(lambda x, n: x.shape[1] == 19, lambda: IndexError("out of range"))
one_token = _raising(lambda x, n: x.shape[1] == 1, lambda: ValueError("too short"))
batches = _raising(lambda x, n: len(x) > 1, lambda: RuntimeError("shapes differ"))
some_token = _raising(lambda x, n: bool((x == 3).any()), lambda: KeyError(3))
# Of which nothing is learnt about the port.
no_room = _raising(lambda x, n: x.shape[1] == 19, lambda: MemoryError())
no_room_in_words = _raising(
    lambda x, n: x.shape[1] == 19,
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte"),
)
cut_off = _raising(lambda x, n: x.shape[1] == 19, lambda: ConnectionError("reset"))
once = _raising(lambda x, n: n == 3, lambda: RuntimeError("a hiccup"))
gone = _raising(lambda x, n: n > 3, lambda: RuntimeError("gone"))


def raises(checkpoint: Checkpoint) -> Function:
    raise FileNotFoundError("weights.bin")


def none(checkpoint: Checkpoint) -> None:
    return None


def text(checkpoint: Checkpoint) -> str:
    return "a port"


def a_class(checkpoint: Checkpoint) -> type[nn.Module]:
    return nn.Module


def no_arguments() -> None: ...


def two_arguments(checkpoint: Checkpoint, more: int) -> None: ...


not_a_function = 3


class WritesTokens:
    """Changes the tokens that it was given; the judge's own must be safe from it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        logits = _correct(self.checkpoint, tokens)
        tokens[:] = 0
        return logits


class Empty(nn.Module):
    """A module without parameters, whose output is not a tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()

    def forward(self, ids: torch.Tensor) -> Any:
        return {"hidden": ids}


class WrongShape(nn.Module):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.wte = nn.Parameter(torch.from_numpy(np.array(checkpoint.tensors["wte"])))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.wte[ids]


class BreaksInside(nn.Module):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.wte = nn.Parameter(torch.from_numpy(np.array(checkpoint.tensors["wte"])))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.wte[ids] @ torch.zeros(3, 5)
