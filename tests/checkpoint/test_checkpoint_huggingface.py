"""Hugging Face directories: read, written, or refused with the name of what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from huggingface_directory import (
    CONFIG,
    MINIMAL,
    SIZES,
    assert_holds,
    refused,
    state,
    tensors,
    write,
)
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.hf_names import own_name, stored_name
from gpt_verify.checkpoint.hf_weights import PICKLED, SHARDED
from gpt_verify.errors import CheckpointError, MissingDependency
from gpt_verify.reference import RELEASED, tensor_table

# --- reading -------------------------------------------------------------------------------------


def test_what_transformers_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None)).eval()
    model.save_pretrained(tmp_path)
    saved = {name: value.numpy() for name, value in model.transformer.state_dict().items()}
    assert_holds(tmp_path, {name: saved[stored_name(name)] for name in tensor_table(CONFIG)})


def test_names_are_mapped_both_ways() -> None:
    for name in tensor_table(RELEASED["1558M"]):
        assert own_name(stored_name(name)) == name
        assert own_name(f"transformer.{stored_name(name)}") == name
    strangers = "h0.attn.c_attn.weight", "h.00.ln_1.weight", "score.bias", "wte.bias", "h.0", ""
    assert not {own_name(name) for name in strangers} & set(tensor_table(CONFIG))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_with_and_without_prefix_masks_and_head(tmp_path: Path, prefix: str) -> None:
    values = state(prefix)
    values["lm_head.weight"] = values[f"{prefix}wte.weight"].clone()
    values[f"{prefix}h.1.attn.bias"] = torch.ones(1, 1, 7, 7, dtype=torch.uint8)
    values[f"{prefix}h.1.attn.masked_bias"] = torch.tensor(-1e4)
    assert_holds(write(tmp_path, values), tensors())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {name: value.to(dtype) for name, value in state().items()}
    values["lm_head.weight"] = values["transformer.wte.weight"].clone()
    expected = {
        name: torch.from_numpy(v).to(dtype).float().numpy() for name, v in tensors().items()
    }
    assert_holds(write(tmp_path, values), expected)


def test_float32_is_not_copied(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, state()))
    assert np.shares_memory(checkpoint.tensors["wte"], checkpoint.tensors["wte"])


def shard(directory: Path) -> Path:
    values = state()
    names = list(values)
    split = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in split.items():
        save_file({name: values[name] for name in part}, directory / file)
    where = {name: file for file, part in split.items() for name in part}
    (directory / SHARDED).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "config.json").write_text(json.dumps(MINIMAL))
    return directory


def test_shards(tmp_path: Path) -> None:
    assert_holds(shard(tmp_path), tensors())
    files = [file.name for file in open_checkpoint(tmp_path).files]
    assert files == ["config.json", SHARDED, "a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("../a.safetensors", "is said to be in '../a.safetensors', which is no file beside it"),
        ("/etc/passwd", "is said to be in '/etc/passwd', which is no file beside it"),
        (7, "is said to be in 7, which is no file beside it"),
        ("b.safetensors", "has other tensors than model.safetensors.index.json says: transformer."),
        ("c.safetensors", "c.safetensors: no such file"),
    ],
)
def test_shards_that_are_refused(tmp_path: Path, file: object, what: str) -> None:
    index = json.loads((shard(tmp_path) / SHARDED).read_text())
    index["weight_map"]["transformer.wte.weight"] = file
    (tmp_path / SHARDED).write_text(json.dumps(index))
    assert what in refused(tmp_path)
    (tmp_path / SHARDED).write_text("{}")
    assert refused(tmp_path) == f"{tmp_path}/{SHARDED}: has no weight_map"


# --- pytorch_model.bin ---------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    values = state()
    values["lm_head.weight"] = values["transformer.wte.weight"]
    torch.save(values, tmp_path / PICKLED, _use_new_zipfile_serialization=zipped)
    assert_holds(tmp_path, tensors())
    halves = {name: value.bfloat16() for name, value in values.items()}
    torch.save(halves, tmp_path / PICKLED, _use_new_zipfile_serialization=zipped)
    assert_holds(
        tmp_path, {n: torch.from_numpy(v).bfloat16().float().numpy() for n, v in tensors().items()}
    )


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exit, ())


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Bomb(), "is more than tensors: it asks for _sitebuiltins.Quitter, which would run code"),
        ([1], "holds a list, not a mapping of tensors"),
        ({"wte.weight": 3}, "'wte.weight' is a int, not a tensor"),
        ({3: torch.zeros(11, 6)}, "3 is the name of a tensor, and no string"),
        ({"wte.weight": torch.eye(3).to_sparse()}, "wte.weight is not a plain tensor"),
        ({"wte.weight": torch.zeros(11, 6)}, "missing: wpe.weight, h.0.ln_1.weight, h.0.ln_1.bias"),
    ],
)
def test_pickles_that_are_refused(tmp_path: Path, value: object, what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    torch.save(value, tmp_path / PICKLED)
    assert f"{tmp_path}/{PICKLED}: {what}" in refused(tmp_path)


def test_a_damaged_pickle_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    assert "no weights: none of model.safetensors, " in refused(tmp_path)
    for data in (b"", b"PK", b"\x80\x02junk"):
        (tmp_path / PICKLED).write_bytes(data)
        assert f"{tmp_path}/{PICKLED}: torch cannot load it: " in refused(tmp_path)


def test_a_pickle_that_is_damaged_inside_of_its_zip(tmp_path: Path) -> None:
    """torch calls it unsafe, and there is nothing that it asks for."""
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    torch.save(state(), tmp_path / "whole")
    with ZipFile(tmp_path / "whole") as whole, ZipFile(tmp_path / PICKLED, "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, b"\x80\x02\xff." if name.endswith(".pkl") else whole.read(name))
    said = refused(tmp_path)
    assert "torch's loader of tensors cannot load it: it is damaged, or more than tensors" in said


def test_a_number_that_float32_does_not_have(tmp_path: Path) -> None:
    values = {**state(), "transformer.ln_f.bias": torch.full((6,), 1e300, dtype=torch.float64)}
    tensors = open_checkpoint(write(tmp_path, values)).tensors
    with pytest.raises(
        CheckpointError, match=r"ln_f\.bias has numbers that are too large for float32"
    ):
        tensors["ln_f/b"]


def test_pickled_weights_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    torch.save(state(), tmp_path / PICKLED)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"pytorch_model\.bin: needs torch, which is not"):
        open_checkpoint(tmp_path)


# --- config.json ---------------------------------------------------------------------------------


def test_aliases_and_keys_that_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, state())
    released = {
        **{"hidden_size": 6, "max_position_embeddings": 7, "n_ctx": 7, "vocab_size": 11},
        **{"num_attention_heads": 3, "num_hidden_layers": 2, "n_inner": 24, "model_type": "gpt2"},
        **{"architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-05},
        **{
            "reorder_and_upcast_attn": True,
            "pruned_heads": {},
            "n_special": 0,
            "output_past": True,
        },
        **{
            "task_specific_params": {"text-generation": {"do_sample": True}},
            "torch_dtype": "float16",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    assert open_checkpoint(tmp_path).config == CONFIG


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (
            {"model_type": "falcon"},
            'model_type = "falcon" is a family that is not supported; what can be judged: gp',
        ),
        ({"activation_function": "gelu"}, 'activation_function = "gelu", should be "gelu_new"'),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06, should be 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights = false, should be true"),
        ({"scale_attn_weights": 1}, "scale_attn_weights = 1, should be true"),
        ({"scale_attn_by_inverse_layer_idx": True}, "idx = true, should be false"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings = 0, should be true or false"),
        ({"add_cross_attention": True}, "add_cross_attention = true, should be false"),
        ({"pruned_heads": {"0": [1]}}, 'pruned_heads = {"0": [1]}, should be {} or null'),
        (
            {"architectures": ["GPT2WithRotary"]},
            'architectures = ["GPT2WithRotary"]: "GPT2WithRotary" is no class of transformers',
        ),
        ({"n_inner": 25}, "n_inner = 25, should be null or 24"),
        ({"hidden_size": 7}, "n_embd = 6 and hidden_size = 7 disagree"),
        (
            {"rope_theta": 1.0, "quantization_config": {"bits": 4}},
            'rope_theta = 1.0, quantization_config = {"bits": 4}: alters the function, and is not',
        ),
        ({"n_layer": 3}, "n_layer = 3, but the last layer in model.safetensors is that of trans"),
        ({"vocab_size": 12}, "vocab_size = 12, but transformer.wte.weight in model.safetensors is"),
        ({"n_positions": 8}, "n_positions = 8, but transformer.wpe.weight in model.safetensors is"),
        ({"n_head": 4}, "n_embd = 6 is not divisible by n_head = 4"),
        ({"n_layer": 10**9}, "n_layer = 1000000000 is outside"),
        ({"n_layer": 2.0}, "n_layer = 2.0 is not an integer"),
        ({"initializer_range": float("nan")}, "NaN is not a number of JSON"),
    ],
)
def test_configs_that_are_not_gpt2s(tmp_path: Path, keys: dict[str, object], what: str) -> None:
    said = refused(write(tmp_path, state(), **keys))
    assert said.startswith(f"{tmp_path}/config.json: ")
    assert what in said


@pytest.mark.parametrize("key", SIZES)
def test_no_size_has_a_default(tmp_path: Path, key: str) -> None:
    write(tmp_path, state())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in MINIMAL.items() if k != key})
    )
    assert refused(tmp_path) == f"{tmp_path}/config.json: missing: {key}"


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"lm_head.bias": torch.zeros(11)}, "surplus: lm_head.bias"),
        ({"transformer.h0.ln_1.weight": torch.zeros(6)}, "surplus: transformer.h0.ln_1.weight"),
        ({"wte.weight": torch.zeros(11, 6)}, "transformer.wte.weight and wte.weight are the same"),
        (
            {"lm_head.weight": torch.zeros(11, 6), "module.lm_head.weight": torch.zeros(11, 6)},
            "lm_head.weight and module.lm_head.weight are the same tensor",
        ),
        ({"transformer.ln_f.bias": None}, "missing: ln_f.bias"),
        (
            {"transformer.ln_f.bias": torch.zeros(7)},
            "wrong shape: transformer.ln_f.bias [7] (should",
        ),
        (
            {"transformer.h.0.mlp.c_fc.weight": torch.zeros(24, 6)},
            "wrong shape: transformer.h.0.mlp.c_fc.weight [24, 6] (should be [6, 24])",
        ),
        (
            {"transformer.ln_f.bias": torch.zeros(6, dtype=torch.int32)},
            "wrong type: transformer.ln_f.bias I32 (should be float32 or float16 or bfloat16 or ",
        ),
        (
            {"lm_head.weight": torch.zeros(11, 6)},
            "lm_head.weight is not transformer.wte.weight bit for bit: they first differ at [0, 0]",
        ),
        (
            {"lm_head.weight": torch.zeros(12, 6)},
            "lm_head.weight is float32[12, 6], but transformer",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_table(
    tmp_path: Path, change: dict[str, torch.Tensor | None], what: str
) -> None:
    values = {**state(), **change}
    directory = write(
        tmp_path, {name: value for name, value in values.items() if value is not None}
    )
    said = refused(directory)
    assert said.startswith(f"{directory}/model.safetensors: ")
    assert what in said


def test_a_head_that_differs_in_one_bit(tmp_path: Path) -> None:
    values = state()
    values["lm_head.weight"] = values["transformer.wte.weight"].clone()
    values["lm_head.weight"].view(torch.int32)[9, 4] ^= 1
    assert refused(write(tmp_path, values)).endswith("they first differ at [9, 4]")
    values["lm_head.weight"] = values["transformer.wte.weight"].clone()
    values["transformer.wte.weight"][3, 2] = -0.0
    values["lm_head.weight"][3, 2] = 0.0
    assert refused(write(tmp_path, values)).endswith("they first differ at [3, 2]")
