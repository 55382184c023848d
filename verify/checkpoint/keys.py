"""Keys beside the sizes: which alter the function, which do not, and which nobody can tell.

transformers keeps any key that it is given, and so do the scripts that write ``hparams.json``. What
is known to change the function and is not modelled is refused by name. What says who made the
model, when and how, is ignored with a remark. The rest is refused until the user, who may know what
it means, says that it does not matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from gpt_verify.checkpoint.files import refusal
from gpt_verify.errors import UsageError
from gpt_verify.text import listing

# fmt: off
#: Words of a key that says nothing of the function: who, when, under which terms, trained how.
_HARMLESS = frozenset([
    "arxiv", "author", "authors", "batch", "bf16", "card", "checkpointing", "citation",
    "comment", "commit", "company", "contact", "corpus", "country", "created", "creation",
    "creator", "data", "dataset", "datasets", "date", "description", "developer", "doi",
    "domain", "email", "epoch", "epochs", "eval", "evaluation", "finetuned", "fp16",
    "framework", "generator", "gradient", "hash", "homepage", "id", "info", "init",
    "initialization", "institution", "language", "languages", "learning", "licence",
    "license", "loss", "lr", "maintainer", "metadata", "metrics", "mixed", "modified",
    "name", "note", "notes", "optimizer", "organization", "owner", "paper", "parent",
    "path", "perplexity", "pipeline", "pretraining", "publisher", "repo", "repository",
    "results", "revision", "run", "seed", "sha", "source", "sponsor", "step", "steps",
    "tag", "tags", "task", "team", "time", "timestamp", "title", "token", "tokenizer",
    "tokens", "train", "trained", "trainer", "training", "unsloth", "updated", "uploaded",
    "url", "usage", "version", "wandb", "warmup", "website",
])
# fmt: on
#: Keys of the same kind whose words alone would not say so.
_NAMES = frozenset({"base_model", "weight_decay", "library"})
#: Dropout is off in what is judged, whatever it is that is dropped.
_DROPOUT = frozenset({"drop", "dropout", "pdrop"})
# fmt: off
#: Words of a key that may alter the function, whatever stands beside them.
_TELLING = frozenset([
    "act", "activation", "alibi", "attention", "attn", "bias", "conv", "embed", "embedding",
    "embeddings", "eps", "epsilon", "expert", "experts", "gelu", "head", "heads", "kv",
    "mask", "moe", "mup", "norm", "position", "positional", "positions", "quant",
    "quantization", "quantized", "relu", "residual", "rms", "rope", "rotary", "scale",
    "scaling", "sliding", "softmax", "window",
])
# fmt: on
#: Keys that are known to alter the function, and are not modelled: of other families, and of
#: whoever changed GPT-2 and kept its name.
_ALTERING = re.compile(
    r"(.*_)?(rope|rotary|alibi)(_.*)?|(.*_)?(sliding_)?window(_size|_pattern)?|quantization_config|"
    r"(.*_)?experts?(_.*)?|moe_.*|num_key_value_heads|n_head_kv|n_kv_heads?|multi_query|head_dim|"
    r"hidden_act|hidden_activation|activation|act|act_fn|mlp_type|(rms_norm|layer_norm|layernorm|norm)"
    r"_eps(ilon)?|(.*_)?norm_type|rmsnorm|(.*_)?(qk|post|pre|parallel)_(layer)?norm|attention_bias|"
    r"mlp_bias|use_bias|bias|(use_)?parallel_(residual|attn)|parallel_attn|(.*_)?softcap(ping)?|"
    r"query_pre_attn_scalar|attention_multiplier|(residual|embedding|logits?)_(multiplier|scaling|"
    r"scale)|(.*_)?mup(_.*)?|scale_embeddings?|embed_scale|embedding_size|word_embed_proj_dim|"
    r"position_embedding_type|attention_types?|attention_layers|layer_types|intermediate_size|"
    r"ffn_dim|n_state"
)
#: What switches such a key off.
_OFF: tuple[object, ...] = (None, False, {}, [])
#: Long values are cut: it is the key that is to be found in the file.
_LONGEST = 60


def stated(key: str, value: object) -> str:
    """``key = value``, as it stands in the file."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} = {text if len(text) <= _LONGEST else text[:_LONGEST] + ' …'}"


def harmless(key: str) -> bool:
    """Whether the key by itself says that it has nothing to do with the function."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    words = {word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word}
    if words & _DROPOUT or key.startswith("_") or key in _NAMES:  # transformers' own begin with _
        return True
    return bool(words & _HARMLESS) and not words & _TELLING


def altering(key: str, value: object, same: Mapping[str, object]) -> bool:
    """Whether the key is known to alter the function, and this value is not the one that does not.

    Args:
        same: key → the value with which it says what the sizes say.
    """
    if not _ALTERING.fullmatch(key.lower()):
        return False
    off = any(type(value) is type(other) and value == other for other in _OFF)
    return not off and not (key in same and type(value) is int and value == same[key])


def settle(
    path: Path,
    rest: Mapping[str, object],
    same: Mapping[str, object],
    ignore: Collection[str],
) -> list[str]:
    """Remarks on keys that are no size and not understood.

    Args:
        path: the file that they stand in.
        rest: the keys, with their values.
        same: see `altering`.
        ignore: keys of which the user says that they do not matter.

    Raises:
        CheckpointError: one alters the function and is not modelled, or nobody can tell.
    """
    alters = [stated(key, value) for key, value in rest.items() if altering(key, value, same)]
    if alters:
        raise refusal(path, f"{listing(alters)}: alters the function, and is not modelled")
    silent, asked, unknown = [], [], []
    for key, value in rest.items():
        if key in ignore:
            asked.append(stated(key, value))
        elif harmless(key) or _ALTERING.fullmatch(key.lower()):  # the latter is switched off
            silent.append(key)
        else:
            unknown.append((key, value))
    if unknown:
        option = " ".join(f"--ignore-key {key}" for key, _ in unknown[:3])
        what = listing(stated(key, value) for key, value in unknown)
        raise refusal(
            path, f"unknown key: {what}; where it does not alter what is computed: {option}"
        )
    remarks = []
    if silent:
        which = listing(silent, 10)
        remarks.append(f"{path.name}: ignored, as saying nothing of the function: {which}")
    if asked:
        remarks.append(f"{path.name}: ignored, as --ignore-key says: {listing(asked, 10)}")
    return remarks


def need_present(path: Path, keys: Collection[str], ignore: Collection[str]) -> None:
    """UsageError for a key that is to be ignored and does not occur."""
    if absent := [key for key in ignore if key not in keys]:
        raise UsageError(f"--ignore-key {absent[0]}: {path} has no such key")
