"""What is written as a Hugging Face directory, read by us and by transformers."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_directory import (
    CONFIG,
    assert_holds,
    tensors,
)
from rounding import Noise, reference_run
from transformers import GPT2LMHeadModel

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.hf_pickled import SINGLE
from gpt_verify.checkpoint.write import write_huggingface
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import Config, tensor_table

# --- writing -------------------------------------------------------------------------------------


def test_written_and_read_again(tmp_path: Path) -> None:
    encoder, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    encoder.write_text('{"<|endoftext|>": 10}')
    merges.write_text("#version: 0.2\n")
    out = tmp_path / "deep" / "out"
    write_huggingface(out, CONFIG, tensors(), encoder, merges)
    assert_holds(out, tensors())
    checkpoint = open_checkpoint(out)
    assert checkpoint.encoder == out / "vocab.json"
    assert checkpoint.merges == out / "merges.txt"
    assert sorted(file.name for file in out.iterdir()) == sorted(f.name for f in checkpoint.files)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 10


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    write_huggingface(tmp_path, CONFIG, tensors())
    model, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    tokens = np.array([1, 2, 3, 10, 0])
    got = model.double().eval()(torch.from_numpy(tokens)[None]).logits[0].detach().numpy()
    Noise(reference_run(tensors(), CONFIG, tokens)).assert_holds("logits", got)


class OneAtATime(Mapping[str, np.ndarray]):
    """Makes each tensor when it is looked up."""

    def __init__(self, config: Config) -> None:
        self.table = tensor_table(config)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.ones(self.table[name].shape, np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    config = Config(n_vocab=3000, n_ctx=64, n_embd=256, n_head=4, n_layer=6)
    tracemalloc.start()
    try:
        write_huggingface(tmp_path, config, OneAtATime(config))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / SINGLE).stat().st_size > 20_000_000
    assert peak < 2.5 * 4 * 3000 * 256


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    values = tensors()
    values["ln_f/b"] = values["ln_f/b"].astype(np.float64)
    with pytest.raises(CheckpointError, match=r"ln_f/b is float64\[6\], should be float32\[6\]"):
        write_huggingface(tmp_path, CONFIG, values)
    del values["ln_f/b"]
    with pytest.raises(CheckpointError, match="nothing written: missing tensor ln_f/b"):
        write_huggingface(tmp_path, CONFIG, values)
    with pytest.raises(CheckpointError, match="nothing written: surplus tensor extra"):
        write_huggingface(tmp_path, CONFIG, {**tensors(), "extra": np.ones(1, np.float32)})
    assert list(tmp_path.iterdir()) == []
