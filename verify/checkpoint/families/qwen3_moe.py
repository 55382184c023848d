"""Qwen 3 with experts: Yang et al. 2025, section 2. Every layer has them."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config
from gpt_verify.reference.architecture import Experts


def read(keys: Keys) -> Config:
    keys.only(use_sliding_window=False, decoder_sparse_step=1, mlp_only_layers=[])
    keys.take("sliding_window", "max_window_layers", default=None)

    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        count = keys.integer("num_experts", "num_local_experts", default=128)
        chosen = keys.integer("num_experts_per_tok", default=8)
        experts = Experts(count, chosen, keys.flag("norm_topk_prob", False))
        width = keys.integer("moe_intermediate_size", default=768)
        return {"qk_norm": "head", "experts": experts, "n_inner": width}

    return like_llama(keys, "qwen3_moe", change=change)


FAMILY = Family(
    "qwen3_moe",
    read,
    {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 44,
        "moe_intermediate_size": 40,
        "rope_theta": 100.0,
        "num_experts": 5,
        "num_experts_per_tok": 2,
    },
    "Qwen3MoeForCausalLM",
)
