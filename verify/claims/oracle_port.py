"""The oracle as a port, so that a claim is put to it as to any other model.

Any of its operations can be replaced (``gpt_verify.graph.run``): that is how a model is made of
which a claim is not so.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.graph.call import Override
from gpt_verify.graph.run import run
from gpt_verify.port import IGNORED, Floats, Parameter, Port, Tokens, Visit
from gpt_verify.reference.loss import log_softmax
from gpt_verify.reference.weights import tensor_table


class OraclePort(Port):
    """GPT-2 in NumPy and float64, with some operations replaced.

    Args:
        checkpoint: its weights.
        overrides: site → what it becomes.
        name: as it is printed.
    """

    dtype = "float64"

    def __init__(
        self,
        checkpoint: Checkpoint,
        overrides: Mapping[str, Override] | None = None,
        name: str = "reference",
    ) -> None:
        self.name = name
        self._config = checkpoint.config
        self._overrides = dict(overrides or {})
        self._written: dict[str, Any] = {}
        self._tensors = ChainMap(self._written, checkpoint.tensors)  # type: ignore[arg-type]

    def logits(self, tokens: Tokens) -> Floats:
        return self.activations(tokens, lambda site, value, narrowest=None: None)

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        """Every site, one batch row after another, shown together."""
        rows = [self._run(row) for row in np.asarray(tokens)]
        for shown in zip(*rows, strict=True):
            site, value = shown[0][0], np.stack([value for _, value in shown])
            visit(site, value)
        return value

    def _run(self, tokens_T: Tokens) -> Iterator[tuple[str, Floats]]:
        return run(self._tensors.__getitem__, self._config, tokens_T, self._overrides)

    @contextmanager
    def float64(self) -> Iterator[Port]:
        """It computes in float64 anyway."""
        yield self

    def parameters(self) -> Iterator[Parameter]:
        for spec in tensor_table(self._config).values():
            yield Parameter(
                name=spec.name,
                shape=spec.shape,
                read=partial(self._read, spec.name),
                storage=spec.name,
                implies=spec.name,
                write=partial(self._written.__setitem__, spec.name),
            )

    def _read(self, name: str) -> Floats:
        return np.array(self._tensors[name])

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        """Mean over the labels that are not ignored; those of the first position are no target."""
        logits = self.logits(tokens)
        targets = np.asarray(labels)[:, 1:]
        counted = targets != IGNORED
        log_BTV = log_softmax(logits[:, :-1])
        own = np.take_along_axis(log_BTV, np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
        return float(-np.mean(own[counted])) if counted.any() else float("nan")

    def training(self) -> list[str]:
        """It has no mode."""
        return []
