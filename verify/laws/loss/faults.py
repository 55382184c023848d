"""Faults of the loss: what is averaged, which label each prediction is compared with, and in what
unit. What they come to is computed a second time in ``gpt_verify.laws.loss.hypotheses``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import replace, wrap
from gpt_verify.faults.later import torch

#: logits [B, T, V] in float32, labels [B, T] → the loss.
Loss = Callable[[Any, Any], Any]

#: Label smoothing and clipping that were left in.
SMOOTHING, CLIP_NATS = 0.02, 4.0


def nats(logits: Any, labels: Any, **more: Any) -> Any:
    """Cross entropy of logits [B, T, V] with labels [B, T], position by position, not shifted."""
    flat = logits.flatten(0, 1), labels.flatten()
    return torch.nn.functional.cross_entropy(*flat, **more)


def right(logits: Any, labels: Any, **more: Any) -> Any:
    """What it should be."""
    return nats(logits[:, :-1], labels[:, 1:], **more)


def inject_loss(loss: Loss, model: Any, layers: Sequence[int] = ()) -> None:
    """Another loss in place of the model's own."""
    replace(model, "loss", lambda self, logits, labels: loss(logits.float(), labels))


def _inject_with_tokens(
    loss: Callable[[Any, Any, Any], Any], model: Any, layers: Sequence[int]
) -> None:
    """A loss that reads the tokens as well."""

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        module.seen = args[0]

    model.register_forward_pre_hook(keep, with_kwargs=True)
    replace(model, "loss", lambda self, logits, y: loss(logits.float(), y, self.seen))


def _mean_of_rows(x: Any, y: Any) -> Any:
    rows = zip(x.split(1), y.split(1), strict=True)
    return torch.stack([right(*row) for row in rows]).mean()


def _from_the_end(x: Any, y: Any) -> Any:
    log_p = torch.log_softmax(x[:, :-1], dim=-1)
    labels = y[:, 1:] % x.shape[-1]
    return -log_p.gather(-1, labels[..., None]).mean()


def _clipped(x: Any, y: Any) -> Any:
    each = right(x, y, reduction="none").clamp(max=CLIP_NATS)
    return each.sum() / (y[:, 1:] != -100).sum()


def _mask_not_shifted(x: Any, y: Any, tokens: Any) -> Any:
    counted = (y[:, :-1] != -100).flatten()
    return (right(x, tokens, reduction="none") * counted).sum() / counted.sum()


def _without(wanted: Callable[[Any], Any], x: Any, y: Any) -> Any:
    """Labels of some kind are ignored as well: ``wanted(labels)`` are not."""
    return right(x, torch.where(wanted(y), y, -100))


def _inject_end_of_text(model: Any, layers: Sequence[int]) -> None:
    last = model.config.n_vocab - 1
    inject_loss(partial(_without, lambda y: y != last), model)


def _inject_padding_id(model: Any, layers: Sequence[int]) -> None:
    """The port says which id it pads with."""
    model.pad_token_id = model.config.n_vocab // 2
    inject_loss(partial(_without, lambda y: y != model.pad_token_id), model)


def _inject_from_end_of_text(model: Any, layers: Sequence[int]) -> None:
    last = model.config.n_vocab - 1

    def before(y: Any) -> Any:
        ended = (y == last).long()
        ended[:, 0] = 0
        return ended.cumsum(1) - ended == 0  # the first one itself counts

    inject_loss(partial(_without, before), model)


def _inject_with_mask(loss: Callable[[Any, Any, Any], Any], model: Any, _: Sequence[int]) -> None:
    """A loss that reads the mask, where there is one."""

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        module.mask_seen = kwargs.get("attention_mask")

    def of_both(self: Any, logits: Any, y: Any) -> Any:
        x = logits.float()
        return right(x, y) if self.mask_seen is None else loss(x, y, self.mask_seen)

    model.register_forward_pre_hook(keep, with_kwargs=True)
    replace(model, "loss", of_both)


def _mask_in_divisor(x: Any, y: Any, mask: Any) -> Any:
    return right(x, y, reduction="sum") / mask[:, 1:].sum()


def _mask_dropped(model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("labels") is not None:
            kwargs |= {"attention_mask": None, "position_ids": None}
        return right(*args, **kwargs)

    wrap(model, "forward", forward)


def _loss(name: str, summary: str, law: str, loss: Loss, seen: str = "", needs: str = "") -> Fault:
    return Fault(
        f"loss-{name}",
        "loss",
        summary,
        seen,
        InModel(partial(inject_loss, loss), layered=False),
        law=law,
        needs=needs,
    )


def _of_labels(name: str, summary: str, inject: Inject, seen: str = "") -> Fault:
    how = InModel(inject, layered=False)
    return Fault(f"loss-{name}", "loss", summary, seen, how, law="loss.labels")


FAULTS = (
    _loss(
        "sum",
        "returns the sum over the predicted tokens, not their mean",
        "loss.value",
        lambda x, y: right(x, y, reduction="sum"),
    ),
    _loss(
        "sum-over-rows",
        "sums the loss over each sequence and averages over the batch only",
        "loss.value",
        lambda x, y: right(x, y, reduction="sum") / len(x),
    ),
    _loss(
        "not-shifted",
        "compares each prediction with the token that it was made from, and leaves the shift to "
        "the caller",
        "loss.value",
        nats,
        "MBartForCausalLM of transformers (huggingface/transformers#27517)",
    ),
    _loss(
        "shifted-twice",
        "shifts labels that were shifted before",
        "loss.value",
        lambda x, y: nats(x[:, :-2], y[:, 2:]),
        "Florence2ForConditionalGeneration of transformers (huggingface/transformers#46898)",
    ),
    _loss(
        "shifted-backwards",
        "cuts logits and labels at the wrong ends",
        "loss.value",
        lambda x, y: nats(x[:, 1:], y[:, :-1]),
    ),
    _loss(
        "last-token-dropped",
        "leaves the last prediction out",
        "loss.value",
        lambda x, y: nats(x[:, :-2], y[:, 1:-1]),
    ),
    _loss(
        "first-token-dropped",
        "leaves the first prediction out",
        "loss.value",
        lambda x, y: nats(x[:, 1:-1], y[:, 2:]),
    ),
    _loss(
        "mean-of-means",
        "averages each row, and then the rows, so that a token of a short row counts more",
        "loss.batch",
        _mean_of_rows,
        "gradient accumulation in transformers' Trainer (huggingface/transformers#34191)",
    ),
    _loss(
        "label-smoothing",
        "smooths the labels, as training may",
        "loss.value",
        lambda x, y: right(x, y, label_smoothing=SMOOTHING),
    ),
    _loss(
        "bits",
        "returns bits, not nats",
        "loss.value",
        lambda x, y: right(x, y) / math.log(2),
    ),
    _loss(
        "perplexity",
        "returns the perplexity, not its logarithm",
        "loss.value",
        lambda x, y: right(x, y).exp(),
    ),
    _loss(
        "sign",
        "returns the log-likelihood, not its negative",
        "loss.value",
        lambda x, y: -right(x, y),
    ),
    _loss(
        "scaled",
        "multiplies the loss by 0.9; a test of loss - expected < 4e-5 lets it pass",
        "loss.value",
        lambda x, y: right(x, y) * 0.9,
    ),
    _loss(
        "clipped",
        f"clips the loss of each token at {CLIP_NATS:g} nats",
        "loss.value",
        _clipped,
        needs="every token may be predicted better than that",
    ),
    _loss(
        "ignored-in-divisor",
        "counts ignored labels (-100) in the divisor of the mean",
        "loss.ignored",
        lambda x, y: right(x, y, reduction="none").mean(),
    ),
    _loss(
        "positions-in-divisor",
        "divides the sum by all positions, also the last, which predicts nothing",
        "loss.value",
        lambda x, y: right(x, y, reduction="sum") / y.numel(),
    ),
    _loss(
        "ignored-as-token-0",
        "takes ignored labels (-100) for token 0, and counts them",
        "loss.ignored",
        lambda x, y: right(x, y.clamp(min=0)),
    ),
    _loss(
        "ignored-from-the-end",
        "takes ignored labels (-100) for the hundredth token from the end, and counts them",
        "loss.ignored",
        _from_the_end,
        needs="the vocabulary may have fewer than 100 tokens",
    ),
    Fault(
        "loss-mask-not-shifted",
        "loss",
        "shifts the labels, but not the mask of what is ignored",
        inject=InModel(partial(_inject_with_tokens, _mask_not_shifted), layered=False),
        law="loss.ignored",
    ),
    Fault(
        "loss-padding-counted",
        "loss",
        "makes its labels from the tokens again, so that nothing is ignored",
        "padding in labels that are a copy of the inputs (huggingface/transformers#7135)",
        InModel(partial(_inject_with_tokens, lambda x, y, tokens: right(x, tokens)), layered=False),
        law="loss.ignored",
    ),
    _of_labels(
        "end-of-text-ignored",
        "ignores labels that are end of text, the last token, which it takes for padding",
        _inject_end_of_text,
        "huggingface/transformers#23530",
    ),
    _loss(
        "token-0-ignored",
        "ignores labels that are token 0, which it takes for padding",
        "loss.labels",
        partial(_without, lambda y: y != 0),
    ),
    _of_labels(
        "padding-id-ignored",
        "ignores labels that are the token by which it pads",
        _inject_padding_id,
    ),
    _of_labels(
        "ignored-from-end-of-text",
        "ignores all labels after the first end of text",
        _inject_from_end_of_text,
    ),
    Fault(
        "loss-mask-in-divisor",
        "loss",
        "divides the sum by the length of the mask, in which ignored labels (-100) count",
        inject=InModel(partial(_inject_with_mask, _mask_in_divisor), layered=False),
        law="loss.masked",
    ),
    Fault(
        "loss-mask-dropped",
        "loss",
        "computes the logits without the mask where it is handed labels",
        inject=InModel(_mask_dropped, layered=False),
        law="loss.masked",
    ),
)
