"""transformers' model through ``torch.compile``.

What a compiled model computes can be seen at its end only: whoever looks inside, with hooks or by
watching the dispatcher, makes torch run it uncompiled. So this port shows its weights, its logits
and its loss, and no sites, rather than those of another program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import TOKENIZERS, TRAINING, Capability, Dtype, Floats, Parameter, Port, Tokens
from gpt_verify.ports.huggingface import huggingface


def compiled(checkpoint: Checkpoint, dtype: Dtype | None = None, device: str = "cpu") -> Port:
    """The port ``huggingface``, with torch's fused attention, compiled.

    Raises:
        MissingDependency: transformers or torch is not installed.
    """
    return Compiled(checkpoint, dtype, device)


class Compiled(Port):
    """A module, compiled once for every shape of its input."""

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> None:
        self._eager = huggingface(checkpoint, "sdpa", dtype, device)
        import torch

        self.name, self.dtype, self.device = "compiled", self._eager.dtype, device
        self._compiled = torch.compile(self._eager.module, dynamic=True)
        own: Sequence[Capability[Any]] = (TRAINING, TOKENIZERS)
        for capability in own:
            if how := self._eager.offers().get(capability):
                self.offer(capability, how)

    def logits(self, tokens: Tokens) -> Floats:
        from gpt_verify.ports.torch.trace import to_numpy

        return to_numpy(self._run(tokens).logits)

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return float(self._run(tokens, labels).loss)

    def parameters(self) -> Iterator[Parameter]:
        return self._eager.parameters()

    def close(self) -> None:
        import torch

        self._compiled = None
        self._eager.close()
        # What was compiled is kept by torch until it is told otherwise.
        torch.compiler.reset()

    def _run(self, tokens: Tokens, labels: Tokens | None = None) -> Any:
        import torch

        def tensor(ids: Tokens) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self.device)

        more = {} if labels is None else {"labels": tensor(labels)}
        with torch.no_grad():
            return self._compiled(tensor(tokens), use_cache=False, **more)
