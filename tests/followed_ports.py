"""Ports with one mistake each, which many checks see."""

from __future__ import annotations

import torch

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.model import build
from gpt_verify.laws.catalogue import CATALOGUE


def erf(checkpoint: Checkpoint) -> torch.nn.Module:
    """The catalogue knows it, in both layers."""
    model = build(checkpoint)
    CATALOGUE["gelu-erf"].put_into(model, range(checkpoint.config.n_layer))
    return model


def unknown(checkpoint: Checkpoint) -> torch.nn.Module:
    """Nobody knows it."""
    model = build(checkpoint)
    for layer in range(checkpoint.config.n_layer):
        for block in model.blocks([layer]):
            act = block.mlp.act
            block.mlp.act = lambda x, act=act: act(x) + 0.01 * torch.sin(9 * x)
    return model


def lost_bias(checkpoint: Checkpoint) -> torch.nn.Module:
    """One tensor is wrong, and nothing else."""
    model = build(checkpoint)
    with torch.no_grad():
        next(iter(model.blocks([1]))).mlp.c_fc.bias.zero_()
    return model


def two(checkpoint: Checkpoint) -> torch.nn.Module:
    """Two mistakes that have nothing to do with each other."""
    model = lost_bias(checkpoint)
    CATALOGUE["norm-eps-1e-6"].put_into(model, [0])
    return model
