"""Models on which claims about attention and the loss come out the other way."""

from __future__ import annotations

from typing import Any

import numpy as np
from faulted_cases import altered, asked, code, faulted, torch_model
from models import checkpoint

from gpt_verify.claims.case import Case
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.graph.call import Call
from gpt_verify.reference import ops

Array = Any


def _softmax_over(c: Call, allowed_TS: Array) -> Array:
    return ops.softmax(np.where(allowed_TS, c.x, -np.inf))


def _triangle(c: Call, first: int = 0) -> Array:
    return np.tri(*c.x.shape[-2:], first, dtype=bool)


# Attention


@faulted("causal-prefix", "causal-first", "mlm-forget-recall")
def sees_the_next() -> Case:
    """Each position attends to the one after it too."""
    return altered({"h.*.attn.pattern": lambda c: _softmax_over(c, _triangle(c, 1))})


@faulted("causal-mask-form")
def mask_of_minus_ten() -> Case:
    """A transformers that masks with -10, which leaves something to be seen."""
    return code("before_weak_mask.py")


@faulted("attn-scale")
def scaled_by_width() -> Case:
    """1/√D in place of 1/√K."""

    def scores(c: Call) -> Array:
        return ops.attention_scores(*c.heads()[:2]) * np.sqrt(c.config.head_size / c.config.n_embd)

    return altered({"h.*.attn.scores": scores})


@faulted("softmax-props")
def sigmoid_in_its_place() -> Case:
    """Each weight is a sigmoid of its score, whatever the others are."""
    return altered(
        {"h.*.attn.pattern": lambda c: np.where(_triangle(c), 1 / (1 + np.exp(-c.x)), 0)}
    )


@faulted("softmax-maxent")
def squares_in_its_place() -> Case:
    """Weights in proportion to the squares of the scores."""

    def pattern(c: Call) -> Array:
        squares = np.where(_triangle(c), c.x**2, 0)
        return squares / squares.sum(-1, keepdims=True)

    return altered({"h.*.attn.pattern": pattern})


@faulted("outputs-independent")
def each_for_itself() -> Case:
    """Every position attends to itself alone."""
    return altered(
        {"h.*.attn.pattern": lambda c: np.broadcast_to(np.eye(c.x.shape[-1]), c.x.shape)}
    )


@faulted("left-padding")
def without_context_or_position() -> Case:
    """Every position attends to itself alone, and has no position."""
    return altered(
        {
            "embed": lambda c: c.w("wte")[c.tokens_T],
            "h.*.attn.pattern": lambda c: np.broadcast_to(np.eye(c.x.shape[-1]), c.x.shape),
        }
    )


@faulted("attn-sparse")
def local_attention() -> Case:
    """A band of four positions, as in every other layer of GPT-3."""
    return altered(
        {"h.0.attn.pattern": lambda c: _softmax_over(c, _triangle(c) & ~_triangle(c, -4))}
    )


@faulted("qkv-interleaved")
def head_by_head() -> Case:
    """c_attn's output is cut head by head."""

    def scores(c: Call) -> Array:
        qkv = c.x.reshape(len(c.x), c.config.n_head, 3, -1).transpose(2, 1, 0, 3)
        return ops.attention_scores(qkv[0], qkv[1])

    return altered({"h.*.attn.scores": scores})


@faulted("attn-biases")
def no_biases() -> Case:
    """Both projections of attention leave their bias out."""
    return altered({f"h.*.attn.{kind}": lambda c: c.x @ c.own(0) for kind in ("qkv", "out")})


@faulted("infer-last", "cache-approximate")
def positions_stand_still() -> Case:
    """With a cache, every piece begins at position 0 again."""
    import torch

    from gpt_verify.faults.model import build
    from gpt_verify.ports.torch.module import TorchModule

    source = checkpoint()
    model = build(source)
    model.positions = lambda ids, past, real: torch.arange(ids.shape[1])
    return asked(TorchModule(model, source, "faulted"), source)


@faulted("position-limit")
def clipped_positions() -> Case:
    """Positions past the end take the last row."""

    def embed(c: Call) -> Array:
        at = np.minimum(np.arange(len(c.tokens_T)), c.config.n_ctx - 1)
        return c.w("wte")[c.tokens_T] + c.w("wpe")[at]

    return altered({"embed": embed})


# Loss


class _Loss(OraclePort):
    """The oracle with another loss."""

    def __init__(self, source: Any, loss: Any) -> None:
        super().__init__(source, None, "faulted")
        self._loss = loss

    def loss(self, tokens: Array, labels: Array) -> float:
        return float(self._loss(super().loss, tokens, labels))


@faulted("loss-next")
def unshifted_loss() -> Case:
    """Each output is scored on the token that was just read."""

    def unshifted(right: Any, tokens: Array, labels: Array) -> float:
        return right(tokens, np.roll(labels, 1, axis=1))

    source = checkpoint()
    return asked(_Loss(source, unshifted), source)


@faulted("loss-sum")
def summed_loss() -> Case:
    """The sum in place of the mean."""

    def total(right: Any, tokens: Array, labels: Array) -> float:
        return right(tokens, labels) * (labels[:, 1:] >= 0).sum()

    source = checkpoint()
    return asked(_Loss(source, total), source)


@faulted("loss-others-silent")
def ignored_labels_count() -> Case:
    """Labels that are ignored still count in the mean, as losses of 0."""

    def diluted(right: Any, tokens: Array, labels: Array) -> float:
        return right(tokens, labels) * (labels[:, 1:] >= 0).mean()

    source = checkpoint()
    return asked(_Loss(source, diluted), source)


@faulted("loss-all-positions")
def last_output_everywhere() -> Case:
    """Every position is given the logits of the last one."""

    def last(c: Call) -> Array:
        logits = ops.unembed(c.x, c.own(0))
        return np.broadcast_to(logits[-1], logits.shape)

    return altered({"logits": last})


@faulted("dropout-inference")
def dropout_left_on() -> Case:
    """Dropout in the first MLP, in use."""
    import torch

    def alter(model: Any) -> None:
        model.transformer.h[0].mlp.dropout = torch.nn.Dropout(0.1).train()
        model.transformer.h[0].mlp.dropout.eval = lambda: None

    return torch_model(alter)
