"""Mixtral: Jiang et al. 2024, section 2."""

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import llama
from gpt_verify.reference import Config
from gpt_verify.reference.architecture import Experts


def read(keys: Keys) -> Config:
    window = keys.integer("sliding_window", default=None)
    count = keys.integer("num_local_experts", "num_experts", default=8)
    experts = Experts(count, keys.integer("num_experts_per_tok", default=2))
    given = {"bias": False, "windows": (window,), "experts": experts}
    return like_llama(keys, "mixtral", False, 1e-5, 1_000_000.0, change=lambda *_: given)


AT = "block_sparse_moe.experts.@"
EXPERTS = {"mlp/experts/@/gate": f"{AT}.w1", "mlp/experts/@/up": f"{AT}.w3"}
FAMILY = Family(
    "mixtral",
    read,
    {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 40,
        "rope_theta": 100.0,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "MixtralForCausalLM",
    lambda config: llama(
        **EXPERTS, **{"mlp/experts/@/down": f"{AT}.w2", "mlp/router": "block_sparse_moe.gate"}
    ),
)
