"""Qwen 3: Yang et al. 2025, section 2. Queries and keys are normed, each head by itself."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama, windows_of_qwen
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        return {"qk_norm": "head", "windows": windows_of_qwen(keys, sizes["n_layer"])}

    return like_llama(keys, "qwen3", change=change)


FAMILY = Family(
    "qwen3",
    read,
    {"num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 40, "rope_theta": 100.0},
    "Qwen3ForCausalLM",
    released={
        "0.6B": {
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        }
    },
)
