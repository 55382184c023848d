"""GPT-NeoX and Pythia: Black et al. 2022, section 2; Biderman et al. 2023."""

from gpt_verify.checkpoint.family import Family, plain_config
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import Places, by_head, linears
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    parallel = keys.flag("use_parallel_residual", True)
    bias = keys.flag("attention_bias", True)
    return plain_config(keys, "gpt_neox", 0.25, "gelu", 2 if parallel else 0, bias)


def places(config: Config) -> Places:
    within = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn/o": "attention.dense",
        "mlp/c_fc": "mlp.dense_h_to_4h",
        "mlp/c_proj": "mlp.dense_4h_to_h",
    }
    return {
        "wte": "gpt_neox.embed_in",
        **linears("gpt_neox.layers", within),
        **by_head("gpt_neox.layers.#.attention.query_key_value", config),
        "ln_f": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    }


MASKS = r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
EXAMPLE = {"intermediate_size": 40, "rotary_pct": 0.34, "rotary_emb_base": 100}
FAMILY = Family("gpt_neox", read, EXAMPLE, "GPTNeoXForCausalLM", places, "gpt_neox.", unread=MASKS)
