"""Gemma: Gemma Team 2024 (arXiv 2403.08295), section 2; gemma_pytorch ``gemma/model.py``."""

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    keys.only(use_bidirectional_attention=None)
    given = {"scale_embed": True, "activation": keys.tanh_gelu()}
    return like_llama(keys, "gemma", tied=True, plus_one=True, change=lambda *_: given)


FAMILY = Family(
    "gemma",
    read,
    {
        "num_key_value_heads": 1,
        "head_dim": 10,
        "intermediate_size": 40,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 100.0,
    },
    "GemmaForCausalLM",
)
