"""What ports are run on where nobody says what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from families import family, keyed
from hypothesis import given
from hypothesis import strategies as st

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.inputs import COMPUTED, default_inputs, longest
from gpt_verify.reference import RELEASED, Config

#: Far more than anybody waits for.
CONTEXT = 1 << 17


def longest_of(config: Config) -> int:
    return max(item.tokens.shape[1] for item in default_inputs(config, 0))


@pytest.mark.parametrize("name", RELEASED)
def test_every_position_of_gpt2_occurs(name: str) -> None:
    assert longest_of(RELEASED[name]) == 1024


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_context_is_not_run_as_a_whole_where_positions_are_computed(name: str) -> None:
    config = replace(family(name), n_ctx=CONTEXT)
    if config.keys.table:
        assert longest(config) == CONTEXT
    else:
        assert longest_of(config) == COMPUTED


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 5000)), min_size=1, max_size=3),
    st.integers(1, 6000),
)
def test_something_lies_outside_each_window(windows: list[int | None], n_ctx: int) -> None:
    config = replace(keyed(family("mistral"), windows=tuple(windows)), n_ctx=n_ctx)
    most = longest(config)
    assert min(n_ctx, COMPUTED) <= most <= n_ctx
    # A target in the last place no longer sees the first source.
    assert all(window < most for window in windows if window is not None and window < n_ctx)


def test_the_longest_is_judged_in_float64() -> None:
    config = replace(family("llama"), n_ctx=CONTEXT)
    in_float64 = [item.tokens.shape[1] for item in default_inputs(config, 0) if item.in_float64]
    assert {1, 2, COMPUTED} <= set(in_float64)
    assert len({item.name for item in default_inputs(config, 0)}) == len(default_inputs(config, 0))
    assert all(np.all(item.tokens < config.n_vocab) for item in default_inputs(config, 0))
