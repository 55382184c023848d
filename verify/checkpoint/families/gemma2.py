"""Gemma 2: Gemma Team 2024 (arXiv 2408.00118), section 2; gemma_pytorch ``gemma/model.py``."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama, windows_by_turns
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import four_norms
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    keys.only(use_bidirectional_attention=None)

    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        return {
            "norm_branch": True,
            "scale_embed": True,
            "activation": keys.tanh_gelu(),
            "scale": keys.number("query_pre_attn_scalar", default=256.0) ** -0.5,
            "cap": keys.number("attn_logit_softcapping", default=None),
            "cap_logits": keys.number("final_logit_softcapping", default=None),
            "windows": windows_by_turns(keys, sizes["n_layer"], full=2, default=4096),
        }

    return like_llama(keys, "gemma2", tied=True, plus_one=True, change=change)


EXAMPLE = {
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 40,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 100.0,
    "query_pre_attn_scalar": 7,
    "sliding_window": 5,
}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}
FAMILY = Family(
    "gemma2",
    read,
    {**EXAMPLE, **CAPS},
    "Gemma2ForCausalLM",
    lambda _: four_norms(),
    attention=("eager",),
)
