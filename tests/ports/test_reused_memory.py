"""What a port returns is read before its next call, as docs/ports.md says: what is kept is copied.

Each port here is correct. The one writes every result into a buffer of its own; of the other, all
that it has ever handed out turns to NaN with the next call of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_ports import _correct
from models import checkpoint, failures, judged, statuses

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status, Verdict
from gpt_verify.port import FLOAT64_COPY, Floats, Port
from gpt_verify.ports.huggingface import huggingface

HERE = Path(__file__)
SOURCE = checkpoint()
CALLS = ("logits", "activations", "step", "padded", "padded_at", "lens", "gradients")


def one_buffer(source: Checkpoint) -> Callable[[Any], Floats]:
    kept: dict[tuple[int, ...], Floats] = {}

    def logits(tokens: Any) -> Floats:
        made = _correct(source, tokens)
        out = kept.setdefault(made.shape, made.copy())
        out[...] = made
        return out

    return logits


def one_tensor(source: Checkpoint) -> Callable[[Any], torch.Tensor]:
    function = one_buffer(source)
    return lambda tokens: torch.from_numpy(function(tokens))


class Spoilt:
    """The arrays that were handed out; a new call spoils all of them."""

    def __init__(self) -> None:
        self.arrays: list[Floats] = []

    def begin(self) -> None:
        for array in self.arrays:
            array[...] = np.nan
        self.arrays.clear()

    def out(self, array: Floats) -> Floats:
        self.arrays.append(np.array(array))
        return self.arrays[-1]


def spoiling(source: Checkpoint) -> Port:
    port = huggingface(source, "eager")
    wrap(port, Spoilt())
    return port


def wrap(port: Port, spoilt: Spoilt) -> None:
    offers = {c.name: c for c in port.offers() if c.name in CALLS}
    own = {"logits": port.logits} | {name: port.offers()[c] for name, c in offers.items()}
    float64_copy = port.offers().get(FLOAT64_COPY)

    def logits(tokens: Any) -> Floats:
        spoilt.begin()
        return spoilt.out(own["logits"](tokens))

    def activations(tokens: Any, visit: Any) -> Floats:
        spoilt.begin()

        def shown(site: str, value: Floats, narrowest: Any = None) -> None:
            copy = np.array(value)
            visit(site, copy, narrowest)
            copy[...] = np.nan

        return spoilt.out(own["activations"](tokens, shown))

    def step(tokens: Any, cache: Any) -> Any:
        spoilt.begin()
        made, cache = own["step"](tokens, cache)
        return spoilt.out(made), cache

    def padded(*given: Any) -> Floats:
        spoilt.begin()
        return spoilt.out(own["padded"](*given))

    def padded_at(*given: Any) -> Floats:
        spoilt.begin()
        return spoilt.out(own["padded_at"](*given))

    def lens(tokens: Any) -> Iterator[Any]:
        for site, value in own["lens"](tokens):
            value = np.array(value)  # the float64 copy may be the port itself, wrapped twice
            spoilt.begin()
            yield site, spoilt.out(value)

    def gradients(tokens: Any, sink: Any) -> bool:
        spoilt.begin()

        class Sink:
            restart = staticmethod(sink.restart)

            def add(self, where: Any, value: Floats) -> None:
                copy = np.array(value)
                sink.add(where, copy)
                copy[...] = np.nan

        return bool(own["gradients"](tokens, Sink()))

    @contextmanager
    def float64() -> Iterator[Port]:
        assert float64_copy is not None
        with float64_copy() as other:
            wrap(other, spoilt)
            yield other

    local = locals()
    port.logits = logits  # type: ignore[method-assign]
    for name, capability in offers.items():
        port.offer(capability, local[name])
    if float64_copy is not None:
        port.offer(FLOAT64_COPY, float64)


@pytest.mark.parametrize("port", ["one_buffer", "one_tensor", "spoiling"])
def test_verified(port: str) -> None:
    report = judged(f"{HERE}:{port}", SOURCE)
    assert report.error is None
    assert failures(report) == []
    assert report.verdict is Verdict.VERIFIED


def test_every_law_is_asked() -> None:
    """What is not examined is not examined without the buffers either."""
    found, plain = (judged(spec, SOURCE) for spec in (f"{HERE}:spoiling", "huggingface-eager"))
    for law in {f.id for f in plain.findings}:
        unseen = [statuses(report, law) for report in (found, plain)]
        assert unseen[0] == unseen[1], law
    assert Status.FAILED not in {f.status for f in plain.findings}
