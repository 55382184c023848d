"""GPT-Neo: Black et al. 2021; gpt-neo ``models/gpt2/gpt2.py``. Scores are not scaled."""

from gpt_verify.checkpoint.family import Family, sizes
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import linears
from gpt_verify.reference import Architecture, Config
from gpt_verify.reference.architecture import Norm


def read(keys: Keys) -> Config:
    found, window = sizes(keys), keys.integer("window_size", default=256)
    types = keys.take("attention_types", default=[[["global", "local"], found["n_layer"] // 2]])
    named = [kind for kinds, times in types for kind in kinds * times]
    layers = keys.take("attention_layers", default=named)
    if layers != named or len(named) != found["n_layer"] or {*named} - {"global", "local"}:
        raise keys.refused(f"attention_types is not global or local of {found['n_layer']} layers")
    own = Architecture(
        norm_first=True,
        norm_last=True,
        norm=Norm(epsilon=keys.number("layer_norm_epsilon", default=1e-5)),
        fused=False,
        scale=1.0,
        windows=tuple(window if kind == "local" else None for kind in layers),
        bias_qkv=False,
        activation=keys.activation("activation_function", default="gelu_new"),
        n_inner=keys.integer("intermediate_size", default=None),
    )
    return keys.config("gpt_neo", found, own, keys.flag("tie_word_embeddings", True))


SAME = {name: name.replace("/", ".") for name in ("ln_1", "ln_2", "mlp/c_fc", "mlp/c_proj")}
PARTS = {f"attn/{part}": f"attn.attention.{part}_proj" for part in "qkv"}
WITHIN = {**SAME, **PARTS, "attn/o": "attn.attention.out_proj"}
AROUND = {name: f"transformer.{name}" for name in ("wte", "wpe", "ln_f")}
PLACES = {**AROUND, "lm_head": "lm_head", **linears("transformer.h", WITHIN)}
MASKS = r".*\.attn\.attention\.(bias|masked_bias)"
TYPES = {"attention_types": lambda depth: [[[("global", "local")[i % 2] for i in range(depth)], 1]]}
# transformers 4 compares the list with this key, and knows no other name of it by then.
DEPTH = {"num_layers": lambda depth: depth}
EXAMPLE = {"window_size": 5, **TYPES, **DEPTH}
MODEL, BASE, EAGER = "GPTNeoForCausalLM", "transformer.", ("eager",)
FAMILY = Family("gpt_neo", read, EXAMPLE, MODEL, lambda _: PLACES, BASE, EAGER, MASKS)
