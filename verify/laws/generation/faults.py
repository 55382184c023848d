"""Faults of generation: the logits are correct, and the text is not what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch


def _in_next(change: Any) -> Inject:
    """``change(model, right, ids, mask, made)``: the logits of the next token, of which ``made``
    were made."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        wrap(model, "next_logits", change)

    return inject


def _last_only(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    return right(ids[:, -1:], None, made) if made else right(ids, mask, made)


def _one_early(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    return right(ids[:, :-1], None if mask is None else mask[:, :-1], made)


def _without_mask(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    return right(ids, None, made)


def _counted(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    if mask is None:
        return right(ids, mask, made)
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return self(ids, attention_mask=mask, position_ids=at)["logits"][:, -1]


def _new_hidden(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    if mask is None or not made:
        return right(ids, mask, made)
    real = mask.clone()
    real[:, -made:] = 0
    return right(ids, real, made)


def _prompt_counted(model: Any, layers: Sequence[int]) -> None:
    def generate(self: Any, right: Any, ids: Any, max_new_tokens: int, **more: Any) -> Any:
        return right(ids, max(0, max_new_tokens - ids.shape[1]), **more)

    wrap(model, "generate", generate)


def _past_end(model: Any, layers: Sequence[int]) -> None:
    wrap(model, "ended", lambda self, right, token, end: torch.zeros_like(right(token, end)))


def _with_first(model: Any, layers: Sequence[int]) -> None:
    wrap(model, "ended", lambda self, right, token, end: right(token, end).any().expand_as(token))


def _generation(name: str, law: str, summary: str, inject: Inject, needs: str = "") -> Fault:
    how = InModel(inject, layered=False)
    name, law = f"generation-{name}", f"generation.{law}"
    return Fault(name, "generation", summary, inject=how, law=law, needs=needs)


FAULTS = (
    _generation(
        "counts-prompt",
        "greedy",
        "counts the prompt among the tokens that it is to generate",
        _prompt_counted,
    ),
    _generation(
        "last-token-only",
        "greedy",
        "feeds the last token alone, without a cache of those before it",
        _in_next(_last_only),
    ),
    _generation(
        "one-early",
        "greedy",
        "takes the logits of the token before the last",
        _in_next(_one_early),
    ),
    _generation(
        "ignores-mask",
        "padded",
        "reads padding like any token where it generates",
        _in_next(_without_mask),
    ),
    _generation(
        "positions-counted",
        "padded",
        "counts the padding in positions where it generates",
        _in_next(_counted),
    ),
    _generation(
        "tokens-as-padding",
        "padded",
        "marks the tokens that it generates as padding, by zeros that lengthen a mask",
        _in_next(_new_hidden),
    ),
    _generation(
        "past-end",
        "end",
        "goes on after the token that ends a row",
        _past_end,
    ),
    _generation(
        "ends-with-first",
        "end",
        "ends all rows of a batch with the first that ends",
        _with_first,
    ),
)
