"""GPT-J: Wang and Komatsuzaki 2021; mesh-transformer-jax ``mesh_transformer/layers.py``."""

from gpt_verify.checkpoint.family import Family, sizes
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import linears
from gpt_verify.reference import Architecture, Config
from gpt_verify.reference.architecture import Norm, Rope


def read(keys: Keys) -> Config:
    own = Architecture(
        norm_first=True,
        norm_last=True,
        parallel=1,
        norm=Norm(epsilon=keys.number("layer_norm_epsilon", default=1e-5)),
        table=False,
        ropes=(Rope(10_000.0, keys.integer("rotary_dim"), pairs=True),),
        fused=False,
        bias_qkv=False,
        bias_out=False,
        bias_head=True,
        activation=keys.activation("activation_function", default="gelu_new"),
        n_inner=keys.integer("n_inner", default=None),
    )
    return keys.config("gptj", sizes(keys), own, keys.flag("tie_word_embeddings", False))


WITHIN = {
    "ln_1": "ln_1",
    **{f"attn/{part}": f"attn.{part}_proj" for part in "qkv"},
    "attn/o": "attn.out_proj",
    "mlp/c_fc": "mlp.fc_in",
    "mlp/c_proj": "mlp.fc_out",
}
AROUND = {"wte": "transformer.wte", "ln_f": "transformer.ln_f", "lm_head": "lm_head"}
PLACES = {**AROUND, **linears("transformer.h", WITHIN)}
MASKS = r".*\.attn\.(bias|masked_bias)"
EXAMPLE = {"n_inner": 40, "rotary_dim": 4}
MODEL, BASE, EAGER = "GPTJForCausalLM", "transformer.", ("eager",)
FAMILY = Family("gptj", read, EXAMPLE, MODEL, lambda _: PLACES, BASE, EAGER, MASKS)
