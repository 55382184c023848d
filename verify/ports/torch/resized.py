"""A copy of a module with more rows in its vocabulary, or fewer, by transformers' method
``resize_token_embeddings``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import described
from gpt_verify.port import LOSS, NotExamined, Parameter, Port
from gpt_verify.ports.torch.copies import quietly
from gpt_verify.ports.torch.outputs import logits_of, member
from gpt_verify.ports.torch.parameter import parameter_of
from gpt_verify.ports.torch.styles import takes_of
from gpt_verify.ports.torch.trace import to_numpy
from gpt_verify.process.memory import require

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule


@contextmanager
def resized(port: TorchModule, rows: int) -> Iterator[Port]:
    """The capability ``RESIZED``. New rows may be drawn at random: the process draws what it would
    have drawn without.

    Raises:
        NotExamined: the module cannot be copied.
    """
    parameters = list(port.module.parameters())
    # The copy, and of a table the resized one and what its new rows are drawn from: the old one,
    # and how far that is from its mean.
    table = port.config.n_vocab * port.config.n_embd * max(t.itemsize for t in parameters)
    require(sum(tensor.nbytes for tensor in parameters) + 3 * table)
    try:
        module: Any = copy.deepcopy(port.module)
    except Exception as error:
        raise NotExamined(f"it cannot be copied: {described(error)}") from error
    with quietly(), torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module.resize_token_embeddings(rows)
    made = _Resized(port, module)
    try:
        yield made
    finally:
        made.close()


class _Resized(Port):
    """Whatever its parameters are, they are shown as they lie."""

    def __init__(self, port: TorchModule, module: Any) -> None:
        self.name, self.dtype, self.device = port.name, port.dtype, port.device
        self._module = module
        takes = takes_of(module)
        self._plain = {"use_cache": False} if "use_cache" in takes else {}
        if LOSS in port.offers() and "labels" in takes:
            self.offer(LOSS, self._loss)

    def special_ids(self) -> dict[str, int]:
        """How many rows its configuration says that there are."""
        size = getattr(getattr(self._module, "config", None), "vocab_size", None)
        return {"vocab_size": size} if type(size) is int else {}

    def logits(self, tokens: Tokens) -> Floats:
        with torch.no_grad():
            return to_numpy(logits_of(self._module(self._ids(tokens), **self._plain)))

    def parameters(self) -> Iterator[Parameter]:
        for name, tensor in self._module.named_parameters(remove_duplicate=False):
            yield parameter_of(name, tensor)

    def close(self) -> None:
        self._module = None

    def _loss(self, tokens: Tokens, labels: Tokens) -> float:
        with torch.no_grad():
            output = self._module(self._ids(tokens), labels=self._ids(labels), **self._plain)
        return float(member(output, "loss"))

    def _ids(self, ids: Tokens) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self.device)
