"""Sizes and the table of tensors: the published numbers, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from oracle import CONFIG

from gpt_verify.reference import RELEASED, Config, ConfigError, parameter_count, tensor_table

SIZES = CONFIG.as_dict()


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("124M", 124_439_808),
        ("355M", 354_823_168),
        ("774M", 774_030_080),
        ("1558M", 1_557_611_200),
    ],
)
def test_released_models_have_as_many_parameters_as_were_released(size, count):
    assert parameter_count(RELEASED[size]) == count


def test_there_are_four_released_models():
    assert list(RELEASED) == ["124M", "355M", "774M", "1558M"]
    assert len(tensor_table(RELEASED["124M"])) == 148
    # A hparams.json as it was published.
    published = '{"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}'
    assert Config.from_mapping(json.loads(published)) == RELEASED["124M"]
    assert RELEASED["124M"].as_dict() == json.loads(published)
    assert {config.head_size for config in RELEASED.values()} == {64}


def test_names_shapes_and_roles_of_a_model_with_one_layer():
    """As a released checkpoint lists them (``model/`` left out), for D = 12, V = 11, P = 7."""
    table = tensor_table(Config(n_vocab=11, n_ctx=7, n_embd=12, n_head=3, n_layer=1))
    assert [(s.name, s.shape, s.stored_shape, s.role) for s in table.values()] == [
        ("wte", (11, 12), (11, 12), "embedding"),
        ("wpe", (7, 12), (7, 12), "embedding"),
        ("h0/ln_1/g", (12,), (12,), "gain"),
        ("h0/ln_1/b", (12,), (12,), "bias"),
        ("h0/attn/c_attn/w", (12, 36), (1, 12, 36), "matrix"),
        ("h0/attn/c_attn/b", (36,), (36,), "bias"),
        ("h0/attn/c_proj/w", (12, 12), (1, 12, 12), "matrix"),
        ("h0/attn/c_proj/b", (12,), (12,), "bias"),
        ("h0/ln_2/g", (12,), (12,), "gain"),
        ("h0/ln_2/b", (12,), (12,), "bias"),
        ("h0/mlp/c_fc/w", (12, 48), (1, 12, 48), "matrix"),
        ("h0/mlp/c_fc/b", (48,), (48,), "bias"),
        ("h0/mlp/c_proj/w", (48, 12), (1, 48, 12), "matrix"),
        ("h0/mlp/c_proj/b", (12,), (12,), "bias"),
        ("ln_f/g", (12,), (12,), "gain"),
        ("ln_f/b", (12,), (12,), "bias"),
    ]
    assert list(table) == [spec.name for spec in table.values()]
    assert [spec.size for spec in table.values()][:6] == [132, 84, 12, 12, 432, 36]


def test_each_layer_has_tensors_of_its_own():
    table = tensor_table(CONFIG)
    layers = [
        {name.partition("/")[2] for name in table if name.startswith(f"h{layer}/")}
        for layer in range(CONFIG.n_layer)
    ]
    assert len(layers[0]) == 12 and layers[0] == layers[1]
    assert len(table) == 2 + 12 * CONFIG.n_layer + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_embd = 12 is not divisible by n_head = 5"),
        ({"n_layer": 0}, "n_layer = 0 is outside 1 … 4096"),
        ({"n_vocab": -1}, "n_vocab = -1 is outside 1 … 16777216"),
        ({"n_vocab": (1 << 24) + 1}, "n_vocab = 16777217 is outside 1 … 16777216"),
        ({"n_ctx": (1 << 20) + 1}, "n_ctx = 1048577 is outside 1 … 1048576"),
        ({"n_embd": (1 << 16) + 12}, "n_embd = 65548 is outside 1 … 65536"),
        ({"n_head": (1 << 12) + 1}, "n_head = 4097 is outside 1 … 4096"),
        ({"n_layer": (1 << 12) + 1}, "n_layer = 4097 is outside 1 … 4096"),
        ({"n_embd": 12.0}, "n_embd = 12.0 is not an integer"),
        ({"n_head": True}, "n_head = True is not an integer"),
        ({"n_ctx": "7"}, "n_ctx = '7' is not an integer"),
        ({"n_ctx": None}, "n_ctx = None is not an integer"),
        ({"n_ctx": np.float64(7)}, "n_ctx = np.float64(7.0) is not an integer"),
        ({"n_state": 12, "act": "relu"}, "unknown key: act, n_state"),
    ],
)
def test_impossible_sizes_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Config.from_mapping({**SIZES, **change})


def test_missing_sizes_are_refused_by_name():
    rest = {name: size for name, size in SIZES.items() if name not in ("n_ctx", "n_layer")}
    with pytest.raises(ConfigError, match=r"^missing: n_ctx, n_layer$"):
        Config.from_mapping(rest)
    with pytest.raises(ConfigError, match=r"^missing: n_ctx, n_embd, n_head, n_layer, n_vocab$"):
        Config.from_mapping({})


def test_the_largest_sizes_are_accepted():
    largest = Config(1 << 24, 1 << 20, 1 << 16, 1 << 12, 1 << 12)
    assert largest.head_size == 16
    assert Config(1, 1, 1, 1, 1).head_size == 1
