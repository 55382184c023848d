"""Read OpenAI's directory, as ``download_model.py`` of openai/gpt-2 leaves it.

The files:

    checkpoint                          which bundle to read (``openai_state``)
    model.ckpt.{index,data-…,meta}      the bundle; the graph in .meta is not needed to read it
    hparams.json                        sizes
    encoder.json, vocab.bpe             the tokenizer, optional
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.bundle import Bundle, Entry
from gpt_verify.checkpoint.files import LARGEST_GRAPH, need_at_most, read_json, refusal
from gpt_verify.checkpoint.hf_config import IGNORED
from gpt_verify.checkpoint.keys import need_present, settle, stated
from gpt_verify.checkpoint.links import need_within, optional
from gpt_verify.checkpoint.openai_state import bundle_prefix
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tensors import (
    READABLE,
    Format,
    LazyTensors,
    Stored,
    cast_remark,
    check_tensors,
    narrowed,
)
from gpt_verify.reference import Config, ConfigError, tensor_table
from gpt_verify.reference.config import LARGEST
from gpt_verify.text import listing

#: gpt-2 ``src/model.py:149``: everything is in ``variable_scope("model")``.
SCOPE = "model/"
#: What an optimiser keeps beside each variable, and what training keeps once. TensorFlow names a
#: slot after its variable (tensorflow/python/training/slot_creator.py), and counts where two meet.
SLOT = re.compile(
    r"(?P<of>.+)/(Adam(W|WeightDecay)?(Optimizer)?|LAMB|Adagrad(DA)?|Adadelta|Adafactor|Momentum|"
    r"RMSProp(Optimizer)?|Ftrl|Nadam|AccumGrad|accum_grad|gradient_accumulator|adam_[mv]|m|v|vr|vc|"
    r"ExponentialMovingAverage|Polyak)(_[0-9]{1,3})?"
)
KEPT_ONCE = re.compile(
    r"(.+/)?(global_step|beta[12]_power(_[0-9]{1,3})?|learning_rate|loss_scale|num_good_steps|"
    r"counter|step|lr)"
)
#: tensorflow/python/checkpoint: how ``tf.train.Checkpoint`` names what an object holds.
OBJECTS = ("_CHECKPOINTABLE_OBJECT_GRAPH", "/.ATTRIBUTES/VARIABLE_VALUE")


def format_of(scope: str) -> Format:
    """OpenAI's, in this scope."""
    return Format(
        stored_name=lambda name: scope + name,
        leading_one=True,
        dtypes=READABLE,
        sizes={name: name for name in ("n_vocab", "n_ctx", "n_embd", "n_layer")},
    )


def open_checkpoint(path: str | Path, ignore: Collection[str] = ()) -> Checkpoint:
    """Open a directory in OpenAI's format; tensors are read when they are looked up.

    A looked-up tensor is a read-only float32 view of the mapped file, of the table's shape (the
    leading 1 of matrices is dropped), or a copy where another type is widened or rounded; its
    checksum is verified when it is first read.

    Args:
        path: the directory.
        ignore: keys of ``hparams.json`` of which the user says that they do not alter the function.

    Raises:
        CheckpointError: a file is missing or damaged, or lies outside the directory;
            ``hparams.json`` is not that of a GPT-2 or disagrees with the tensors; a tensor is
            missing, surplus, or of the wrong shape or type.
        UsageError: a key that is to be ignored does not occur.
    """
    path = Path(path)
    hparams = path / "hparams.json"
    need_within(path, hparams)
    config, remarks = read_hparams(hparams, ignore)
    prefix, moved = bundle_prefix(path)
    need_within(path, Path(f"{prefix}.index"))
    bundle = Bundle(prefix)
    meta = Path(f"{prefix}.meta")
    companions = [meta] if os.path.lexists(meta) else []
    need_within(path, *bundle.files, *companions)
    for companion in companions:
        need_at_most(companion, LARGEST_GRAPH)
    _refuse_objects(bundle)
    scope = _scope(bundle, config)
    found, training = _found(bundle.entries, scope, config)
    check_tensors(found, config, bundle.index, hparams, format_of(scope))
    remarks += moved
    if scope != SCOPE:
        where = f"in the scope {scope[:-1]}" if scope else "in no scope"
        remarks.append(f"{bundle.index.name}: the variables are {where}, and not in {SCOPE[:-1]}")
    if training:
        what = "ignored, as of the training and not of the model"
        remarks.append(f"{bundle.index.name}: {what}: {listing(training)}")
    remarks += cast_remark(found.values(), bundle.index)
    table = tensor_table(config)

    def read(name: str) -> NDArray[np.float32]:
        value = narrowed(bundle.index, scope + name, bundle.read(scope + name))
        value.setflags(write=False)
        return value.reshape(table[name].shape)

    def own(name: str) -> NDArray[np.float32]:
        value = narrowed(bundle.index, scope + name, bundle.own(scope + name))
        return value.reshape(table[name].shape)

    encoder, merges = (optional(path, name) for name in ("encoder.json", "vocab.bpe"))
    tokenizer = [file for file in (encoder, merges) if file]
    return Checkpoint(
        path=path,
        format="openai",
        config=config,
        tensors=LazyTensors(table, read, own),
        files=(path / "checkpoint", hparams, *bundle.files, *companions, *tokenizer),
        encoder=encoder,
        merges=merges,
        remarks=tuple(remarks),
        restorable=scope == SCOPE and all(t.dtype == "float32" for t in found.values()),
    )


def read_hparams(path: Path, ignore: Collection[str] = ()) -> tuple[Config, list[str]]:
    """Sizes, and remarks on what was ignored.

    Raises:
        CheckpointError: not JSON, a size missing or impossible, or a key that may alter what is
            computed.
        UsageError: a key that is to be ignored does not occur.
    """
    said = read_json(path)
    need_present(path, said, ignore)
    sizes = {key: value for key, value in said.items() if key in LARGEST}
    for key, value in sizes.items():
        if type(value) is not int:
            raise refusal(path, f"{stated(key, value)} is not an integer")
    try:
        config = Config.from_mapping(sizes)
    except ConfigError as error:
        raise refusal(path, error) from None
    rest = {key: value for key, value in said.items() if key not in LARGEST}
    silent = {key: value for key, value in rest.items() if key not in IGNORED}
    same = {"n_state": config.n_embd, "head_dim": config.head_size}
    remarks = settle(path, silent, same, ignore)
    if named := [key for key in rest if key in IGNORED]:
        remarks.append(f"{path.name}: ignored, as of the training: {listing(named)}")
    return config, remarks


def _refuse_objects(bundle: Bundle) -> None:
    """TensorFlow 2 names a tensor by the way to the object that holds it, and not by the graph."""
    objects, value = OBJECTS
    if objects in bundle.entries and any(name.endswith(value) for name in bundle.entries):
        raise refusal(
            bundle.index,
            "an object graph of TensorFlow 2 (tf.train.Checkpoint, or Keras), whose tensors have "
            "the names of Python's attributes: save the variables with tf.compat.v1.train.Saver, "
            "or the model with save_pretrained()",
        )


def _scope(bundle: Bundle, config: Config) -> str:
    """What stands before the names: OpenAI's scope, or the only one that has every tensor."""
    names = {name for name in bundle.entries if not SLOT.fullmatch(name)}
    if SCOPE + "wte" in names:
        return SCOPE
    scopes = [name.removesuffix("wte") for name in names if name == "wte" or name.endswith("/wte")]
    whole = [scope for scope in scopes if {scope + name for name in tensor_table(config)} <= names]
    if len(whole) > 1:
        said = listing(f"{scope}wte" for scope in sorted(whole))
        raise refusal(bundle.index, f"has {len(whole)} models, and none in {SCOPE[:-1]}: {said}")
    return whole[0] if whole else SCOPE


def _found(
    entries: Mapping[str, Entry], scope: str, config: Config
) -> tuple[dict[str, Stored], list[str]]:
    """The tensors under our names, and what training has left beside them."""
    table = tensor_table(config)
    found: dict[str, Stored] = {}
    training = []
    for name, entry in entries.items():
        inner = name[len(scope) :] if name.startswith(scope) else f"/{name}"
        slot = SLOT.fullmatch(name)
        of = slot is not None and any(slot["of"].endswith(f"{scope}{own}") for own in table)
        if inner not in table and (of or KEPT_ONCE.fullmatch(name)):
            training.append(name)
            continue
        # A tensor outside the scope must not pass for the one inside it.
        found[inner] = Stored(name, entry.dtype, entry.shape)
    return found, training
