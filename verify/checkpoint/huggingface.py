"""Read a Hugging Face directory.

The files:

    config.json                 sizes, and everything that makes the function GPT-2's or GPT's
    model.safetensors           weights (or several files, or pytorch_model.bin)
    vocab.json, merges.txt      the tokenizer, optional: OpenAI's encoder.json and vocab.bpe
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from gpt_verify.checkpoint.family_files import family_of, open_family
from gpt_verify.checkpoint.files import refusal, size_of
from gpt_verify.checkpoint.hf_config import SIZES, read_config
from gpt_verify.checkpoint.hf_weights import READABLE, Weights, open_weights
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tensors import Format, LazyTensors, Stored, check_tensors
from gpt_verify.reference import Config, tensor_table

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
#: Bytes of the head and of wte that are compared at a time.
PIECE = 1 << 22


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


def format_of(config: Config) -> Format:
    """How transformers writes a model of this architecture."""
    return Format(
        stored_name=partial(stored_name, architecture=config.architecture),
        leading_one=False,
        dtypes=READABLE,
        sizes={size: keys[0] for size, keys in SIZES.items()},
    )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory; tensors are read when they are looked up.

    A looked-up tensor is a read-only float32 array of the table's shape: a view of the mapped
    file, or a copy where float16 or bfloat16 is widened. A stored head is compared with wte here.

    Raises:
        CheckpointError: a file is missing or damaged; ``config.json`` is not that of a GPT-2 or
            GPT, or disagrees with the tensors; a tensor is missing, surplus, or of the wrong shape
            or type; ``lm_head.weight`` is not wte, bit for bit, and ``config.json`` says so.
        MissingDependency: there is nothing but ``pytorch_model.bin``, and torch is not installed.
    """
    path = Path(path)
    config_json = path / "config.json"
    if (family := family_of(config_json)) is not None:
        return open_family(path, family)
    config = read_config(config_json)
    weights = open_weights(path)
    found: dict[str, Stored] = {}
    for name, (dtype, shape) in weights.stored.items():
        if (name == HEAD and config.tied) or MASK.fullmatch(name):
            continue
        own = own_name(name, config.architecture) or f"/{name}"
        if own in found:
            raise refusal(weights.main, f"{found[own].name} and {name} are the same tensor")
        found[own] = Stored(name, dtype, shape)
    check_tensors(found, config, weights.main, config_json, format_of(config))
    if HEAD in weights.stored and config.tied:
        _check_head(weights, found["wte"].name)
    # GPT's have the same names, but its BPE is another one: words in lower case, no bytes.
    beside = ("vocab.json", "merges.txt") if config.architecture == "gpt2" else ()
    encoder, merges = [_optional(path / name) for name in beside] or [None, None]
    tokenizer = [file for file in (encoder, merges) if file]
    return Checkpoint(
        path=path,
        format="huggingface",
        config=config,
        tensors=LazyTensors(
            tensor_table(config),
            lambda name: weights.read(found[name].name),
            lambda name: weights.own(found[name].name),
        ),
        files=(config_json, *weights.files, *tokenizer),
        encoder=encoder,
        merges=merges,
    )


def _check_head(weights: Weights, wte: str) -> None:
    """GPT-2's head is wte; a stored copy that differs in one bit makes it another model."""
    head_is, wte_is = (f"{d}{list(s)}" for d, s in (weights.stored[HEAD], weights.stored[wte]))
    if head_is != wte_is:
        raise refusal(weights.main, f"{HEAD} is {head_is}, but {wte} is {wte_is}: not tied")
    head, table = weights.bits(HEAD), weights.bits(wte)
    for start in range(0, head.size, PIECE):
        differs = head[start : start + PIECE] != table[start : start + PIECE]
        if np.any(differs):
            rows, columns = weights.stored[wte][1]
            element = (start + int(np.argmax(differs))) // (head.size // (rows * columns))
            row, column = divmod(element, columns)
            raise refusal(
                weights.main,
                f"{HEAD} is not {wte} bit for bit: they first differ at [{row}, {column}]",
            )


def _optional(file: Path) -> Path | None:
    if not os.path.lexists(file):
        return None
    size_of(file)
    return file
