"""Directories of the families: opened lazily, and written.

``config.json`` says what the model is (``gpt_verify.checkpoint.families``). Several tensors of the
checkpoint may lie in one that is stored, and then each is cut out of it when it is looked up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family import Family
from gpt_verify.checkpoint.family_keys import Keys
from gpt_verify.checkpoint.files import read_json, refusal
from gpt_verify.checkpoint.hf_config import ARCHITECTURE
from gpt_verify.checkpoint.hf_weights import Weights, open_weights
from gpt_verify.checkpoint.keys import stated
from gpt_verify.checkpoint.places import Piece, pieces
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.safetensors_file import ToWrite, replacing, write_tensors
from gpt_verify.checkpoint.tensors import READABLE, LazyTensors
from gpt_verify.errors import CheckpointError, UsageError
from gpt_verify.reference import Config, ConfigError, tensor_table
from gpt_verify.text import listing

Array = NDArray[Any]


def family_of(config_json: Path) -> Family | None:
    """The family that a ``config.json`` names; None of GPT-2, GPT, and one that names nothing.

    Raises:
        CheckpointError: it names one that is not known.
    """
    name = read_json(config_json).get("model_type")
    if not isinstance(name, str) or name in ARCHITECTURE:
        return None
    if name not in FAMILIES:
        known = ", ".join((*ARCHITECTURE, *FAMILIES))
        what = f"{stated('model_type', name)} is a family that is not supported"
        raise refusal(config_json, f"{what}; what can be judged: {known}")
    return FAMILIES[name]


def read_family(family: Family, path: Path, stated: Mapping[str, object]) -> Config:
    """The model that the keys of a ``config.json`` describe.

    Raises:
        CheckpointError: they make no model, or one that is not known.
    """
    try:
        return family.read(Keys(path, stated))
    except (ConfigError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
        # Whatever a value of another kind sets off, deep within.
        raise refusal(path, f"no {family.name}: {error}") from None


def open_family(path: Path, family: Family) -> Checkpoint:
    """Open a directory of this family; tensors are read when they are looked up.

    Raises:
        CheckpointError: a key of ``config.json`` makes it a model that is not known; a tensor is
            missing, surplus, or of the wrong shape or type; a head that is said to be the table of
            tokens is another one.
    """
    config_json = path / "config.json"
    config = read_family(family, config_json, read_json(config_json))
    weights, table = open_weights(path), tensor_table(config)
    places = pieces(config, family.places(config))
    stored = _stored(weights, places, config, family)

    def read(name: str) -> NDArray[np.float32]:
        value = places[name].read(weights.read(stored[places[name].name]), table[name])
        value.setflags(write=False)
        return value

    def own(name: str) -> NDArray[np.float32]:
        value = places[name].read(weights.own(stored[places[name].name]), table[name])
        return value if value.flags.writeable else value.copy()

    return Checkpoint(
        path=path,
        format="huggingface",
        config=config,
        tensors=LazyTensors(table, read, own),
        files=(config_json, *weights.files),
    )


def _stored(
    weights: Weights, places: Mapping[str, Piece], config: Config, family: Family
) -> dict[str, str]:
    """Name that a family gives a tensor → the one that it has in these files, which may lack what
    stands before it."""
    expected = {piece.name: piece.shape for piece in places.values()}
    found: dict[str, str] = {}
    surplus = []
    for name in weights.stored:
        full = name if name in expected else family.base + name
        if full in found:
            raise refusal(weights.main, f"{found[full]} and {name} are the same tensor")
        if full in expected:
            found[full] = name
        elif not re.fullmatch(family.unread, full):
            surplus.append(name)
    head = _head(family, config)
    if config.tied and head in surplus:
        surplus.remove(head)
        table = found.get(places["wte"].name)
        if table is None or not np.array_equal(weights.bits(head), weights.bits(table)):
            raise refusal(weights.main, f"{head} is not {table} bit for bit: not tied")
    shapes, dtypes = [], []
    for full, name in found.items():
        dtype, shape = weights.stored[name]
        if shape != expected[full]:
            shapes.append(f"{name} {list(shape)} (should be {list(expected[full])})")
        if dtype not in READABLE:
            dtypes.append(f"{name} {dtype} (should be {' or '.join(READABLE)})")
    kinds = {
        "missing": [name for name in expected if name not in found],
        "surplus": surplus,
        "wrong shape": shapes,
        "wrong type": dtypes,
    }
    if wrong := [f"{kind}: {listing(names)}" for kind, names in kinds.items() if names]:
        raise refusal(weights.main, "; ".join(wrong))
    return found


def _head(family: Family, config: Config) -> str:
    """The stored name of a head that is not the table of tokens."""
    place = family.places(config)["lm_head"]
    return f"{place if isinstance(place, str) else place.scope}.weight"


def stored_tensors(config: Config, tensors: Mapping[str, NDArray[np.float32]]) -> list[ToWrite]:
    """The tensors that a directory of this model stores."""
    table = tensor_table(config)
    together: dict[str, dict[str, Piece]] = {}
    for name, piece in pieces(config, FAMILIES[config.architecture].places(config)).items():
        together.setdefault(piece.name, {})[name] = piece

    def make(parts: Mapping[str, Piece]) -> NDArray[np.float32]:
        whole = np.empty(next(iter(parts.values())).shape, np.float32)
        for name, piece in parts.items():
            value, shape = tensors[name], table[name].shape
            if value.shape != shape or value.dtype != np.float32:
                found = f"{value.dtype}{list(value.shape)}"
                raise CheckpointError(f"{name} is {found}, should be float32{list(shape)}")
            piece.write(whole, value)
        return whole

    return [
        ToWrite(stored, next(iter(parts.values())).shape, partial(make, parts))
        for stored, parts in together.items()
    ]


def example(name: str, sizes: tuple[int, int, int, int, int]) -> dict[str, Any]:
    """Keys of a small model of a family, in which whatever the family has matters.

    Args:
        name: of the family.
        sizes: n_vocab, n_ctx, n_embd, n_head, n_layer.
    """
    v, p, d, h, n = sizes
    family = FAMILIES[name]
    return {
        "architectures": [family.model],
        "model_type": name,
        "vocab_size": v,
        "max_position_embeddings": p,
        "hidden_size": d,
        "num_attention_heads": h,
        "num_hidden_layers": n,
        "bos_token_id": v - 1,
        "eos_token_id": v - 1,
        "pad_token_id": None,
        **{key: value(n) if callable(value) else value for key, value in family.example.items()},
    }


def released(name: str, size: str) -> dict[str, Any]:
    """Keys of a model of a family as its authors released it.

    Raises:
        UsageError: no such size is known.
    """
    family = FAMILIES[name]
    if size not in family.released:
        known = ", ".join(family.released) or "none"
        raise UsageError(f"size {size!r} is no released size of {name} that is known ({known})")
    stated = {"architectures": [family.model], "model_type": name, "pad_token_id": None}
    return {**stated, **family.released[size]}


def write_family(
    directory: Path, stated: Mapping[str, Any], tensors: Callable[[Config], Mapping[str, Any]]
) -> Config:
    """Write ``model.safetensors`` and ``config.json``, in this order, and return what they say.

    Args:
        directory: made if need be.
        stated: keys of ``config.json``.
        tensors: the model → its tensors.
    """
    family = FAMILIES[stated["model_type"]]
    config = read_family(family, directory / "config.json", stated)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / "model.safetensors") as file:
        write_tensors(file, stored_tensors(config, tensors(config)))
    with replacing(directory / "config.json") as file:
        file.write((json.dumps(stated, indent=2) + "\n").encode())
    return config
