"""OLMo 2: OLMo Team 2024, section 3.2. What a branch has made is normed, and queries and keys are,
all channels together."""

from gpt_verify.checkpoint.family import Family, like_llama
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.places import four_norms
from gpt_verify.reference import Config


def read(keys: Keys) -> Config:
    given = {"norm_first": False, "norm_branch": True, "qk_norm": "all"}
    return like_llama(keys, "olmo2", epsilon=1e-5, change=lambda *_: given)


FAMILY = Family(
    "olmo2",
    read,
    {"num_key_value_heads": 2, "intermediate_size": 40, "rope_theta": 100.0},
    "Olmo2ForCausalLM",
    lambda config: four_norms(),
)
