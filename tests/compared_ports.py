"""Two states of one port: as it was, and after a change that is a regression."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import nn

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.ports.huggingface import huggingface


def port(checkpoint: Checkpoint) -> object:
    """The same name before and after; the state is an environment variable, as versions are."""
    module = huggingface(checkpoint, "eager").module
    state = os.environ.get("COMPARED_STATE", "correct")
    if state == "erf":
        module.transformer.h[1].mlp.act = nn.GELU()
    if state == "hidden":  # only its logits can be seen any more

        def logits(tokens: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                found: np.ndarray = module(torch.as_tensor(tokens)).logits.numpy()
            return found

        return logits
    if state == "broken":
        raise RuntimeError("the new version has no such class")
    return module
