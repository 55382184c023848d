"""The table of tensors: which names a checkpoint has, with which shapes, for what.

The names are the variables of OpenAI's graph without the scope ``model/`` (gpt-2 ``src/model.py``:
``variable_scope`` at lines 30, 52, 102, 117, 125 and 149).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_verify.reference.config import Config


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint.

    Attributes:
        name: the checkpoint's own name, for example ``h0/attn/c_attn/w``.
        shape: as the model uses it; ``[in, out]`` for matrices.
        stored_shape: as the file has it. OpenAI's ``conv1d`` keeps a leading 1, the width of a
            convolution over one position: ``[1, in, out]``.
        role: ``embedding``, ``gain``, ``bias`` or ``matrix``.
    """

    name: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    role: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensor_table(config: Config) -> dict[str, TensorSpec]:
    """Every tensor of a model of this size, in the order in which the forward pass reads them."""
    d, f, v, p = config.n_embd, 4 * config.n_embd, config.n_vocab, config.n_ctx
    table: dict[str, TensorSpec] = {}

    def vector(name: str, role: str, size: int) -> None:
        table[name] = TensorSpec(name, (size,), (size,), role)

    def norm(scope: str) -> None:
        vector(f"{scope}/g", "gain", d)
        vector(f"{scope}/b", "bias", d)

    def conv1d(scope: str, n_in: int, n_out: int) -> None:
        table[f"{scope}/w"] = TensorSpec(
            f"{scope}/w", (n_in, n_out), (1, n_in, n_out), role="matrix"
        )
        vector(f"{scope}/b", "bias", n_out)

    table["wte"] = TensorSpec("wte", (v, d), (v, d), "embedding")
    table["wpe"] = TensorSpec("wpe", (p, d), (p, d), "embedding")
    for layer in range(config.n_layer):
        norm(f"h{layer}/ln_1")
        conv1d(f"h{layer}/attn/c_attn", d, 3 * d)
        conv1d(f"h{layer}/attn/c_proj", d, d)
        norm(f"h{layer}/ln_2")
        conv1d(f"h{layer}/mlp/c_fc", d, f)
        conv1d(f"h{layer}/mlp/c_proj", f, d)
    if config.norm_last:
        norm("ln_f")
    if not config.tied:
        table["lm_head"] = TensorSpec("lm_head", (v, d), (v, d), "embedding")
    return table


def parameter_count(config: Config) -> int:
    """Number of parameters; where lm_head is wte, it is counted once."""
    return sum(spec.size for spec in tensor_table(config).values())
