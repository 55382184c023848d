"""Qwen 2: Yang et al. 2024, section 2.2. Queries, keys and values have biases."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama, windows_of_qwen
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        windows = windows_of_qwen(keys, sizes["n_layer"])
        return {"bias_qkv": True, "bias_out": False, "bias": False, "windows": windows}

    return like_llama(keys, "qwen2", change=change)


FAMILY = Family(
    "qwen2",
    read,
    {
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "rope_theta": 100.0,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "Qwen2ForCausalLM",
)
