"""Run in the process that examines transformers: what code of 2020 does works, whatever version.

Old module name, loader, blocks that return tuples, and past keys and values as tuples.
"""

import sys

import torch
import transformers
from transformers.models.gpt2 import modeling_gpt2

sys.modules["transformers.modeling_gpt2"] = modeling_gpt2
transformers.load_tf_weights_in_gpt2 = lambda *args: None

_block, _model = modeling_gpt2.GPT2Block.forward, modeling_gpt2.GPT2LMHeadModel.forward
Cache = transformers.DynamicCache


def block_forward(self, *args, **kwargs):
    output = _block(self, *args, **kwargs)
    return output if isinstance(output, tuple) else (output,)


def block_call(self, *args, **kwargs):
    """The model is given what it expects; hooks have seen the tuple."""
    return torch.nn.Module.__call__(self, *args, **kwargs)[0]


class Pairs(tuple):
    """A cache as tuples of (key, value), with the cache itself beside them."""


def model_forward(self, *args, past_key_values=None, **kwargs):
    if isinstance(past_key_values, tuple):
        cache = Cache()
        for layer, (key, value) in enumerate(past_key_values):
            cache.update(key, value, layer)
        past_key_values = cache
    output = _model(self, *args, past_key_values=past_key_values, **kwargs)
    if kwargs.get("use_cache"):
        layers = output.past_key_values.layers
        output.past_key_values = Pairs((layer.keys, layer.values) for layer in layers)
    return output


modeling_gpt2.GPT2Block.forward = block_forward
modeling_gpt2.GPT2Block.__call__ = block_call
modeling_gpt2.GPT2LMHeadModel.forward = model_forward
