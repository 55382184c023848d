"""gpt-oss: OpenAI 2025; gpt-oss ``gpt_oss/torch/model.py``. Sinks, YaRN, experts with biases."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama, windows_by_turns
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import Places, llama, packed, vector
from gpt_verify.reference import Config
from gpt_verify.reference.architecture import Experts


def read(keys: Keys) -> Config:
    keys.only(hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0, attention_bias=True)

    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        count = keys.integer("num_local_experts", "num_experts", default=128)
        chosen = keys.integer("num_experts_per_tok", "experts_per_token", default=4)
        windows = windows_by_turns(keys, sizes["n_layer"], full=2, default=128)
        given = {"sinks": True, "activation": "swish_clamped", "bias": True, "bias_mlp": True}
        return {**given, "windows": windows, "experts": Experts(count, chosen, bias=True)}

    return like_llama(keys, "gpt_oss", epsilon=1e-5, theta=150_000.0, change=change)


def places(config: Config) -> Places:
    at = "model.layers.#"
    sinks = {"h#/attn/sinks": vector(f"{at}.self_attn.sinks")}
    return {**llama(**{"mlp/router": "mlp.router"}), **packed(f"{at}.mlp.experts", config), **sinks}


SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
RAMP = {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False}
HEADS = {"num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5, "intermediate_size": 40}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
EXAMPLE = {**HEADS, **EXPERTS, "rope_theta": 100.0, "rope_scaling": {**SCALING, **RAMP}}
FAMILY = Family("gpt_oss", read, EXAMPLE, "GptOssForCausalLM", places, attention=("eager",))
