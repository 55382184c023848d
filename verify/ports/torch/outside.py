"""A torch module of a family whose inside is not judged yet: what it returns is all that it shows.

Its parameters are not placed and its sites are not found, which is said of GPT-2 and GPT alone
today. What needs them reads *not examined*.
"""

from __future__ import annotations

from typing import Any

import torch

from gpt_verify.ports.torch.module import TorchModule

#: Members of a port that show its inside.
INSIDE = (
    "parameters",
    "activations",
    "float64",
    "gradients",
    "input_gradients",
    "tying",
    "copies",
    "lens",
)


class Outside(TorchModule):
    """See ``TorchModule``, of which it has the logits, the loss, the cache and the padding."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for member in INSIDE:
            setattr(self, member, None)

    def bare(self, logits: torch.Tensor) -> torch.Tensor:
        """What the module returns: nothing of it was padded or folded, as far as is known."""
        return logits
