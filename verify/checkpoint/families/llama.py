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
    released={
        "3.2-1B": {
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        }
    },
)
