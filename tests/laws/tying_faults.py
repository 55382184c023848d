"""Ports whose head and embedding are not one matrix, or do not stay one.

Each function alters transformers' GPT-2 after it was loaded.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F


def _own_head(model: Any, weight: torch.Tensor) -> None:
    model.lm_head.weight = nn.Parameter(weight)


def _wte(model: Any) -> torch.Tensor:
    table: torch.Tensor = model.transformer.wte.weight.detach()
    return table


# By value


def head_drawn_anew(model: Any) -> None:
    """The head was left as it was initialised: no tensor of the checkpoint is loaded into it."""
    generator = torch.Generator().manual_seed(0)
    _own_head(model, torch.empty_like(_wte(model)).normal_(0, 0.02, generator=generator))


def head_scaled(model: Any) -> None:
    """A head of its own, scaled by √D as in the original transformer."""
    _own_head(model, _wte(model) * model.config.n_embd**0.5)


def head_through_half_precision(model: Any) -> None:
    """A head of its own that went through bfloat16."""
    _own_head(model, _wte(model).bfloat16().to(_wte(model).dtype))


def head_one_bit(model: Any) -> None:
    """One bit of one number differs."""
    head = _wte(model).clone()
    head.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[head.itemsize])[3, 5] ^= 1
    _own_head(model, head)


# By storage


def head_copied(model: Any) -> None:
    """The head is a parameter of its own with equal values: right today, and only today."""
    _own_head(model, _wte(model).clone())


class _Buffered(nn.Module):
    """A last product with a transposed copy that no list of parameters shows."""

    def __init__(self, weight_VD: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer(
            "weight_DV", weight_VD.t().clone(memory_format=torch.contiguous_format)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight_DV


def head_in_a_buffer(model: Any) -> None:
    """The head was cached as a transposed buffer, because that multiplies faster."""
    model.lm_head = _Buffered(_wte(model))


def head_kept_by_a_closure(model: Any) -> None:
    """The head is still named lm_head.weight and tied, but the product reads a copy."""
    kept = _wte(model).clone()
    model.lm_head.forward = lambda x: F.linear(x, kept.to(x.dtype))


def head_copied_in_part(model: Any) -> None:
    """The last third of the vocabulary is kept apart, as a sharded head keeps it."""
    split = 2 * len(_wte(model)) // 3
    kept = _wte(model)[split:].clone()

    def forward(head: Any, x: torch.Tensor) -> torch.Tensor:
        shards = (F.linear(x, head.weight[:split]), F.linear(x, kept.to(x.dtype)))
        return torch.cat(shards, dim=-1)

    model.lm_head.forward = types.MethodType(forward, model.lm_head)


def lookup_copied(model: Any) -> None:
    """Tokens are looked up in a copy; the head reads the table that both names stand for."""
    kept = _wte(model).clone()

    def forward(table: Any, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, kept.to(table.weight.dtype))

    model.transformer.wte.forward = types.MethodType(forward, model.transformer.wte)


# By gradient


def head_detached(model: Any) -> None:
    """The head reads wte without training it: lm_head(x, wte.weight.detach())."""

    def forward(head: Any, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, head.weight.detach())

    model.lm_head.forward = types.MethodType(forward, model.lm_head)


def head_through_data(model: Any) -> None:
    """The same by .data, which autograd does not see either."""
    model.lm_head.forward = types.MethodType(lambda head, x: x @ head.weight.data.T, model.lm_head)


def lookup_detached(model: Any) -> None:
    """What is looked up is detached: only the head trains the table."""
    model.transformer.wte.register_forward_hook(lambda module, args, output: output.detach())


def lookup_takes_the_last_token_for_padding(model: Any) -> None:
    """<|endoftext|> as padding_idx: its row is never trained by the lookup."""
    model.transformer.wte.padding_idx = model.config.vocab_size - 1


def lookup_scaled_by_frequency(model: Any) -> None:
    """Each row's gradient is divided by how often its token occurs in the batch."""
    model.transformer.wte.scale_grad_by_freq = True


def head_gradient_halved(model: Any) -> None:
    """A hook that is meant for something else scales what comes back through the head."""

    def forward(head: Any, x: torch.Tensor) -> torch.Tensor:
        weight = head.weight
        return F.linear(x, weight.detach() + 0.5 * (weight - weight.detach()))

    model.lm_head.forward = types.MethodType(forward, model.lm_head)


# Through copies


def tied_by_data(model: Any) -> None:
    """The head was tied by .data: two parameters in one memory, which copying and casting part."""
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.data)


def _part(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(_wte(model).clone())


def _part_after_loading(model: Any, keys: Any) -> None:
    _part(model)


def parted_by_load_state_dict(model: Any) -> None:
    """Loading assigns a tensor of its own to each name, as ``assign=True`` does."""
    model.register_load_state_dict_post_hook(_part_after_loading)


class _PartedByCasting(transformers.GPT2LMHeadModel):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        dtype = self.dtype
        super()._apply(fn, recurse)
        if self.dtype != dtype:
            _part(self)
        return self


def parted_by_casting(model: Any) -> None:
    """Each parameter is cast by itself and put in its place, twice where it is shared."""
    model.__class__ = _PartedByCasting


class _PartedByPickling(transformers.GPT2LMHeadModel):
    def __reduce__(self) -> Any:
        return _unpickled, (self.config, self.state_dict())


def _unpickled(config: Any, state: Any) -> Any:
    model = _PartedByPickling(config)
    model.load_state_dict(state)
    _part(model)
    return model


def parted_by_pickling(model: Any) -> None:
    """What is saved as a whole comes back with a head of its own."""
    model.__class__ = _PartedByPickling


def saved_untied(model: Any) -> None:
    """tie_word_embeddings=False in the configuration: what is saved and loaded is not tied."""
    model.config.tie_word_embeddings = False
