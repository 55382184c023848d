"""Numbers that are in no catalogue are read off what an operation has made, whatever they are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import checkpoint
from test_forms_of_families import explained

from gpt_verify.graph.call import Array, Call, Override
from gpt_verify.graph.run import right

SOURCE = checkpoint()
#: The two numbers of GELU's tanh.
ROOT, CUBIC = 0.7978845608028654, 0.044715


def gelu(root: float, cubic: float) -> Override:
    def act(call: Call) -> Array:
        x = np.asarray(call.x, np.float64)
        made: Array = 0.5 * x * (1 + np.tanh(root * (x + cubic * x**3)))
        return made

    return act


@settings(max_examples=20, deadline=None)
@given(
    root=st.floats(0.4, 1.4).filter(lambda a: abs(a / ROOT - 1) > 0.02),
    cubic=st.floats(0.005, 0.6).filter(lambda b: abs(b / CUBIC - 1) > 0.1),
)
def test_both_numbers_of_gelu_are_read_off(root: float, cubic: float) -> None:
    name, words = explained(SOURCE, {"h.1.mlp.act": gelu(root, cubic)}, "h.1.mlp.act")
    assert name == "activation-gate", words
    found = re.match(r"GELU's tanh is of ([\d.e-]+) \(x \+ ([\d.e-]+) x³\)", words)
    assert found is not None, words
    assert float(found[1]) == pytest.approx(root, rel=1e-3)
    assert float(found[2]) == pytest.approx(cubic, rel=1e-2)


@settings(max_examples=20, deadline=None)
@given(part=st.floats(0.0, 0.6))
def test_the_length_that_rows_are_brought_to_is_read_off(part: float) -> None:
    """This part of all rows is no longer than that."""
    most = float(np.quantile(np.linalg.norm(SOURCE.tensors["wte"], axis=-1), part))

    def act(call: Call) -> Array:
        rows = np.asarray(call.w("wte")[call.tokens_T], np.float64)
        length = np.linalg.norm(rows, axis=-1, keepdims=True)
        made: Array = rows * np.minimum(1.0, most / length)
        return made + call.w("wpe")[: len(call.tokens_T)]

    name, words = explained(SOURCE, {"embed": act}, "embed")
    assert name == "rows-shortened", words
    assert words.startswith("rows of wte that are longer than ")
    assert float(words.split("longer than ")[1].split()[0]) == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("site", "tensor", "words"),
    [
        ("h.1.attn.mix", "h1/attn/c_attn/b", "the bias h1/attn/c_attn/b (v)"),
        ("h.1.ln_2", "h1/ln_1/b", "the bias h1/ln_1/b"),
        ("ln_f", "ln_f/g", "the gain ln_f/g"),
    ],
)
def test_a_vector_of_the_model_is_known_where_it_is_added(
    site: str, tensor: str, words: str, sign: int
) -> None:
    def act(call: Call) -> Array:
        made = np.asarray(right(call), np.float64)
        vector = np.asarray(call.w(tensor), np.float64)
        return made + sign * vector[-made.shape[-1] :]

    name, note = explained(SOURCE, {site: act}, site)
    assert name == "constant-added", note
    done = "is added" if sign > 0 else "is left out"
    assert note == f"{words} {done} at every position"
