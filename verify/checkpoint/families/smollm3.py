"""SmolLM3: Bakouch et al. 2025. Every fourth layer has no positions, as ``no_rope_layers`` says:
1 where a layer has them, after all (NoPE: Yang et al. 2025, arXiv 2501.18795)."""

from typing import Any

from gpt_verify.checkpoint.family import Family, like_llama, windows_of_qwen
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    def change(sizes: dict[str, int], head: int) -> dict[str, Any]:
        depth, every = sizes["n_layer"], keys.integer("no_rope_layer_interval", default=4)
        turned = [int((layer + 1) % every != 0) for layer in range(depth)]
        turned = keys.take("no_rope_layers", default=turned)
        if not isinstance(turned, list) or len(turned) != depth or {*turned} - {0, 1}:
            raise keys.refused(f"no_rope_layers is not a 0 or 1 for each of {depth} layers")
        rope = keys.rope(head, 2_000_000.0)
        ropes = tuple(rope if one else None for one in turned)
        mlp = keys.flag("mlp_bias", False)
        return {"ropes": ropes, "bias_mlp": mlp, "windows": windows_of_qwen(keys, depth)}

    return like_llama(keys, "smollm3", tied=True, change=change)


FAMILY = Family(
    "smollm3",
    read,
    {
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "rope_theta": 100.0,
        "no_rope_layers": lambda depth: [1 - i % 2 for i in range(depth)],
    },
    "SmolLM3ForCausalLM",
)
