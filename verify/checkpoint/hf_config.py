"""Hugging Face's ``config.json``, of which every key must be understood or known not to matter.

transformers accepts any key and any value, and so loads a model that is not GPT-2 without a word:
another activation, another epsilon, scores divided by the layer's number. Sources: transformers
``models/gpt2/configuration_gpt2.py``, ``models/openai/configuration_openai.py`` and
``configuration_utils.py``, versions 2 to 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gpt_verify.checkpoint.files import listing, read_json, refusal
from gpt_verify.reference import Config, ConfigError

#: Size → the keys that may state it: GPT2Config's own first, then its ``attribute_map``.
SIZES = {
    "n_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "max_position_embeddings", "n_ctx"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_layer": ("n_layer", "num_hidden_layers"),
}

#: Key → the values with which the function that is computed is the reference's. An absent key has,
#: in transformers, the first of them.
Allowed = dict[str, tuple[object, ...]]
_EVERY: Allowed = {
    "layer_norm_epsilon": (1e-5,),
    "tie_word_embeddings": (True, False),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
}
#: ``model_type``, which is the name of an architecture of the reference → its own keys as well.
ARCHITECTURE: dict[str, Allowed] = {
    "gpt2": {
        **_EVERY,
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        # The same function, computed in another order; only the rounding differs.
        "reorder_and_upcast_attn": (False, True),
        "n_inner": (None,),
        "architectures": (None, ["GPT2LMHeadModel"], ["GPT2Model"]),
    },
    "openai-gpt": {
        **_EVERY,
        # Its ``ACT_FNS`` calls gelu_new so (models/openai/modeling_openai.py).
        "afn": ("gelu",),
        "architectures": (None, ["OpenAIGPTLMHeadModel"], ["OpenAIGPTModel"]),
    },
}

#: Keys that do not change the function: training, generation, other heads, bookkeeping.
# fmt: off
IGNORED = frozenset([
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "_num_labels",
    "attn_implementation", "attn_pdrop", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id", "eos_token_ids",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder",
    "label2id", "length_penalty", "max_length", "min_length", "n_special", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id",
    "predict_special_tokens", "prefix", "problem_type", "remove_invalid_values",
    "renormalize_logits", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "sep_token_id", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "xla_device",
])
# fmt: on


def read_config(path: Path) -> Config:
    """Sizes and architecture from ``config.json``.

    Raises:
        CheckpointError: not JSON, not of a model type that the reference has, a size missing or
            stated twice with different values, a value that makes it another function, or a key
            that is not known.
    """
    stated = read_json(path)
    architecture = stated.pop("model_type", None)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURE:
        raise refusal(path, f"model_type is not {_join(ARCHITECTURE, ' or ')}")
    sizes: dict[str, object] = {}
    for size, keys in SIZES.items():
        found = {key: stated.pop(key) for key in keys if key in stated}
        if not found:
            raise refusal(path, f"missing: {keys[0]}")
        values = list(found.values())
        if any(not _same(value, values[0]) for value in values):
            raise refusal(path, f"{' and '.join(found)} disagree: {_join(values)}")
        sizes[size] = values[0]
    tied = stated.get("tie_word_embeddings", True) is True
    try:
        config = Config.from_mapping(sizes, architecture, tied)
    except ConfigError as error:
        raise refusal(path, error) from None
    for key, allowed in ARCHITECTURE[architecture].items():
        allowed += (4 * config.n_embd,) * (key == "n_inner")
        value = stated.pop(key, allowed[0])
        if not any(_same(value, right) for right in allowed):
            raise refusal(path, f"{key} = {_join([value])}, should be {_join(allowed, ' or ')}")
    if unknown := sorted(set(stated) - IGNORED):
        raise refusal(path, f"unknown key: {listing(unknown)}")
    return config


def _same(value: object, other: object) -> bool:
    """Equal and of the same type: in JSON, true is not 1."""
    return type(value) is type(other) and value == other


def _join(values: Iterable[object], word: str = ", ") -> str:
    """As they stand in the file."""
    return word.join(json.dumps(value, ensure_ascii=False) for value in values)
