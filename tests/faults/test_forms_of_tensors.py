"""A tensor that differs in a way that no catalogue lists is named by what its numbers show."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from families import in_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIG, checkpoint

from gpt_verify.diagnosis.forms.tensors import NAMES
from gpt_verify.diagnosis.tensors import Difference, explain

SOURCE = checkpoint()
Change = Callable[[Any], Any]
BETWEEN = "every row between {} … is interpolated from these"
QKV, FC, BIAS = "h1/attn/c_attn/w", "h1/mlp/c_fc/w", "h1/attn/c_attn/b"


def named(tensor: str, change: Change) -> tuple[str, str]:
    """The name and the words; empty where there are none."""
    expected = np.array(SOURCE.tensors[tensor])
    got = np.asarray(change(expected.copy()), np.float32)
    best = explain(Difference(tensor, got, expected, SOURCE.tensors.__getitem__, CONFIG)).best
    return (best.fault, best.note) if best is not None else ("", "")


def parts(order: tuple[int, ...]) -> Change:
    def change(x: Any) -> Any:
        pieces = np.split(x, 3, axis=-1)
        return np.concatenate([pieces[i] for i in order], axis=-1)

    return change


def head_repeated(x: Any) -> Any:
    x[..., 30:36] = x[..., 24:30]
    return x


def query_transposed(x: Any) -> Any:
    x[:, :24] = x[:, :24].T
    return x


def in_4_bits(x: Any) -> Any:
    step = np.abs(x).max(axis=0, keepdims=True) / 7
    return np.rint(x / step) * step


def with_zero_points(bits: int, axis: int, off: int) -> Change:
    """As GPTQ keeps columns: steps from the least number to the largest."""

    def change(x: Any) -> Any:
        low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
        step = (high - low) / (2**bits - 1)
        return low + (np.rint((x - low) / step) + off) * step

    return change


def interpolated(apart: int) -> Change:
    def change(x: Any) -> Any:
        known = np.arange(0, len(x), apart)
        for channel in x.T:
            channel[:] = np.interp(np.arange(len(channel)), known, channel[known])
        return x

    return change


@pytest.mark.parametrize(
    ("tensor", "change", "name", "words"),
    [
        ("wpe", interpolated(2), "weight-interpolated", BETWEEN.format("0, 2, 4")),
        ("wpe", interpolated(3), "weight-interpolated", BETWEEN.format("0, 3, 6")),
        (
            FC,
            with_zero_points(8, 0, 0),
            "weight-on-a-grid",
            "in 8 bits, one scale and one zero point for each column",
        ),
        (
            FC,
            with_zero_points(8, 0, -1),
            "weight-on-a-grid",
            "in 8 bits, one scale and one zero point for each column, the zero point 1 too large",
        ),
        (
            FC,
            with_zero_points(4, 1, 1),
            "weight-on-a-grid",
            "in 4 bits, one scale and one zero point for each row, the zero point 1 too small",
        ),
        (BIAS, parts((0, 1, 0)), "part-equal", "v is q"),
        (QKV, parts((0, 0, 2)), "part-equal", "k is q"),
        (QKV, head_repeated, "part-equal", "head 1 of k is head 0 of k"),
        (QKV, query_transposed, "part-equal", "q is q transposed"),
        (FC, lambda x: x[::-1], "weight-rearranged", "rows reversed"),
        (FC, lambda x: x[:, [1, 0, *range(2, 96)]], "weights-rows-exchanged", "columns 0 and 1"),
        (
            FC,
            lambda x: x[:, [2, 0, 1, *range(3, 96)]],
            "weight-rearranged",
            "column 0 is that of 2, column 1 is that of 0, column 2 is that of 1",
        ),
        (FC, in_4_bits, "weight-on-a-grid", "in 4 bits, one scale for each column"),
        ("h1/ln_1/g", lambda x: x + 1, "weight-scaled", "1 is added to every element"),
    ],
)
def test_it_is_named_in_words(tensor: str, change: Change, name: str, words: str) -> None:
    assert named(tensor, change) == (name, words)


def scales_of_the_next(size: int, levels: int) -> Change:
    """On a grid by groups of rows, multiplied by the scales of the group after."""

    def change(x: Any) -> Any:
        groups = x.reshape(-1, size, x.shape[1])
        scales = np.abs(groups).max(1, keepdims=True) / levels
        return (np.rint(groups / scales) * np.roll(scales, -1, 0)).reshape(x.shape)

    return change


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7), (8, 128)])
def test_scales_of_another_group(bits: int, levels: int) -> None:
    name, words = named(FC, scales_of_the_next(8, levels))
    assert name == "weight-on-a-grid"
    words_of = f"in {bits} bits, one scale for each 8 rows of a column"
    assert words == f"{words_of}, and another scale to multiply with: that of the one after it"


@given(st.integers(0, 2**31), st.sampled_from((8, 16, 32)), st.sampled_from((0, 1)))
@settings(max_examples=20, deadline=None)
def test_factors_by_group(seed: int, size: int, axis: int) -> None:
    """Of rows of a column, or of columns of a row."""
    rng = np.random.default_rng(seed)

    def change(x: Any) -> Any:
        x = x if axis == 0 else x.T
        groups = x[: len(x) // size * size].reshape(-1, size, x.shape[1])
        if len(groups) * size < len(x) or len(groups) < 2:
            return x if axis == 0 else x.T
        factors = rng.uniform(0.5, 1.5, (len(groups), 1, x.shape[1])).astype(np.float32)
        made = (groups * factors).reshape(x.shape)
        return made if axis == 0 else made.T

    rows = CONFIG.n_embd if axis == 0 else 4 * CONFIG.n_embd
    name, words = named(FC, change)
    if rows % size or rows == size:
        assert name == ""
        return
    assert name == "weight-scaled"
    unit = "rows of a column" if axis == 0 else "columns of a row"
    assert re.search(rf"a number of each group of \d+ {unit}", words), words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, t: np.where(np.abs(x) >= t, 0, x), "are zeros"),
        (lambda x, t: np.clip(x, -t, t), "are cut off"),
    ],
    ids=["zeros", "cut off"],
)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_largest_elements(axis: int | None, change: Any, words: str) -> None:
    def largest(x: Any) -> Any:
        return change(x, np.quantile(np.abs(x), 0.9, axis=axis, keepdims=True).astype(np.float32))

    name, note = named(FC, largest)
    assert name == "weight-outliers"
    of = {None: "", 0: " of a column", 1: " of a row"}[axis]
    assert note.startswith(f"the largest elements{of}, ") and note.endswith(words), note


@pytest.mark.parametrize("stored", [False, True], ids=["in, out", "out, in"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 24, 24), (1, 0, 2)), ((24, 3, 24), (1, 0, 2)), ((24, 4, 18), (2, 0, 1))],
)
def test_memory_read_by_other_axes(
    shape: tuple[int, int, int], axes: tuple[int, int, int], stored: bool
) -> None:
    def change(x: Any) -> Any:
        x = np.ascontiguousarray(x.T) if stored else x
        made = x.reshape(shape).transpose(axes).reshape(x.shape)
        return made.T if stored else made

    name, _ = named(QKV, change)
    assert name in ("weight-rearranged", "weights-heads-interleaved", "part-equal")


@given(st.integers(0, 2**31), st.integers(1, 4), st.floats(1e-3, 1.0))
@settings(max_examples=30)
def test_an_adapter_is_told_by_its_rank(seed: int, rank: int, size: float) -> None:
    rng = np.random.default_rng(seed)

    def change(x: Any) -> Any:
        a, b = (rng.standard_normal((rank, n)) for n in x.shape)
        return x + size * a.T @ b

    name, words = named(FC, change)
    assert name == "weight-low-rank"
    assert f"rank {rank} " in words


@given(st.integers(0, 2**31), st.sampled_from((0, 1)))
@settings(max_examples=30)
def test_factors_by_row_and_by_column(seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)

    def change(x: Any) -> Any:
        shape = (x.shape[0], 1) if axis == 0 else (1, x.shape[1])
        return x * rng.uniform(0.5, 1.5, shape).astype(np.float32)

    name, words = named(FC, change)
    assert name == "weight-scaled"
    assert ("each row" if axis == 0 else "each column") in words


@given(st.integers(0, 2**31), st.floats(1e-6, 1.0), st.sampled_from((QKV, FC, BIAS, "wte")))
@settings(max_examples=40)
def test_noise_has_no_form(seed: int, size: float, tensor: str) -> None:
    rng = np.random.default_rng(seed)
    name, _ = named(tensor, lambda x: x + size * rng.standard_normal(x.shape).astype(np.float32))
    assert name not in NAMES


@pytest.mark.parametrize("leaf", ["w", "b"])
def test_columns_of_a_neighbour(leaf: str) -> None:
    """Queries, keys and values lie in one matrix by group; what was cut out of it was not."""
    source = in_memory("qwen2")
    config, names = source.config, [f"h1/attn/{part}/{leaf}" for part in "qkv"]
    together = np.concatenate([source.tensors[name] for name in names], axis=-1)
    size, times = config.head_size, config.n_head // config.n_kv
    by_group = together.reshape(*together.shape[:-1], config.n_kv, times + 2, size)
    q = by_group[..., :times, :].reshape(*together.shape[:-1], -1)
    expected = np.array(source.tensors[names[0]])
    assert q.shape == expected.shape
    best = explain(Difference(names[0], q, expected, source.tensors.__getitem__, config)).best
    assert best is not None
    assert best.fault == "part-equal"
    # The second group begins where the keys do.
    half = times * size
    assert best.note == f"{half}:{2 * half} is {names[1]}[0:{half}]"


def test_columns_of_nobody_are_not_taken_for_a_neighbours() -> None:
    source = in_memory("qwen2")
    name = "h1/attn/q/b"
    expected = np.array(source.tensors[name])
    got = expected.copy()
    got[::2] = np.float32(0.123)
    best = explain(Difference(name, got, expected, source.tensors.__getitem__, source.config)).best
    assert best is None or best.fault != "part-equal"


def test_a_matrix_that_was_reshaped_where_it_should_have_been_transposed() -> None:
    for change, words in (
        (lambda x: x.reshape(x.shape[::-1]).T, "reshaped to the other shape"),
        (lambda x: x.T.reshape(x.shape), "memory read in the other order"),
    ):
        assert named(FC, change)[0] == "weights-transposed"
        assert words in named(FC, change)[1]


def test_bytes_in_the_other_order() -> None:
    def swapped(x: Any) -> Any:
        made = x.byteswap()
        made[~np.isfinite(made)] = 0
        return made

    for tensor in (FC, BIAS, "h1/ln_2/b"):
        assert named(tensor, swapped)[0] == "weight-bytes"
