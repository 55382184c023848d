"""Constants in tensors of one element, which a cast to float64 does not reach."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import CONFIG, INPUTS, checkpoint, failed, failures, finding
from test_pieced import report
from torch import nn
from torch_styles import Model, SplitBlock

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Verdict
from gpt_verify.numerics.constants import constants, named, stands_for

SOURCE = checkpoint()


class ByTensor(SplitBlock):
    """tanh GELU whose constants are tensors, one of them a buffer."""

    scale, cubic = 2.0 / math.pi, 0.044715

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        self.register_buffer("third", torch.tensor(self.cubic))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc_in(x)
        inner = torch.sqrt(torch.tensor(self.scale)) * (h + self.third * torch.pow(h, 3))
        return self.fc_out(0.5 * h * (1 + torch.tanh(inner)))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / torch.sqrt(torch.tensor(float(q.shape[-1])))
        length = x.shape[1]
        scores = scores.masked_fill(self.mask[:length, :length] == 0, -math.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class ShortScale(ByTensor):
    """A fault: √(2/π) to five digits."""

    scale = 0.79788**2


class ShortCubic(ByTensor):
    """A fault: 0.044715 to three digits."""

    cubic = 0.0447


def test_one_token_is_one_of_the_inputs() -> None:
    assert 1 in {item.tokens.size for item in INPUTS}


def test_verified() -> None:
    found = report(Model(SOURCE, ByTensor))
    assert failures(found) == []
    assert found.verdict is Verdict.VERIFIED
    architecture = [f for f in found.findings if f.id == "architecture"]
    assert not any("judged as that" in f.message for f in architecture)


@pytest.mark.parametrize(
    ("block", "words", "value"), [(ShortScale, "√(2/π)", 0.79788), (ShortCubic, "0.044715", 0.0447)]
)
def test_another_constant_is_named(block: type[nn.Module], words: str, value: float) -> None:
    found = report(Model(SOURCE, block))
    assert failed(found, "architecture") == {f"h.{i}.mlp.act" for i in range(CONFIG.n_layer)}
    said = finding(found, "architecture", "h.0.mlp.act").message
    exact = next(c.value for c in constants(CONFIG) if c.formula == words)
    (error,) = re.findall(rf"in place of {re.escape(words)}, relative error ([^\s;]+)", said)
    assert float(error) == pytest.approx(abs(value / exact - 1), rel=0.05)


@given(
    st.sampled_from(constants(CONFIG)), st.integers(-8, 8), st.sampled_from([1, -1]), st.booleans()
)
def test_both_neighbours_stand_for_it(constant: object, power: int, sign: int, up: bool) -> None:
    exact = sign * constant.value * 2.0**power  # type: ignore[attr-defined]
    near = np.float32(exact)
    if (float(near) < exact) == up:
        near = np.nextafter(near, np.float32(math.inf if up else -math.inf))
    assert stands_for(float(near), CONFIG) == exact
    beyond = np.nextafter(near, np.float32(math.copysign(math.inf, float(near) - exact)))
    assert stands_for(float(beyond), CONFIG) is None


@given(st.floats(-100, 100, width=32))
def test_few_numbers_stand_for_any(value: float) -> None:
    exact = stands_for(value, CONFIG)
    if exact is not None:
        assert np.float32(exact) in (
            value,
            *np.nextafter(np.float32(value), np.float32([-9e9, 9e9])),
        )
        assert named(value, CONFIG) is None


@pytest.mark.parametrize("value", (-1.7976931348623157e308, 3.5e38, math.inf, math.nan))
def test_what_float32_cannot_hold_is_no_constant(value: float) -> None:
    # A mask filled with the least float64, as transformers 4 writes it: no warning is left behind.
    assert stands_for(value, CONFIG) is None
    assert named(value, CONFIG) is None
