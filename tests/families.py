"""One small model of each family, in which whatever the family has matters at a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, read_family, write_family
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.reference import Architecture, Config

Sources = Callable[[str], Checkpoint]

#: V = 101, P = 19, D = 24, H = 4, L = 3; with these G = 2, K = 10 or 6, F = 40, W = 5, E = 5.
SIZES = (101, 19, 24, 4, 3)


def stated(name: str, **more: Any) -> dict[str, Any]:
    """Keys of a ``config.json``; None takes one away."""
    found = {**example(name, SIZES), **more}
    return {key: value for key, value in found.items() if more.get(key, 0) is not None}


@cache
def family(name: str) -> Config:
    return read(stated(name))


def read(keys: Mapping[str, Any]) -> Config:
    return read_family(FAMILIES[keys["model_type"]], Path("config.json"), keys)


def keyed(config: Config, **keys: Any) -> Config:
    """The same model with other keys of its architecture."""
    return replace(config, own=replace(config.keys, **keys))


def written(directory: Path, name: str, **more: Any) -> Path:
    """A directory of this family."""
    write_family(directory, stated(name, **more), lambda config: synthetic_tensors(config, 0))
    return directory


def in_memory(name: str, config: Config | None = None) -> Checkpoint:
    config = config or family(name)
    return Checkpoint(Path("in-memory"), "huggingface", config, dict(synthetic_tensors(config, 0)))


#: A decoder with three matrices for q, k and v and nothing else that GPT-2 has not.
PLAIN = Config(
    *(11, 17, 12, 3, 2),
    architecture="plain",
    own=Architecture(norm_first=True, norm_last=True, fused=False),
)
