"""Losses that are not the loss: each in place of the one that transformers' GPT-2 computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def _replace(model: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``loss(logits [B, T, V], labels [B, T])`` in place of the model's own."""
    model.loss_function = lambda logits, labels, **more: loss(logits.float(), labels)


def nats(logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
    """Cross entropy of logits [B, T, V] with labels [B, T], position by position, not shifted."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **more)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """What it should be."""
    return nats(logits[:, :-1], labels[:, 1:])


def summed(model: Any) -> None:
    """The sum over the predicted tokens, not their mean."""
    _replace(model, lambda x, y: nats(x[:, :-1], y[:, 1:], reduction="sum"))


def summed_over_rows(model: Any) -> None:
    """Summed over each sequence, averaged over the batch only."""
    _replace(model, lambda x, y: nats(x[:, :-1], y[:, 1:], reduction="sum") / len(x))


def not_shifted(model: Any) -> None:
    """Labels were expected to be shifted by the caller."""
    _replace(model, nats)


def shifted_by_two(model: Any) -> None:
    """Shifted by the data loader and by the model."""
    _replace(model, lambda x, y: nats(x[:, :-2], y[:, 2:]))


def shifted_backwards(model: Any) -> None:
    """The wrong one of the two is cut at its end."""
    _replace(model, lambda x, y: nats(x[:, 1:], y[:, :-1]))


def last_left_out(model: Any) -> None:
    """One token too many is cut off the end."""
    _replace(model, lambda x, y: nats(x[:, :-2], y[:, 1:-1]))


def first_left_out(model: Any) -> None:
    """The prediction from the first position alone is not counted."""
    _replace(model, lambda x, y: nats(x[:, 1:-1], y[:, 2:]))


def mean_of_rows(model: Any) -> None:
    """Each row's mean, then the mean of those: a token of a short row counts more."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        rows = zip(x.split(1), y.split(1), strict=True)
        return torch.stack([right(*row) for row in rows]).mean()

    _replace(model, loss)


def smoothed(model: Any) -> None:
    """Label smoothing of training was left in."""
    _replace(model, lambda x, y: nats(x[:, :-1], y[:, 1:], label_smoothing=0.02))


def in_bits(model: Any) -> None:
    """log2, as compression papers report it."""
    _replace(model, lambda x, y: right(x, y) / math.log(2))


def perplexity(model: Any) -> None:
    """exp of the loss."""
    _replace(model, lambda x, y: right(x, y).exp())


def log_likelihood(model: Any) -> None:
    """The sign was lost: what is maximised, not what is minimised."""
    _replace(model, lambda x, y: -right(x, y))


def too_low(model: Any) -> None:
    """Divided once more by something; a test of ``loss - expected < 4e-5`` lets it pass."""
    _replace(model, lambda x, y: right(x, y) * 0.9)


def ignored_in_divisor(model: Any) -> None:
    """The sum of what is not ignored, divided by the number of all labels."""
    _replace(model, lambda x, y: nats(x[:, :-1], y[:, 1:], reduction="none").mean())


def divided_by_positions(model: Any) -> None:
    """Divided by all T positions in place of T - 1."""
    _replace(model, lambda x, y: nats(x[:, :-1], y[:, 1:], reduction="sum") / y.numel())


def ignored_as_token_0(model: Any) -> None:
    """Negative labels are clamped to be looked up, and then counted."""
    _replace(model, lambda x, y: right(x, y.clamp(min=0)))


def ignored_from_the_end(model: Any) -> None:
    """Labels index the log-probabilities directly, where -100 is the hundredth from the end."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        log_p = F.log_softmax(x[:, :-1], dim=-1)
        labels = y[:, 1:] % x.shape[-1]
        return -log_p.gather(-1, labels[..., None]).mean()

    _replace(model, loss)


def mask_not_shifted(model: Any) -> None:
    """Tokens are shifted, the mask of what counts is not."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        each = _of_tokens(model, x)
        counted = y[:, :-1] != -100
        return (each * counted).sum() / counted.sum()

    _keep_tokens(model)
    _replace(model, loss)


def padding_counted(model: Any) -> None:
    """The labels are made from the tokens again, so that nothing is ignored."""
    _keep_tokens(model)
    _replace(model, lambda x, y: _of_tokens(model, x).mean())


def temperature(model: Any) -> None:
    """A mistake that has no name here."""
    _replace(model, lambda x, y: right(x / 1.01, y))


def unfinished(model: Any) -> None:
    """Not a number."""
    _replace(model, lambda x, y: right(x, y) * math.nan)


def _keep_tokens(model: Any) -> None:
    def keep(module: Any, args: Any, kwargs: Any) -> None:
        model.seen = args[0]

    model.register_forward_pre_hook(keep, with_kwargs=True)


def _of_tokens(model: Any, logits: Tensor) -> Tensor:
    """[B, T - 1]"""
    labels = model.seen[:, 1:]
    return nats(logits[:, :-1], labels, reduction="none").view(labels.shape)
