"""The protocol of a port: what is judged, and what it may show of itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]


class Visit(Protocol):
    """Called while the port runs, once for every site that it shows, in order of computation."""

    def __call__(self, site: str, value: Floats, narrowest: Dtype | None = None) -> None:
        """``value`` is valid only during the call.

        Args:
            site: as in ``verify.sites``.
            value: ``[B, T, features]``; ``[B, H, T, S]`` for scores and pattern.
            narrowest: the narrowest floating format that the port was seen to use on the way
                here from the site before, where the port can tell. A module cast to float64 may
                still compute its softmax in float32, and is judged accordingly.
        """


@dataclass(frozen=True)
class Parameter:
    """One trained tensor of a port, in the port's own layout.

    Attributes:
        name: the port's own name, ``transformer.wte.weight``.
        shape: the port's own shape.
        read: copies the values into a float32 array, or float64 where the port keeps that;
            narrower formats are widened, which is exact.
        storage: equal for two parameters that share memory.
        implies: the checkpoint name that it is, where the port knows (a TensorFlow variable);
            None where that must be found by content.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Floats]
    storage: Hashable
    implies: str | None = None


class StoredGraph(Protocol):
    """What a graph that came with the weights turned out to be."""

    @property
    def found(self) -> bool:
        """It holds a forward pass."""

    @property
    def description(self) -> str:
        """One line: which operations, or why there is no forward pass or it was not run."""

    @property
    def logits(self) -> Floats | None:
        """Computed by that graph; None where it was not run."""


class Port:
    """A port. Subclasses implement ``logits``, and whatever else they can show.

    Attributes:
        name: as the report prints it.
        dtype: the precision that the port declares to compute in.
        device: ``cpu`` or ``cuda``.
        weights_from: ``"checkpoint"`` where the weights were converted from the checkpoint under
            test, otherwise the directory or hub id whose files the port loaded by itself.
    """

    name: str
    dtype: Dtype = "float32"
    device: str = "cpu"
    weights_from: str = "checkpoint"

    def logits(self, tokens: Tokens) -> Floats:
        """tokens int[B, T] → logits float[B, T, V]."""
        raise NotImplementedError

    #: Optional: the trained tensors of the port.
    parameters: Callable[[], Iterator[Parameter]] | None = None

    #: Optional: run once, calling ``visit`` for every site that can be seen, in the order of
    #: computation; returns the logits of that run, float[B, T, V].
    activations: Callable[[Tokens, Visit], Floats] | None = None

    #: Optional: a context in which the same port computes in float64 with the same weights.
    float64: Callable[[], AbstractContextManager[Port]] | None = None

    #: Optional: a graph that is stored beside the weights and is no code of the port's own. Found
    #: or not, what it is, and the logits that it computes, float[B, T, V]. Called last: the port
    #: need not be usable afterwards.
    meta_graph: Callable[[Tokens], StoredGraph] | None = None

    def close(self) -> None:
        """Release memory and processes. Called once; the port is not used again."""
