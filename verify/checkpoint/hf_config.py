"""Hugging Face's ``config.json``, of which every key must be understood or not matter.

transformers accepts any key and any value, and so loads a model that is not GPT-2 without a word:
another activation, another epsilon, scores divided by the layer's number. Sources: transformers
``models/gpt2/configuration_gpt2.py``, ``models/openai/configuration_openai.py`` and
``configuration_utils.py``, versions 2 to 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from gpt_verify.checkpoint.files import read_json, refusal
from gpt_verify.checkpoint.keys import need_present, settle, stated
from gpt_verify.reference import Config, ConfigError

#: Size → the keys that may state it: GPT2Config's own first, then its ``attribute_map``.
SIZES = {
    "n_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "max_position_embeddings"),
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
    },
    "openai-gpt": {
        **_EVERY,
        # Its ``ACT_FNS`` calls gelu_new so (models/openai/modeling_openai.py).
        "afn": ("gelu",),
    },
}

#: ``model_type`` → transformers' classes of it, in any framework, which differ in the heads that
#: they put beside the language model's, and trl's, which puts a value head there.
_HEADS = "(LMHead)?Model|DoubleHeadsModel|(LM)?HeadWithValueModel|"
_HEADS += "For(SequenceClassification|TokenClassification|QuestionAnswering)"
CLASSES = {
    "gpt2": re.compile(rf"(TF|Flax)?GPT2({_HEADS})|AutoModelForCausalLMWithValueHead"),
    "openai-gpt": re.compile(rf"(TF)?OpenAIGPT({_HEADS})"),
}
#: What a 2019 file is taken for: where it does not say its type, it may say its own key for GELU.
_OWN_KEYS = {"afn": "openai-gpt", "activation_function": "gpt2"}

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


def read_config(
    path: Path, ignore: Collection[str] = (), guess: Callable[[], str | None] = lambda: None
) -> tuple[Config, list[str]]:
    """Sizes and architecture from ``config.json``, and remarks on what was ignored.

    Args:
        path: the file.
        ignore: keys of which the user says that they do not alter the function.
        guess: the architecture that the tensors are those of, where the file does not say it, as
            those of 2019.

    Raises:
        CheckpointError: not JSON, not of a model type that the reference has, a size missing or
            stated twice with different values, a value that makes it another function, or a key
            that may do so.
        UsageError: a key that is to be ignored does not occur.
    """
    said = read_json(path)
    need_present(path, said, ignore)
    remarks: list[str] = []
    classes = said.pop("architectures", None)
    architecture = _architecture(path, said, classes, guess, remarks)
    sizes: dict[str, object] = {}
    for size, keys in SIZES.items():
        found = {key: said.pop(key) for key in keys if key in said}
        if not found and size == "n_ctx" and "n_ctx" in said:
            found = {"n_ctx": said.pop("n_ctx")}
        if not found:
            raise refusal(path, f"missing: {keys[0]}")
        (first, value), *others = found.items()
        if any(not _same(other, value) for _, other in others):
            both = " and ".join(stated(key, found[key]) for key in found)
            raise refusal(path, f"{both} disagree")
        if type(value) is not int:
            raise refusal(path, f"{stated(first, value)} is not an integer")
        sizes[size] = value
    if (n_ctx := said.pop("n_ctx", sizes["n_ctx"])) != sizes["n_ctx"]:
        # In transformers it has never been more than the size of a table of masks.
        what = f"{stated('n_ctx', n_ctx)} is ignored: n_positions = {sizes['n_ctx']} decides"
        remarks.append(f"{path.name}: {what}")
    tied = said.get("tie_word_embeddings", True) is True
    try:
        config = Config.from_mapping(sizes, architecture, tied)
    except ConfigError as error:
        raise refusal(path, error) from None
    for key, allowed in ARCHITECTURE[architecture].items():
        allowed += (4 * config.n_embd,) * (key == "n_inner")
        value = said.pop(key, allowed[0])
        if not any(_same(value, right) for right in allowed):
            raise refusal(path, f"{stated(key, value)}, should be {_join(allowed, ' or ')}")
    _check_classes(path, classes, architecture, ignore, remarks)
    same = {
        "head_dim": config.head_size,
        "num_key_value_heads": config.n_head,
        "n_head_kv": config.n_head,
        "intermediate_size": 4 * config.n_embd,
        "ffn_dim": 4 * config.n_embd,
        "embedding_size": config.n_embd,
        "word_embed_proj_dim": config.n_embd,
        "n_state": config.n_embd,
    }
    rest = {key: value for key, value in said.items() if key not in IGNORED}
    return config, remarks + settle(path, rest, same, ignore)


def _architecture(
    path: Path,
    said: dict[str, object],
    classes: object,
    guess: Callable[[], str | None],
    remarks: list[str],
) -> str:
    """``model_type``, or what the file without it is taken for where there is no doubt."""
    known = _join(ARCHITECTURE, " or ")
    if "model_type" in said:
        stated_type = said.pop("model_type")
        if isinstance(stated_type, str) and stated_type in ARCHITECTURE:
            return stated_type
        what = "a family that is not supported" if isinstance(stated_type, str) else "no name"
        said_type = stated("model_type", stated_type)
        raise refusal(path, f"{said_type} is {what}; {known} is what can be judged")
    named = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    by_class = {kind for kind, known_as in CLASSES.items() for n in named if known_as.fullmatch(n)}
    by_key = {kind for key, kind in _OWN_KEYS.items() if key in said}
    found = by_class or by_key or {kind for kind in (guess(),) if kind is not None}
    if len(found) != 1:
        raise refusal(path, f"model_type is missing; it should say {known}")
    (kind,) = found
    how = "architectures" if by_class else "its own key" if by_key else "the names of its tensors"
    remarks.append(f"{path.name}: model_type is missing; taken for {kind} by {how}")
    return kind


def _check_classes(
    path: Path, classes: object, architecture: str, ignore: Collection[str], remarks: list[str]
) -> None:
    """``architectures`` names classes of transformers whose language model is the same."""
    names = classes if isinstance(classes, list) else [] if classes is None else [classes]
    known = CLASSES[architecture]
    strange = [n for n in names if not (isinstance(n, str) and known.fullmatch(n))]
    if not strange:
        return
    said = stated("architectures", classes)
    if "architectures" in ignore:
        remarks.append(f"{path.name}: ignored, as --ignore-key says: {said}")
        return
    raise refusal(
        path,
        f"{said}: {_join(strange[:1])} is no class of transformers for {architecture}, and may "
        "compute something else; where it does not: --ignore-key architectures",
    )


def _same(value: object, other: object) -> bool:
    """Equal and of the same type: in JSON, true is not 1."""
    return type(value) is type(other) and value == other


def _join(values: Iterable[object], word: str = ", ") -> str:
    """The values are joined as they stand in the file."""
    return word.join(json.dumps(value, ensure_ascii=False) for value in values)
