"""BLOOM: BigScience Workshop 2022, section 3.2. ALiBi, and a norm after the embeddings."""

from gpt_verify.checkpoint.family import Family, sizes
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import Places, by_head, linears
from gpt_verify.reference import Architecture, Config
from gpt_verify.reference.architecture import Norm


def read(keys: Keys) -> Config:
    keys.only(apply_residual_connection_post_layernorm=False, n_inner=None)
    own = Architecture(
        norm_first=True,
        norm_last=True,
        norm=Norm(epsilon=keys.number("layer_norm_epsilon", default=1e-5)),
        norm_embed=True,
        table=False,
        alibi=True,
        fused=False,
        activation="gelu_bloom",
    )
    return keys.config("bloom", sizes(keys), own, keys.flag("tie_word_embeddings", True))


NORMS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
MLP = {"mlp/c_fc": "mlp.dense_h_to_4h", "mlp/c_proj": "mlp.dense_4h_to_h"}
WITHIN = {**NORMS, **MLP, "attn/o": "self_attention.dense"}


def places(config: Config) -> Places:
    at = "transformer"
    around = {"wte": f"{at}.word_embeddings", "ln_f": f"{at}.ln_f", "lm_head": "lm_head"}
    heads = by_head(f"{at}.h.#.self_attention.query_key_value", config)
    embed = {"ln_embed": f"{at}.word_embeddings_layernorm"}
    return {**around, **embed, **linears(f"{at}.h", WITHIN), **heads}


FAMILY = Family("bloom", read, {}, "BloomForCausalLM", places, "transformer.", ("eager",))
