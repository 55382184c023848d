"""GPT-2 written out by hand: the third party that tells which of two ports is wrong.

GPT and other families of decoders are variations of it (``reference.architecture``).

Every array name ends in the letters of its dimensions, and every einsum uses the same letters:

    T  position in the sequence (target: the position that reads)
    S  position in the sequence (source: the position that is read)
    D  residual stream                       config.n_embd
    H  head                                  config.n_head
    G  head of keys and values               config.n_kv, which divides H
    K  channel within a head                 config.head_size
    R  pair of channels that are turned      config.rope(layer).size // 2
    C  the three parts q, k, v side by side  3 * config.n_embd
    F  hidden layer of an MLP                config.n_inner
    E  expert                                config.keys.experts.count
    V  vocabulary                            config.n_vocab
    P  position embedding table              config.n_ctx
    X  heads side by side                    H K, or G K

The mathematics has no batch axis: a batch is a property to check, not a dimension to carry.
The package imports NumPy and nothing else, and never learns from a port.
"""

from gpt_verify.reference.architecture import Architecture, ConfigError
from gpt_verify.reference.branches import Weights
from gpt_verify.reference.config import ARCHITECTURES, GPT1, RELEASED, Config
from gpt_verify.reference.model import forward, logits
from gpt_verify.reference.weights import TensorSpec, parameter_count, tensor_table

__all__ = [
    "ARCHITECTURES",
    "GPT1",
    "RELEASED",
    "Architecture",
    "Config",
    "ConfigError",
    "TensorSpec",
    "Weights",
    "forward",
    "logits",
    "parameter_count",
    "tensor_table",
]
