"""Ports for machines with a GPU, given to the command as ``gpu_ports.py:name``."""

from __future__ import annotations

import torch

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Port
from gpt_verify.ports.huggingface import huggingface


def tf32(checkpoint: Checkpoint) -> Port:
    """transformers' model in a process that lets float32 products be computed in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    return huggingface(checkpoint, "sdpa", device="cuda")
