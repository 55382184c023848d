"""The order in which a torch module keeps its rows: [B, T, …], [T, B, …], or flat in either
order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpt_verify.ports.torch.roles import address
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


class Layout:
    """Brings values into the shape that ``Visit`` promises, or says that it cannot."""

    def __init__(self, config: Config, batch: int, length: int) -> None:
        self._config, self._batch, self._length = config, batch, length
        self._time_first: set[int] = set()

    def shaped(
        self, tensor: torch.Tensor, site: str, width: int | None = None
    ) -> torch.Tensor | None:
        """[B, T, F] or [B, H, T, S] out of what the module had: flat rows, or time first.

        None where the elements are not those of the whole batch: a module that takes its
        sequences one by one does not show this site.
        """
        b, t = self._batch, self._length
        whole = sites(self._config)[site].width
        if not whole:
            return tensor.reshape(b, self._config.n_head, t, t)
        width = whole if width is None else width
        if tensor.numel() != b * t * width:
            return None
        lead = tensor.shape[:2]
        if tensor.ndim > 2 and lead in ((b, t), (t, b)):
            time_first = lead != (b, t)
        elif tensor.shape[-1] == width:
            time_first = address(tensor) in self._time_first
        else:
            return None
        return (
            tensor.reshape(t, b, width).transpose(0, 1)
            if time_first
            else tensor.reshape(b, t, width)
        )

    def note(self, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        """Flat rows lie in the order of what they were made from: [B, T, …] or [T, B, …]."""
        b, t = self._batch, self._length
        at, lead = address(output), output.shape[:2]
        if b == 1 or b == t:
            return
        if output.ndim > 2 and lead in ((b, t), (t, b)) and output.is_contiguous():
            time_first = lead == (t, b)
        elif inputs:  # new memory, whatever lay there before
            whole = output.numel() % (b * t) == 0
            time_first = whole and any(address(x) in self._time_first for x in inputs)
        else:
            return
        (self._time_first.add if time_first else self._time_first.discard)(at)
