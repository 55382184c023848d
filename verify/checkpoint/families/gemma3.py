"""Gemma 3, its text: Gemma Team 2025, section 2; gemma_pytorch ``gemma/model.py``."""

from typing import Any

from gpt_verify.checkpoint.families.gemma2 import EXAMPLE
from gpt_verify.checkpoint.family import Family, like_llama, windows_by_turns
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import four_norms
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    keys.only(use_bidirectional_attention=False, attn_logit_softcapping=None)

    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        full = keys.integer("_sliding_window_pattern", "sliding_window_pattern", default=6)
        windows = windows_by_turns(keys, sizes["n_layer"], full, default=4096)
        local = keys.local_rope(head, 10_000.0)
        ropes = (keys.rope(head, 1_000_000.0, kind="full_attention"), local)
        return {
            "norm_branch": True,
            "scale_embed": True,
            "activation": keys.tanh_gelu(),
            "qk_norm": "head",
            "scale": keys.number("query_pre_attn_scalar", default=256.0) ** -0.5,
            "cap_logits": keys.number("final_logit_softcapping", default=None),
            "windows": windows,
            "ropes": tuple(ropes[window is not None] for window in windows),
        }

    return like_llama(keys, "gemma3_text", tied=True, plus_one=True, change=change)


MORE = {"rope_local_base_freq": 30.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
KEYS = {**EXAMPLE, **MORE, "sliding_window_pattern": 2}
FAMILY = Family("gemma3_text", read, KEYS, "Gemma3ForCausalLM", lambda _: four_norms())
