"""A module of which a copy holds only some tensors anew: the rest is stood in for, and lent.

What a law asks of a copy it asks of a few tensors, and the others may be gigabytes. A skeleton is
the same structure in which each of those others is a single number, so that it can be cast, saved
and loaded at no cost. What has been made of it runs on the original's own tensors: they are lent.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from gpt_verify.ports.torch.float64 import Format
from gpt_verify.ports.torch.memory import clusters, span, view_like

#: By these a class says itself how it is copied, and nothing can be put in the place of a tensor.
_OWN_WAYS = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")


class Skeleton:
    """A module, and which of its tensors its copies hold anew.

    Args:
        module: of which copies are made; it stays as it is.
        tables: its parameters that are copied, with whatever lies in their memory. None copies all.

    Attributes:
        anew: names of what is copied, parameters and buffers.
        partial: something is stood in for.
        size: bytes of what is copied.
    """

    def __init__(
        self, module: torch.nn.Module, tables: Collection[torch.Tensor] | None = None
    ) -> None:
        self.module, named = module, tensors_of(module)
        copied = set(map(id, named.values()))
        if tables is not None:
            wanted = set(map(id, tables))
            copied = set()
            for cluster in clusters(named.values()):
                if any(id(tensor) in wanted or not _plain(tensor) for tensor in cluster):
                    copied |= set(map(id, cluster))
        self.anew = {name for name, tensor in named.items() if id(tensor) in copied}
        self._rest = {name: tensor for name, tensor in named.items() if name not in self.anew}
        self._anew = [tensor for name, tensor in named.items() if name in self.anew]
        self.partial = bool(self._rest)
        self.size = bytes_of(self._anew)

    def deepcopy(self) -> torch.nn.Module:
        """The copy that ``copy.deepcopy`` makes. What is not copied is lent at once."""
        return self._structure({id(tensor): _alias(tensor) for tensor in self._rest.values()})

    def in_place(self) -> torch.nn.Module:
        """Another module on the very memory of what is to be copied; numbers in place of the rest.

        Two parameters in one memory stay so, which a deepcopy would part.
        """
        aliases = {id(tensor): _alias(tensor) for tensor in self._anew if _plain(tensor)}
        return self._structure(
            aliases | {id(tensor): _number(tensor) for tensor in self._rest.values()}
        )

    def lent(self) -> torch.nn.Module:
        """Another module on the original's memory throughout."""
        tensors = [*self._anew, *self._rest.values()]
        return self._structure({id(t): _alias(t) for t in tensors if _plain(t)})

    def parted(self, made: torch.nn.Module) -> torch.nn.Module:
        """What is to be copied and still lies in the original's memory gets memory of its own."""
        theirs = {tensor.untyped_storage().data_ptr() for tensor in self._anew}
        named = tensors_of(made)
        shared = [
            named[name]
            for name in self.anew & named.keys()
            if named[name].untyped_storage().data_ptr() in theirs
        ]
        with torch.no_grad():
            for cluster in clusters(shared):
                first, size = span(cluster)
                flat = cluster[0].detach().as_strided((size,), (1,), first).clone()
                for tensor in cluster:
                    tensor.data = view_like(flat, tensor, first)
        return made

    def lend(self, made: torch.nn.Module) -> dict[int, Format]:
        """Put the original's tensors in the place of numbers.

        Returns:
            Identity of a tensor that is lent → what the number had been cast or moved to, where
            that is not what the original is.
        """
        formats: dict[int, Format] = {}
        named = tensors_of(made)
        for name, original in self._rest.items():
            tensor = named.get(name)
            if tensor is None or tensor.shape != _number(original).shape:
                continue
            if (tensor.device, tensor.dtype) != (original.device, original.dtype):
                formats[id(tensor)] = tensor.device, tensor.dtype
            tensor.data = original.detach()
        return formats

    def _structure(self, given: Mapping[int, torch.Tensor]) -> torch.nn.Module:
        memo: dict[int, Any] = dict(given)
        return copy.deepcopy(self.module, memo)


def copies_itself(module: torch.nn.Module) -> bool:
    """Whether a class of it says how it is copied or pickled."""
    return any(
        getattr(type(part), way) is not getattr(torch.nn.Module, way, None)
        for part in module.modules()
        for way in _OWN_WAYS
        if hasattr(type(part), way)
    )


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes that tensors take; memory that several share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _plain(tensor: torch.Tensor) -> bool:
    """Nothing but its numbers would be lost if another tensor stood in its place."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor in the same memory."""
    return _like(tensor, tensor.detach())


def _number(tensor: torch.Tensor) -> torch.Tensor:
    """One element, along as many axes."""
    return _like(tensor, tensor.detach().new_zeros((1,) * tensor.ndim))


def _like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(data, tensor.requires_grad) if parameter else data
