"""The recipes of each operation, and what its results are called in a report."""

from __future__ import annotations

from collections.abc import Mapping

from gpt_verify.recipes.activations import (
    GELU,
    GELU_EXACT,
    GLU,
    RELU,
    SILU,
    SOFT_CAP,
)
from gpt_verify.recipes.attention import MIX, SCORES
from gpt_verify.recipes.epilogues import GELU_OF_PRODUCT, LAYER_NORM_OF_SUM, RMS_NORM_OF_SUM
from gpt_verify.recipes.experts import EXPERTS, ROUTING
from gpt_verify.recipes.norms import LAYER_NORM, RMS_NORM
from gpt_verify.recipes.products import LINEAR, UNEMBED
from gpt_verify.recipes.recipe import Recipe
from gpt_verify.recipes.rotary import ROPE
from gpt_verify.recipes.slopes import ALIBI
from gpt_verify.recipes.softmax import PATTERN
from gpt_verify.recipes.sums import ADD, EMBED
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site

#: ``Site.operation`` → the ways of computing it. What stands first is said first where several fit.
#: An operation that is not here is not examined.
RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "embed": EMBED,
    "layer_norm": (*LAYER_NORM, *LAYER_NORM_OF_SUM),
    "rms_norm": (*RMS_NORM, *RMS_NORM_OF_SUM),
    "linear": LINEAR,
    "rope": ROPE,
    "scores": SCORES,
    "soft_cap": SOFT_CAP,
    "alibi": ALIBI,
    "pattern": PATTERN,
    "mix": MIX,
    "gelu": (*GELU, *GELU_OF_PRODUCT),
    "gelu_exact": GELU_EXACT,
    "silu": SILU,
    "relu": RELU,
    "glu": GLU,
    "routing": ROUTING,
    "experts": EXPERTS,
    "add": ADD,
    "unembed": UNEMBED,
}

#: What the line about a port calls them.
NOUNS = {
    "embed": "embedding sum",
    "layer_norm": "norms",
    "rms_norm": "norms",
    "linear": "products",
    "rope": "rotation",
    "scores": "scores",
    "soft_cap": "soft cap",
    "alibi": "slopes",
    "pattern": "softmax",
    "mix": "mix",
    "gelu": "GELU",
    "gelu_exact": "GELU",
    "silu": "SiLU",
    "relu": "ReLU",
    "glu": "gate",
    "routing": "routing",
    "experts": "experts",
    "add": "residual sum",
    "unembed": "logits",
}


def recipes_of(config: Config, site: Site) -> tuple[Recipe, ...]:
    """The ways of computing this site in a model of this kind."""
    return tuple(r for r in RECIPES.get(site.operation, ()) if r.of(config))
