"""Mistral 7B: Jiang et al. 2023. Every layer of the first version has a window, later ones none."""

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    window = keys.integer("sliding_window", default=None)
    return like_llama(keys, "mistral", change=lambda *_: {"bias": False, "windows": (window,)})


FAMILY = Family(
    "mistral",
    read,
    {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 40,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "sliding_window": 5,
    },
    "MistralForCausalLM",
)
