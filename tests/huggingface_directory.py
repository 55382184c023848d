"""A GPT-2 of five odd sizes as a Hugging Face directory, for the tests of reading and writing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.hf_names import stored_name
from gpt_verify.checkpoint.hf_pickled import SINGLE
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import Config, tensor_table

CONFIG = Config(n_vocab=11, n_ctx=7, n_embd=6, n_head=3, n_layer=2)
SIZES = {"vocab_size": 11, "n_positions": 7, "n_embd": 6, "n_head": 3, "n_layer": 2}
MINIMAL = {"model_type": "gpt2", **SIZES}
State = dict[str, torch.Tensor]


def tensors(config: Config = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    table = tensor_table(config)
    return {n: rng.standard_normal(s.shape).astype(np.float32) for n, s in table.items()}


def state(prefix: str = "transformer.") -> State:
    return {prefix + stored_name(n): torch.from_numpy(v) for n, v in tensors().items()}


def rounded(dtype: torch.dtype) -> dict[str, np.ndarray]:
    return {n: torch.from_numpy(v).to(dtype).float().numpy() for n, v in tensors().items()}


def write(directory: Path, values: State, **keys: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**MINIMAL, **keys}))
    save_file(values, directory / SINGLE, metadata={"format": "pt"})
    return directory


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_holds(directory: Path, expected: Mapping[str, np.ndarray]) -> None:
    checkpoint = open_checkpoint(directory)
    assert checkpoint.format == "huggingface"
    assert checkpoint.config == CONFIG
    assert list(checkpoint.tensors) == list(expected)
    for name, value in expected.items():
        found = checkpoint.tensors[name]
        assert found.dtype == np.float32
        assert found.shape == value.shape
        assert found.tobytes() == value.tobytes()
        assert not found.flags.writeable
