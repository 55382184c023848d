"""Correct models that are trained in other people's ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as again

from gpt_verify.faults.inject import wrap


def _blocks(run: Callable[..., Any]) -> Callable[[Any], None]:
    """Each block is called by ``run(block, right, x, past, real)``."""

    def alter(model: Any) -> None:
        model.use_checkpoint = False

        def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
            if model.use_checkpoint and self.training and torch.is_grad_enabled():
                return run(self, right, x, past, real)
            return right(x, past, real)

        for block in model.h:
            wrap(block, "forward", forward)

    return alter


flag = _blocks(lambda self, right, x, past, real: again(right, x, past, real, use_reentrant=False))
reentrant = _blocks(
    lambda self, right, x, past, real: again(right, x, past, real, use_reentrant=True)
)


def fused_when_trained(model: Any) -> None:
    """Another kernel in training, and so other roundings."""

    def attend(self: Any, right: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
        if not self.training:
            return right(q, k, v, allowed)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=self.scale(q))

    for block in model.h:
        wrap(block.attn, "attend", attend)


def dropout_by_config(model: Any) -> None:
    """nanoGPT's way: a number, and ``F.dropout`` with it."""
    for block in model.h:
        block.mlp.dropout = 0.1
        wrap(
            block.mlp,
            "forward",
            lambda self, right, x: F.dropout(right(x), self.dropout, self.training),
        )


def hidden_dropout(model: Any) -> None:
    """Its probability is nowhere to be found."""
    for block in model.h:
        wrap(block.mlp, "forward", lambda self, right, x: F.dropout(right(x), 0.1, self.training))


def for_inference(model: Any) -> None:
    """Refuses to be trained."""

    def train(self: Any, right: Any, mode: bool = True) -> Any:
        if mode:
            raise RuntimeError("for inference only")
        return right(mode)

    wrap(model, "train", train)


def written_by_train(model: Any) -> None:
    """Rounds its table when it is trained, and has to be given it back."""

    class Rounding(type(model)):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            if mode:
                with torch.no_grad():
                    self.wte.copy_(self.wte.round(decimals=1))
            return super().train(mode)

    model.__class__ = Rounding
