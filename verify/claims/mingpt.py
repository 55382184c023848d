"""A GPT-2 with a head of its own, as minGPT has it: what can be said of that design, by example.

minGPT (Karpathy, 2020) is no package that could be installed; like it, this model has an embedding
and, apart from it, a linear layer of the same dimensions without bias. The rest is the plain model
of ``gpt_verify.faults.model``.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from gpt_verify.checkpoint import Checkpoint


def untied(checkpoint: Checkpoint) -> Any:
    """The model; its parameter ``head`` holds wte's values in memory of its own."""
    import torch

    from gpt_verify.faults.model import build

    model: Any = build(checkpoint)
    model.head_weight = torch.nn.Parameter(model.wte.detach().clone())
    model.head = MethodType(lambda self, x: x @ self.head_weight.T, model)
    return model
