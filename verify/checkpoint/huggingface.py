"""Read a Hugging Face directory: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path

from verify.checkpoint import Checkpoint

#: OpenAI's leaf → torch's: gains and matrices are both called ``weight``.
LEAF = {"w": "weight", "g": "weight", "b": "bias"}


def stored_name(name: str) -> str:
    """``h0/attn/c_attn/w`` → ``h.0.attn.c_attn.weight``: transformers' name, without the prefix.

    transformers ``models/gpt2/convert_gpt2_original_tf_checkpoint_to_pytorch.py`` and, until
    version 4, ``load_tf_weights_in_gpt2`` in ``models/gpt2/modeling_gpt2.py``.
    """
    *scopes, leaf = name.split("/")
    if not scopes:
        return f"{leaf}.weight"
    if scopes[0] != "ln_f":
        scopes[0] = f"h.{scopes[0][1:]}"
    return ".".join([*scopes, LEAF[leaf]])


def open_checkpoint(path: Path) -> Checkpoint:
    raise NotImplementedError
