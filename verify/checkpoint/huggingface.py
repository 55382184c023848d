"""Read a Hugging Face directory.

The files:

    config.json                 sizes, and everything that makes the function GPT-2's or GPT's
    model.safetensors           weights (or several files, or pytorch_model.bin)
    vocab.json, merges.txt      the tokenizer, optional: OpenAI's encoder.json and vocab.bpe
    tokenizer.json              the same in one file, where the two are not there
    added_tokens.json           tokens that no text is encoded to
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from gpt_verify.checkpoint.family_files import family_of, open_family
from gpt_verify.checkpoint.files import refusal
from gpt_verify.checkpoint.hf_config import SIZES, read_config
from gpt_verify.checkpoint.hf_names import (
    MASK,
    OTHER_HEAD,
    architecture_of,
    own_name,
    stored_name,
    unwrapped,
)
from gpt_verify.checkpoint.hf_weights import Weights, open_weights
from gpt_verify.checkpoint.links import need_within, optional
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tensors import (
    READABLE,
    Format,
    LazyTensors,
    Stored,
    cast_remark,
    check_tensors,
)
from gpt_verify.reference import Config, tensor_table
from gpt_verify.text import listing

#: Bytes of the head and of wte that are compared at a time.
PIECE = 1 << 22


def format_of(config: Config) -> Format:
    """The format in which transformers writes a model of this architecture."""
    return Format(
        stored_name=partial(stored_name, architecture=config.architecture),
        leading_one=False,
        dtypes=READABLE,
        sizes={size: keys[0] for size, keys in SIZES.items()},
    )


def open_checkpoint(path: str | Path, ignore: Collection[str] = ()) -> Checkpoint:
    """Open a Hugging Face directory; tensors are read when they are looked up.

    A looked-up tensor is a read-only float32 array of the table's shape: a view of the mapped
    file, or a copy where another type is widened or rounded. A stored head is compared with wte
    here.

    Args:
        path: the directory.
        ignore: keys of ``config.json`` of which the user says that they do not alter the function.

    Raises:
        CheckpointError: a file is missing or damaged; ``config.json`` is not that of a GPT-2 or
            GPT, or disagrees with the tensors; a tensor is missing, surplus, or of the wrong shape
            or type; ``lm_head.weight`` is not wte, bit for bit, and ``config.json`` says so.
        MissingDependency: there is nothing but ``pytorch_model.bin``, and torch is not installed.
        UsageError: a key that is to be ignored does not occur.
    """
    path = Path(path)
    config_json = path / "config.json"
    need_within(path, config_json)
    if (family := family_of(config_json)) is not None:
        return open_family(path, family)
    config, remarks = read_config(
        config_json, ignore, lambda: architecture_of(open_weights(path).stored)
    )
    weights = open_weights(path)
    found, head, more = _found(weights, config)
    check_tensors(found, config, weights.main, config_json, format_of(config))
    if head is not None:
        _check_head(weights, head, found["wte"].name)
    remarks += more + cast_remark(found.values(), weights.main)
    # GPT's have the same names, but its BPE is another one: words in lower case, no bytes.
    names = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json")
    there = [optional(path, name) if config.architecture == "gpt2" else None for name in names]
    encoder, merges, tokenizer, added = there
    if encoder is not None and merges is not None:
        tokenizer = None
    return Checkpoint(
        path=path,
        format="huggingface",
        config=config,
        tensors=LazyTensors(
            tensor_table(config),
            lambda name: weights.read(found[name].name),
            lambda name: weights.own(found[name].name),
        ),
        files=(config_json, *weights.files, *filter(None, (encoder, merges, tokenizer, added))),
        encoder=encoder,
        merges=merges,
        tokenizer=tokenizer,
        added=added,
        remarks=tuple(remarks),
    )


def _found(weights: Weights, config: Config) -> tuple[dict[str, Stored], str | None, list[str]]:
    """The tensors under our names, the stored head where it should be wte, and what is said of
    the others."""
    found: dict[str, Stored] = {}
    head, wrapped, heads = None, [], []
    for name, (dtype, shape) in weights.stored.items():
        bare = unwrapped(name)
        if bare != name:
            wrapped.append((name, bare))
        if MASK.fullmatch(bare):
            continue
        if OTHER_HEAD.fullmatch(bare):
            heads.append(name)
            continue
        own = own_name(bare, config.architecture) or f"/{name}"
        if own == "lm_head" and config.tied:
            if head is not None:
                raise refusal(weights.main, f"{head} and {name} are the same tensor")
            head = name
            continue
        if own in found:
            raise refusal(weights.main, f"{found[own].name} and {name} are the same tensor")
        found[own] = Stored(name, dtype, shape)
    remarks = []
    if wrapped:
        name, bare = wrapped[0]
        count = f"{len(wrapped)} of {len(weights.stored)} names"
        what = f"{count} are read without what wraps the model in them: {name} as {bare}"
        remarks.append(f"{weights.main.name}: {what}")
    if heads:
        what = "ignored, as the language model never reads it"
        remarks.append(f"{weights.main.name}: {what}: {listing(heads)}")
    return found, head, remarks


def _check_head(weights: Weights, head_name: str, wte: str) -> None:
    """GPT-2's head is wte; a stored copy that differs in one bit makes it another model."""
    head_is, wte_is = (f"{d}{list(s)}" for d, s in (weights.stored[head_name], weights.stored[wte]))
    if head_is != wte_is:
        raise refusal(weights.main, f"{head_name} is {head_is}, but {wte} is {wte_is}: not tied")
    head, table = weights.bits(head_name), weights.bits(wte)
    for start in range(0, head.size, PIECE):
        differs = head[start : start + PIECE] != table[start : start + PIECE]
        if np.any(differs):
            rows, columns = weights.stored[wte][1]
            element = (start + int(np.argmax(differs))) // (head.size // (rows * columns))
            row, column = divmod(element, columns)
            raise refusal(
                weights.main,
                f"{head_name} is not {wte} bit for bit: they first differ at [{row}, {column}]",
            )
