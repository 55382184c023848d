"""OPT: Zhang et al. 2022; metaseq ``metaseq/models``. Positions begin at row 2 of their table."""

from gpt_verify.checkpoint.family import Family, sizes
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import linears
from gpt_verify.reference import Architecture, Config


def read(keys: Keys) -> Config:
    found = sizes(keys)
    keys.only(
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        word_embed_proj_dim=found["n_embd"],
    )
    own = Architecture(
        norm_first=True,
        norm_last=True,
        table_offset=2,
        fused=False,
        activation=keys.activation("activation_function", default="relu"),
        n_inner=keys.integer("ffn_dim"),
    )
    return keys.config("opt", found, own, keys.flag("tie_word_embeddings", True))


NORMS = {"ln_1": "self_attn_layer_norm", "ln_2": "final_layer_norm"}
PARTS = {f"attn/{part}": f"self_attn.{part}_proj" for part in "qkv"}
MLP = {"mlp/c_fc": "fc1", "mlp/c_proj": "fc2"}
WITHIN = {**NORMS, **PARTS, "attn/o": "self_attn.out_proj", **MLP}
AT = "model.decoder"
AROUND = {"ln_f": f"{AT}.final_layer_norm", "lm_head": "lm_head"}
TABLES = {"wte": f"{AT}.embed_tokens", "wpe": f"{AT}.embed_positions"}
PLACES = {**TABLES, **AROUND, **linears(f"{AT}.layers", WITHIN)}
FAMILY = Family("opt", read, {"ffn_dim": 40}, "OPTForCausalLM", lambda _: PLACES, "model.")
