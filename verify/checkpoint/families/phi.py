"""Phi-1.5 and 2: Li et al. 2023, section 2.1."""

from gpt_verify.checkpoint.family import Family, plain_config
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import linears
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    keys.only(qk_layernorm=False)
    return plain_config(
        keys, "phi", partial=0.5, default="gelu_new", parallel=1, bias=True, bias_head=True
    )


WITHIN = {
    "ln_1": "input_layernorm",
    **{f"attn/{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn/o": "self_attn.dense",
    "mlp/c_fc": "mlp.fc1",
    "mlp/c_proj": "mlp.fc2",
}
PLACES = {
    "wte": "model.embed_tokens",
    **linears("model.layers", WITHIN),
    "ln_f": "model.final_layernorm",
    "lm_head": "lm_head",
}
EXAMPLE = {
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "partial_rotary_factor": 0.34,
    "rope_theta": 100.0,
}
FAMILY = Family("phi", read, EXAMPLE, "PhiForCausalLM", lambda config: PLACES)
