"""The logit lens as users of transformers build it: from the hidden states that a model hands out.

Such a model returns n_layer + 1 of them with ``output_hidden_states=True``: the embedding, then the
stream after each block. The last one is not what its name says: transformers hands it out after
``ln_f``, so that a lens that norms every state norms this one twice. Which of the two it is is not
taken from anybody's documentation, but from the run: it is what left the last norm, bit for bit, or
it is not. Nothing else is known of classes or versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.port import LENS, NotExamined
from gpt_verify.ports.torch.outputs import member
from gpt_verify.ports.torch.trace import to_numpy

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule


def add_lens(port: TorchModule) -> None:
    """Give a port its ``lens``, where its module hands out hidden states on request and says which
    of its parts is the head (``get_output_embeddings``): the interface of transformers' models,
    whose version 5 no longer names the request among the arguments of ``forward``."""
    config = getattr(port.module, "config", None)
    if hasattr(config, "output_hidden_states") and hasattr(port.module, "get_output_embeddings"):
        port.offer(LENS, _HiddenStates(port).lens)


class _HiddenStates:
    """The states, read by the module's own last norm and head."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port

    def lens(self, tokens: Tokens) -> Iterator[tuple[str, Floats]]:
        """The capability ``Port.lens``. A module that hands out more or fewer states than it has
        blocks yields that many."""
        norm, head = self._norm(), self._port.module.get_output_embeddings()
        states, normed = self._states(tokens, norm)
        for layer, state in enumerate(states, start=-1):
            site = "embed" if layer < 0 else f"h.{layer}.resid_post"
            with torch.no_grad():
                last = layer == len(states) - 2
                logits = head(state if last and normed else norm(state))
            yield site, to_numpy(logits)

    def _states(self, tokens: Tokens, norm: torch.nn.Module) -> tuple[list[torch.Tensor], bool]:
        """The hidden states, and whether the last of them has been through the norm."""
        left: list[torch.Tensor] = []
        hook = norm.register_forward_hook(lambda module, args, output: left.append(output))
        ids = torch.as_tensor(np.ascontiguousarray(tokens, np.int64), device=self._port.device)
        try:
            with torch.no_grad():
                output = self._port.module(ids, output_hidden_states=True, use_cache=False)
        finally:
            hook.remove()
        states: Any = member(output, "hidden_states")
        if not states:
            raise NotExamined("no hidden states handed out")
        return list(states), bool(left) and torch.equal(states[-1], left[-1])

    def _norm(self) -> torch.nn.Module:
        """The module that holds ``ln_f``'s gain, by content or name, as everywhere."""
        gains = [p.parameter for p in self._port.matching.placements if p.tensor == "ln_f/g"]
        if not gains:
            raise NotExamined("no parameter is ln_f's gain")
        module: torch.nn.Module = self._port.module.get_submodule(gains[0].rpartition(".")[0])
        return module
