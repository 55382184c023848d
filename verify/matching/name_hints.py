"""What a parameter's name says of the tensor that it may be: a hint between equal contents."""

from __future__ import annotations

import re

_HINTS = {
    "wte": r"wte|tok|embed_tokens|word|lm_head|unembed|head\b",
    "wpe": r"wpe|pos",
    "ln_1": r"ln_?1|norm_?1|input_layernorm|attn_norm|ln_attn",
    "ln_2": r"ln_?2|norm_?2|post_attention|mlp_norm|ffn_norm|ln_mlp",
    "ln_f": r"ln_?f|final|norm\b|last",
    "attn/c_attn": r"c_attn|qkv|in_proj|query|key|value|\b[wb]_?[qkv]\b|[qkv]_(proj|lin)",
    "attn/c_proj": r"att\w*\.(c_)?(proj|out|dense|o)|o_proj|out_proj|\b[wb]_?o\b",
    "mlp/c_fc": r"c_fc|fc_?1|fc_in|up|w_?in\b|intermediate",
    "mlp/c_proj": r"(mlp|ff\w*)\.(c_)?proj|fc_?2|fc_out|down|w_?out\b",
}
_PART_HINTS = (r"\bq|query|_q\b|wq|bq", r"\bk|key|_k\b|wk|bk", r"\bv|value|_v\b|wv|bv")


def block_number(name: str) -> str:
    """The first number in a name; empty where there is none."""
    return next(iter(re.findall(r"\d+", name)), "")


def name_score(name: str, tensor: str, part: int | None = None) -> float:
    """How well a port's name suits a tensor, 0 to 1.

    Args:
        name: the port's.
        tensor: the checkpoint's, ``h0/attn/c_attn/w``.
        part: 0, 1 or 2 for the query, key or value part of it.
    """
    layer = re.match(r"h(\d+)/", tensor)
    score = 0.5 if layer and layer[1] == block_number(name) else 0.0
    lowered = name.lower().replace("/", ".")
    kind = re.sub(r"^h\d+/|/[wbg]$", "", tensor)
    score += 0.3 if re.search(_HINTS.get(kind, r"$^"), lowered) else 0.0
    if part is not None:
        score += 0.15 if re.search(_PART_HINTS[part], lowered) else 0.0
    is_bias = bool(re.search(r"bias|\bb[a-z_]{0,3}\b|_b\b", lowered))
    return score + (0.05 if is_bias == tensor.endswith("/b") else 0.0)


def sibling(name: str) -> str:
    """What the names of a weight and of its bias have in common: ``attn.W_V`` and ``attn.b_V``,
    ``to_kv.weight`` and ``to_kv.bias``."""
    lowered = name.lower().replace("/", ".")
    return re.sub(r"weights?|bias(es)?|(?<![a-z])[wb](?=[qkvo]?(?![a-z]))", "", lowered)
