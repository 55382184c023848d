"""Derivatives through submodules that are widened one by one."""

from __future__ import annotations

import torch

from gpt_verify.ports.torch.differentiable import Differentiable
from gpt_verify.ports.torch.float64 import converted_each


class TwoNames(torch.nn.Module):
    """A table that one module has under two names, as tied weights are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Parameter(torch.arange(6.0).reshape(3, 2))
        self.lm_head = self.wte

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.wte[ids] @ self.lm_head.T


def test_a_widened_copy_that_is_freed_is_not_remembered() -> None:
    """What lies in its memory next would be taken for the table in the backward pass: derivatives
    of correct ports were wrong now and then."""
    module, came = TwoNames(), list[torch.Tensor]()
    derivatives = Differentiable(lambda narrow, value: came.append(value))
    with derivatives.recording(), converted_each(module, recording=lambda: derivatives):
        output = module(torch.tensor([0, 2]))
        assert not derivatives._narrow, "nothing that is widened is in its place any more"
        output.sum().backward()
    assert output.dtype == torch.float64
    # d/dW of Σ W[ids] · Wᵀ: by the lookup, Σ of all rows for 0 and 2; by the head, W[0] + W[2].
    rows = module.wte.detach().double()
    expected = rows[[0, 2]].sum(0).expand(3, 2).clone()
    expected[[0, 2]] += rows.sum(0)
    torch.testing.assert_close(sum(came), expected)
