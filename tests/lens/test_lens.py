"""The streamed lens against its definitions, which keep every logit in memory in float64."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import CONFIG, assert_agrees, few, tokens_of, weights_of
from safetensors.numpy import save_file

from gpt_verify.errors import CheckpointError
from gpt_verify.lens import (
    STATISTICS,
    UNDEFINED,
    FromBlock,
    Lens,
    LnF,
    TunedLens,
    WithoutLnF,
    lens,
    oracle_states,
    read_tuned,
    state_sites,
)
from gpt_verify.lens.engine_numpy import COLUMN, NumpyEngine, measure_logits
from gpt_verify.lens.engine_torch import TorchEngine
from gpt_verify.lens.rows import NEAR_NATS
from gpt_verify.lens.stream import Engine
from gpt_verify.reference import Config, forward
from gpt_verify.reference import lens as definitions

Floats = NDArray[np.floating]
Found = dict[str, Any]
WEIGHTS, TOKENS = weights_of(CONFIG), tokens_of(CONFIG, CONFIG.n_ctx)
EXACT = [name for name, statistic in STATISTICS.items() if statistic.kind == "rank"] + ["top_ids"]
#: A sum of a segment's products, each lane of a vector by itself, is 3072 / 64 additions deep; exp
#: and log of NumPy err by up to four units.
UNITS = 3072 / 64 + 4 * 4


def measured(logits_NTV: Floats, tokens_T: Any, k: int, dtype: Any = np.float64) -> Found:
    """By the engine, with the axes of the definitions."""
    next_T = np.append(tokens_T[1:], 0)
    found = measure_logits(np.swapaxes(logits_NTV, 0, 1), tokens_T, next_T, k, dtype)
    return {name: np.swapaxes(value, 0, 1) for name, value in found.items()}


#: What a sum over any of these vocabularies, of terms of up to a hundred, loses in float64.
SUMMED = 2**12 * 100 * 2.0**-53


def agree(found: Found, expected: Found, tolerance: float) -> None:
    """Ranks and ids are equal, numbers to within a tolerance; a root to within that of one."""
    for name, value in expected.items():
        if name in EXACT:
            assert np.array_equal(found[name], value), name
        else:
            within = np.sqrt(tolerance) if name == "js_distance" else tolerance
            np.testing.assert_allclose(found[name], value, rtol=0, atol=within, err_msg=name)


# The sums


@st.composite
def logits(draw: st.DrawFn) -> tuple[Floats, Any]:
    """[N, T, V] of few different values, so that many are equal; narrow and wide vocabularies."""
    n, t = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    v = draw(st.sampled_from([1, 2, 3, 31, 33, 200, 64 * COLUMN, 64 * COLUMN + 77]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([2, 7, 1000]))
    logits_NTV = rng.integers(0, steps, (n, t, v)) * draw(st.sampled_from([1e-3, 0.1, 5.0]))
    return logits_NTV - draw(st.sampled_from([0.0, 100.0])), rng.integers(0, v, t)


@few
@given(logits(), st.integers(1, 6))
def test_every_statistic_is_what_its_definition_says(made: Any, k: int) -> None:
    logits_NTV, tokens_T = made
    k = min(k, logits_NTV.shape[-1])
    agree(
        measured(logits_NTV, tokens_T, k), definitions.statistics(logits_NTV, tokens_T, k), SUMMED
    )


@pytest.mark.parametrize("spread", [0.03, 1.0, 6.0])
@pytest.mark.parametrize("step", [1e-5, 1e-2, 0.3, 3.0])
def test_float32_errs_by_rounding_alone(spread: float, step: float) -> None:
    """From logits that float32 holds: what is left is the rounding of the sums."""
    rng = np.random.default_rng([int(100 * spread), int(1e6 * step)])
    walk = rng.standard_normal((6, 9, 5003)) * np.r_[spread, [step] * 5][:, None, None]
    logits_NTV = np.cumsum(walk, axis=0)
    logits_NTV -= logits_NTV.max(axis=-1, keepdims=True)
    logits_NTV = logits_NTV.astype(np.float32).astype(np.float64)
    tokens_T = rng.integers(0, 5003, 9)
    found = measured(logits_NTV, tokens_T, 5, np.float32)
    expected = definitions.statistics(logits_NTV, tokens_T, 5)
    q_NTV = np.exp(logits_NTV) / np.exp(logits_NTV).sum(axis=-1, keepdims=True)
    # Every term is a mean of logits under some state's distribution, or the logarithm of a sum.
    means = [np.sum(q * -logits_NTV, axis=-1) for q in (q_NTV[0], q_NTV[-1], q_NTV)]
    size = float(np.max(means))
    budget = UNITS * 2.0**-24 * (np.log(5003) + size)
    root = max(
        # A metric: it moves by no more than the two distributions do, each by what rounding y does.
        2 * 2.0**-24 * float(np.abs(logits_NTV).max()),
        budget / (2 * np.sqrt(NEAR_NATS)),
    )
    for name, value in expected.items():
        if name in EXACT:
            assert np.array_equal(found[name], value), name
        else:
            within = root if name == "js_distance" else budget
            np.testing.assert_allclose(found[name], value, rtol=0, atol=within, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_distances_have_their_digits(dtype: Any) -> None:
    """Where a sum of float32 would say nothing, or less than nothing."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal((1, 4, 700)).astype(np.float32)
    # Steps that float32 can add: multiples of the last place of the largest logit.
    near = base + rng.integers(-64, 65, (3, 4, 700)).astype(np.float32) * np.float32(2.0**-19)
    logits_NTV = np.concatenate([near, base]).astype(np.float64)
    logits_NTV -= logits_NTV.max(axis=-1, keepdims=True)
    logits_NTV = logits_NTV.astype(np.float32).astype(np.float64)
    tokens_T = rng.integers(0, 700, 4)
    found = measured(logits_NTV, tokens_T, 3, dtype)
    log_q = logits_NTV - np.log(np.exp(logits_NTV).sum(axis=-1, keepdims=True))
    d = log_q[-1] - log_q[:3]
    second_order = np.sum(np.exp(log_q[-1]) * d**2, axis=-1)  # KL ≈ ½ Σ p d², JS ≈ ⅛ of that sum
    # The next order is smaller by a factor of |d|, and its coefficient by three or more.
    within = float(np.abs(d).max())
    assert within < 1e-3
    np.testing.assert_allclose(found["kl_final_layer_nats"][:3], second_order / 2, rtol=within)
    np.testing.assert_allclose(found["kl_layer_final_nats"][:3], second_order / 2, rtol=within)
    np.testing.assert_allclose(found["js_distance"][:3], np.sqrt(second_order / 8), rtol=within)
    assert np.all(found["js_distance"][-1] == 0)


def test_a_state_is_at_no_distance_from_itself() -> None:
    logits_NTV = np.random.default_rng(1).standard_normal((1, 3, 90)) * 9
    found = measured(np.repeat(logits_NTV, 3, axis=0), np.zeros(3, np.int64), 2, np.float32)
    for name in ("kl_final_layer_nats", "kl_layer_final_nats", "js_distance", "total_variation"):
        assert np.all(found[name][-1] == 0), name
        assert np.all(found[name] == 0), name
    assert np.all(found["kl_input_layer_nats"][0] == 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("state", [0, 1, 2])
def test_what_is_not_finite_has_no_distribution(wrong: float, state: int) -> None:
    """Neither has what refers to it; everything else is as it was."""
    logits_NTV = np.random.default_rng(2).standard_normal((3, 2, 40))
    tokens_T = np.array([3, 4])
    right = measured(logits_NTV, tokens_T, 2)
    logits_NTV[state, 1, 7] = wrong
    if wrong == -np.inf:
        logits_NTV[state, 1] = wrong
    found = measured(logits_NTV, tokens_T, 2)
    to_final, to_input = (
        {"kl_final_layer_nats", "kl_layer_final_nats", "js_distance", "total_variation"},
        {"kl_input_layer_nats"},
    )
    for name, value in found.items():
        gone = {state}
        if (name in to_final or name == "rank_final_top1") and state == 2:
            gone = {0, 1, 2}
        if name in to_input and state == 0:
            gone = {0, 1, 2}
        for n in range(3):
            nothing = np.all((value[n, 1] == UNDEFINED) if name in EXACT else np.isnan(value[n, 1]))
            assert nothing == (n in gone), (name, n)
            assert np.array_equal(value[n, 0], right[name][n, 0])


# The stream


def numpy_blocks(block_bytes: int) -> Callable[[], Engine]:
    def make() -> Engine:
        engine = NumpyEngine()
        engine.workers, engine.block_bytes = 2, block_bytes
        return engine

    return make


def torch_blocks() -> Engine:
    engine = TorchEngine("cpu")
    engine.block_bytes = 4 * 40 * 1024
    return engine


ENGINES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: "numpy",
    "torch's product": lambda: "torch",
    "torch": torch_blocks,
    "a position at a time": numpy_blocks(1),
    "three states at a time": numpy_blocks(8 * CONFIG.n_vocab * 3),
}


def read(
    config: Config = CONFIG,
    engine: Any = "numpy",
    dtype: Any = np.float64,
    seed: int = 0,
    **more: Any,
) -> Lens:
    weights, tokens_T = weights_of(config, seed), tokens_of(config, config.n_ctx, seed)
    states = oracle_states(weights, config, tokens_T)
    return lens(states, weights, tokens_T, engine=engine, dtype=dtype, **more)


def defined(config: Config, decoder: Any = None, seed: int = 0, k: int = 5) -> Found:
    weights, tokens_T = weights_of(config, seed), tokens_of(config, config.n_ctx, seed)
    decoder = decoder or LnF(weights)
    states = dict(oracle_states(weights, config, tokens_T))
    decoded = [decoder.decode(site, x_TD) for site, x_TD in states.items()]
    logits_NTV = np.stack([h_TD @ weights["wte"].T for h_TD in decoded if h_TD is not None])
    return definitions.statistics(logits_NTV, tokens_T, min(k, config.n_vocab))


def same(found: Lens, expected: Found, tolerance: float) -> None:
    """As ``agree``, but for the last position, which has no next token."""
    assert np.all(found.rank_next[:, -1] == UNDEFINED)
    assert np.all(np.isnan(found.loss_nats[:, -1]))
    got = {name: np.array(getattr(found, name)) for name in expected}
    for name in ("rank_next", "loss_nats"):
        got[name][:, -1] = expected[name][:, -1]
    agree(got, expected, tolerance)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_measures_every_state(name: str) -> None:
    found = read(engine=ENGINES[name]())
    assert found.sites == tuple(state_sites(CONFIG))
    assert found.decoder == "ln_f"
    same(found, defined(CONFIG), SUMMED)


@pytest.mark.parametrize(
    "config",
    [
        Config(1, 1, 1, 1, 1),
        Config(1, 3, 4, 1, 1),
        Config(2, 2, 4, 2, 1),
        Config(2600, 40, 8, 2, 3),
    ],
)
@pytest.mark.parametrize("name", ENGINES)
def test_odd_sizes(config: Config, name: str) -> None:
    same(read(config, engine=ENGINES[name](), k=3), defined(config, k=3), SUMMED)


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 2000))
def test_blocks_change_nothing(seed: int, block_bytes: int) -> None:
    """However many states and positions are in one."""
    config = Config(n_vocab=37, n_ctx=9, n_embd=8, n_head=2, n_layer=4)
    same(read(config, numpy_blocks(block_bytes)(), seed=seed), defined(config, seed=seed), SUMMED)


def test_float32_is_the_default() -> None:
    """To the last bit; and it is not float64."""
    found = lens(oracle_states(WEIGHTS, CONFIG, TOKENS), WEIGHTS, TOKENS)
    narrow, wide = read(dtype=np.float32), read()
    for name, statistic in STATISTICS.items():
        values = [getattr(made, name) for made in (found, narrow, wide)]
        assert np.array_equal(values[0], values[1], equal_nan=True), name
        if statistic.kind != "rank":
            assert not np.array_equal(values[0], values[2], equal_nan=True), name


def peak_bytes(layers: int) -> int:
    config = Config(n_vocab=20_000, n_ctx=32, n_embd=4, n_head=1, n_layer=layers)
    weights = weights_of(config)
    tokens_T = tokens_of(config, 32)
    states = list(oracle_states(weights, config, tokens_T))
    tracemalloc.start()
    try:
        lens(states, weights, tokens_T, engine=numpy_blocks(4 << 20)())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_states_times_vocabulary() -> None:
    """Sixteen more layers are 32 more states; of their logits, 82 MB, next to nothing is kept."""
    few_layers, many = peak_bytes(2), peak_bytes(18)
    assert many - few_layers < 0.1 * 32 * 32 * 20_000 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": []}, "there is no state"),
        ({"states": [("embed", np.zeros((3, CONFIG.n_embd)))]}, r"embed has shape \[3, 12\]"),
        ({"states": [("embed", np.zeros((7, 12)))] * 2}, "embed occurs twice"),
        ({"tokens_T": np.array([[1]])}, "one sequence of token ids"),
        ({"tokens_T": np.array([0.5])}, "one sequence of token ids"),
        ({"tokens_T": np.array([], int)}, "one sequence of token ids"),
        ({"tokens_T": np.array([11])}, "token ids must lie in 0 … 10"),
        ({"tokens_T": np.array([-1])}, "token ids must lie in 0 … 10"),
        ({"k": 0}, "k = 0"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"states": oracle_states(WEIGHTS, CONFIG, TOKENS)}
    arguments |= {"weights": WEIGHTS, "tokens_T": TOKENS} | change
    with pytest.raises(ValueError, match=message):
        lens(**arguments)


# Decoders


def test_without_ln_f() -> None:
    same(read(decoder=WithoutLnF()), defined(CONFIG, WithoutLnF()), SUMMED)


@pytest.mark.parametrize("first", range(-CONFIG.n_layer, CONFIG.n_layer))
def test_from_a_later_block_on(first: int) -> None:
    decoder = FromBlock(WEIGHTS, CONFIG, first)
    assert decoder.name == f"from block {first % CONFIG.n_layer}"
    found = read(decoder=decoder)
    same(found, defined(CONFIG, decoder), SUMMED)
    # What is already inside that block or behind it goes on to the model's own logits.
    inside = found.sites.index(f"h.{first % CONFIG.n_layer}.resid_mid")
    nothing = np.sqrt(SUMMED)  # a root of a sum that is zero but for its rounding
    assert np.all(found.js_distance[inside:] < nothing)
    # So does what enters it; what is further up skips the blocks between.
    assert np.all(found.js_distance[inside - 1] < nothing)
    for skipped in range(inside - 1):
        assert np.all(found.js_distance[skipped] > nothing)


def test_the_last_state_is_the_model() -> None:
    *_, (_site, logits_TV) = forward(WEIGHTS, CONFIG, TOKENS)
    assert np.array_equal(read().top1_NT[-1], logits_TV.argmax(axis=-1))


@pytest.mark.parametrize("first", [-3, 2])
def test_a_block_that_is_not_there(first: int) -> None:
    with pytest.raises(ValueError, match=f"there is no block {first}: the model has 2"):
        FromBlock(WEIGHTS, CONFIG, first)


# The tuned lens


def maps(seed: int = 0) -> dict[str, Any]:
    """For every state but the last; blocks by their number, as the package names them."""
    rng, d = np.random.default_rng(seed), CONFIG.n_embd
    names = ["0", "h.0.resid_mid", "1", "h.1.resid_mid"]
    parts = {f"{name}.weight": rng.standard_normal((d, d)) / 9 for name in names}
    return parts | {f"{name}.bias": rng.standard_normal(d) / 9 for name in names}


def test_a_tuned_lens_translates_each_state() -> None:
    tensors = maps()
    decoder = TunedLens(WEIGHTS, CONFIG, tensors)
    same(read(decoder=decoder), defined(CONFIG, decoder), SUMMED)
    x_TD = np.random.default_rng(3).standard_normal((4, CONFIG.n_embd))
    for site, name in zip(state_sites(CONFIG), ("0", "h.0.resid_mid", "1"), strict=False):
        # As torch.nn.Linear applies it: y_o = Σ_i weight[o, i] x_i + bias[o], added to the state.
        moved = x_TD + np.einsum("oi,ti->to", tensors[f"{name}.weight"], x_TD)
        expected = LnF(WEIGHTS).decode(site, moved + tensors[f"{name}.bias"])
        assert_agrees(decoder.decode(site, x_TD), expected, site)


def test_states_without_a_map_are_left_out() -> None:
    decoder = TunedLens(WEIGHTS, CONFIG, {"1.weight": np.zeros((12, 12))})
    found = read(decoder=decoder)
    assert found.sites == ("h.0.resid_post", "h.1.resid_post")
    plain = read()
    np.testing.assert_allclose(found.entropy_nats[0], plain.entropy_nats[2], rtol=0, atol=SUMMED)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_tuned_lens_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tuned{suffix}"
    if suffix == ".npz":
        np.savez(path, **maps())
    else:
        save_file(maps(), path)
    decoder = read_tuned(path, WEIGHTS, CONFIG)
    assert decoder.name == f"tuned lens tuned{suffix}"
    same(read(decoder=decoder), defined(CONFIG, TunedLens(WEIGHTS, CONFIG, maps())), SUMMED)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "it holds no map"),
        ({"0.scale": np.ones(12)}, "0.scale is neither a weight nor a bias"),
        ({"2.weight": np.ones((12, 12))}, "2.weight belongs to no state"),
        ({"h.7.resid_mid.weight": np.ones((12, 12))}, "belongs to no state"),
        ({"0.bias": np.ones(12)}, "0.bias has no matrix beside it"),
        ({"0.weight": np.ones((12, 11))}, r"shape \[12, 11\], not \[12, 12\]"),
        ({"0.weight": np.ones((12, 12), int)}, "not a finite number"),
        ({"0.weight": np.full((12, 12), np.nan)}, "not a finite number"),
        ({"0.weight": np.ones((12, 12)), "embed.weight": np.ones((12, 12))}, "are the same"),
    ],
)
def test_a_tuned_lens_that_does_not_fit(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TunedLens(WEIGHTS, CONFIG, tensors)


@pytest.mark.parametrize("name", ["missing.npz", "missing.safetensors", "tuned.pt"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        read_tuned(tmp_path / name, WEIGHTS, CONFIG)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not a tensor")
        with pytest.raises(CheckpointError, match=name):
            read_tuned(tmp_path / name, WEIGHTS, CONFIG)
