"""GPT-2 written out by hand: the third party that tells which of two ports is wrong.

GPT is a variation of it (``reference.config.ARCHITECTURES``).

Every array name ends in the letters of its dimensions, and every einsum uses the same letters:

    T  position in the sequence (target: the position that reads)
    S  position in the sequence (source: the position that is read)
    D  residual stream                       config.n_embd
    H  head                                  config.n_head
    K  channel within a head                 config.n_embd // config.n_head
    C  the three parts q, k, v side by side  3 * config.n_embd
    F  hidden layer of the MLP               4 * config.n_embd
    V  vocabulary                            config.n_vocab
    P  position embedding table              config.n_ctx

The mathematics has no batch axis: a batch is a property to check, not a dimension to carry.
The package imports NumPy and nothing else, and never learns from a port.
"""

from gpt_verify.reference.config import ARCHITECTURES, GPT1, RELEASED, Config, ConfigError
from gpt_verify.reference.model import Weights, forward, logits
from gpt_verify.reference.weights import TensorSpec, parameter_count, tensor_table

__all__ = [
    "ARCHITECTURES",
    "GPT1",
    "RELEASED",
    "Config",
    "ConfigError",
    "TensorSpec",
    "Weights",
    "forward",
    "logits",
    "parameter_count",
    "tensor_table",
]
