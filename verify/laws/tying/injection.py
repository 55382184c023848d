"""Heads and lookups that are not one matrix, or do not stay one, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_verify.faults.inject import replace
from gpt_verify.faults.model import Model
from gpt_verify.laws.gradient.injection import Inject, pulled

#: What is left of a derivative where it is scaled: of the head's, and of the lookup's (GLM-130B's).
OF_HEAD, OF_LOOKUP = 0.5, 0.1


def _head_hidden(model: Any, layers: Sequence[int]) -> None:
    """Transposed, in a buffer, because that multiplies faster."""
    model.register_buffer(
        "head_DV", model.wte.detach().T.clone(memory_format=torch.contiguous_format)
    )
    replace(model, "head", lambda self, x: x @ self.head_DV)


def _head_part_hidden(model: Any, layers: Sequence[int]) -> None:
    """The last third, as a sharded head keeps it."""
    split = 2 * len(model.wte) // 3
    model.register_buffer("shard", model.wte.detach()[split:].clone())

    def head(self: Any, x: Tensor) -> Tensor:
        return torch.cat([x @ self.wte[:split].T, x @ self.shard.T], dim=-1)

    replace(model, "head", head)


def _lookup_hidden(model: Any, layers: Sequence[int]) -> None:
    model.register_buffer("table", model.wte.detach().clone())
    replace(model, "embed", partial(_embed, lambda self, ids: F.embedding(ids, self.table)))


def _embed(lookup: Callable[[Any, Tensor], Tensor], self: Any, ids: Tensor, at: Tensor) -> Tensor:
    return lookup(self, ids) + F.embedding(at, self.wpe)


def _lookup(lookup: Callable[[Any, Tensor], Tensor]) -> Inject:
    """``lookup(model, ids)`` in place of the rows of wte."""
    return lambda model, layers: replace(model, "embed", partial(_embed, lookup))


def _lookup_scaled(self: Any, ids: Tensor) -> Tensor:
    rows = F.embedding(ids, self.wte)
    return pulled(rows, lambda d, y: d * OF_LOOKUP, rows)


def _head_scaled(model: Any, layers: Sequence[int]) -> None:
    def head(self: Any, x: Tensor) -> Tensor:
        fixed = self.wte.detach()
        table: Tensor = fixed + OF_HEAD * (self.wte - fixed)
        return x @ table.T

    replace(model, "head", head)


class _TwoNames(Model):
    """The head has a name of its own for what it shares with the lookup."""

    def head(self, x: Tensor) -> Tensor:
        made: Tensor = x @ self.lm_head.T
        return made

    def resize_token_embeddings(self, rows: int) -> None:
        super().resize_token_embeddings(rows)
        self.lm_head = self.wte


class _PartedByCasting(_TwoNames):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.wte.dtype
        super()._apply(fn, recurse)
        if self.wte.dtype != before:
            _part(self)
        return self


class _PartedByCopying(_TwoNames):
    def __reduce__(self) -> Any:
        return _rebuilt, (self.config, self.options, self.state_dict())


def _rebuilt(config: Any, options: Any, state: Any) -> Any:
    model = _PartedByCopying(config, options)
    model.lm_head = model.wte
    model.load_state_dict(state)
    _part(model)
    return model.eval()


def _part(model: Any, keys: Any = None) -> None:
    """A head of its own, with the same numbers."""
    model.lm_head = nn.Parameter(model.wte.detach().clone())


def _named_twice(kind: type[_TwoNames], model: Any, layers: Sequence[int]) -> None:
    # A class, not methods of this one model: what is pickled must be found again by its name.
    model.__class__, model.lm_head = kind, model.wte


def _parted_by_loading(model: Any, layers: Sequence[int]) -> None:
    _named_twice(_TwoNames, model, layers)
    model.register_load_state_dict_post_hook(_part)


def _by_data(model: Any, layers: Sequence[int]) -> None:
    model.__class__, model.lm_head = _TwoNames, nn.Parameter(model.wte.data)


#: Name of the fault, without its family → what injects it.
INJECTIONS: dict[str, Inject] = {
    "head-hidden": _head_hidden,
    "head-part-hidden": _head_part_hidden,
    "lookup-hidden": _lookup_hidden,
    "lookup-detached": _lookup(lambda self, ids: F.embedding(ids, self.wte).detach()),
    "lookup-scaled": _lookup(_lookup_scaled),
    "padding-row": _lookup(
        lambda self, ids: F.embedding(ids, self.wte, padding_idx=len(self.wte) - 1)
    ),
    "by-frequency": _lookup(lambda self, ids: F.embedding(ids, self.wte, scale_grad_by_freq=True)),
    "head-scaled": _head_scaled,
    "by-data": _by_data,
    "parted-by-loading": _parted_by_loading,
    "parted-by-casting": partial(_named_twice, _PartedByCasting),
    "parted-by-copying": partial(_named_twice, _PartedByCopying),
}
