"""Llama: Touvron et al. 2023; Grattafiori et al. 2024, section 3.2."""

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    return like_llama(
        keys, "llama", change=lambda sizes, head: {"bias_mlp": keys.flag("mlp_bias", False)}
    )


FAMILY = Family(
    "llama",
    read,
    {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 40,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
    "LlamaForCausalLM",
)
