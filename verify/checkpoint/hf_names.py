"""What Hugging Face's files call the tensors, and what stands before or beside these names.

Whatever wraps a module puts its own name before those of the parameters: ``torch.compile``,
``DataParallel``, a trainer's class that holds the model. What classifies or values text has a head
of its own beside the language model's, which never reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpt_verify.reference.config import ARCHITECTURES

PREFIX = "transformer."
HEAD = "lm_head.weight"
#: Causal masks and the numbers of the positions, which older versions stored with the weights; no
#: version reads them back.
MASK = re.compile(r"(transformer\.)?(h\.[0-9]{1,6}\.attn\.(bias|masked_bias)|position_ids)")
#: The tables of an architecture that calls them otherwise than GPT-2 does.
TABLES = {"openai-gpt": {"wte": "tokens_embed", "wpe": "positions_embed"}}
#: OpenAI's leaf → torch's: gains and matrices are both called ``weight``.
LEAF = {"w": "weight", "g": "weight", "b": "bias"}
STORED = re.compile(r"(?:h\.(?P<layer>[0-9]{1,6})\.)?(?P<scope>[a-z_.0-9]+)\.(?P<leaf>weight|bias)")
#: Names under which a wrapper holds the whole model, and what is put between any two names.
WRAPPED = re.compile(
    r"((_orig_mod|module|model|_forward_module|pretrained_model|_fsdp_wrapped_module)\.)+"
)
BETWEEN = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
#: Heads that the language model never reads: transformers' ``GPT2DoubleHeadsModel``, ``GPT2For…``,
#: and the value heads of trl.
OTHER_HEAD = re.compile(r"(v_head|multiple_choice_head|score|classifier|qa_outputs|value_head)\..+")


def stored_name(name: str, architecture: str = "gpt2") -> str:
    """``h0/attn/c_attn/w`` → ``h.0.attn.c_attn.weight``: transformers' name, without the prefix.

    transformers ``models/gpt2/convert_gpt2_original_tf_checkpoint_to_pytorch.py`` and, until
    version 4, ``load_tf_weights_in_gpt2`` in ``models/gpt2/modeling_gpt2.py``.
    """
    *scopes, leaf = name.split("/")
    if not scopes:
        return f"{TABLES.get(architecture, {}).get(leaf, leaf)}.weight"
    if scopes[0] != "ln_f":
        scopes[0] = f"h.{scopes[0][1:]}"
    return ".".join([*scopes, LEAF[leaf]])


def own_name(stored: str, architecture: str = "gpt2") -> str | None:
    """The inverse of ``stored_name``, with or without the prefix; None for any other name."""
    if stored == HEAD:
        return "lm_head"
    tables = {stored_name(name, architecture): name for name in ("wte", "wpe")}
    if (table := tables.get(stored.removeprefix(PREFIX))) is not None:
        return table
    match = STORED.fullmatch(stored.removeprefix(PREFIX))
    if match is None:
        return None
    layer, scope, leaf = match["layer"], match["scope"].replace(".", "/"), match["leaf"]
    short = "b" if leaf == "bias" else "g" if scope.startswith("ln_") else "w"
    own = f"{scope}/{short}" if layer is None else f"h{layer}/{scope}/{short}"
    # A name that merely resembles ours, such as h0.attn.c_attn.weight, must not pass for it.
    return own if stored_name(own) == stored.removeprefix(PREFIX) else None


def unwrapped(stored: str) -> str:
    """The name as the model itself has it, without what wraps it."""
    if (wrapper := WRAPPED.match(stored)) is not None:
        stored = stored[wrapper.end() :]
    return BETWEEN.sub("", stored)


def architecture_of(names: Iterable[str]) -> str | None:
    """Which architecture calls its tensors so; None where it is none, or could be two."""
    bare = {unwrapped(name).removeprefix(PREFIX) for name in names}
    found = [
        kind for kind in ARCHITECTURES if f"{TABLES.get(kind, {}).get('wte', 'wte')}.weight" in bare
    ]
    return found[0] if len(found) == 1 else None
