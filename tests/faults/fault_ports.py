"""Correct torch ports with faults of the catalogue injected into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import INPUTS, checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.model import Options, build
from gpt_verify.findings import PortReport
from gpt_verify.inputs import Input
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.ports.torch.module import TorchModule

#: One checkpoint for all faults: what the oracle makes of the inputs is the same for each.
SOURCE = checkpoint()
SHARED = SharedWeights(SOURCE.tensors, record=True)
#: Before the name of a factory: ``gelu-erf@1``.
ANY = f"{Path(__file__).with_name('any_fault.py')}:"


def judged(spec: str) -> PortReport:
    """The report of one port, by every law."""
    return judge(spec, SOURCE, INPUTS, None, "cpu", Silent(), shared=SHARED)


def injected(
    source: Checkpoint, *faults: tuple[str, Sequence[int]], options: Options | None = None
) -> TorchModule:
    """A port with each of the named faults in its layers."""
    model = build(source, options)
    around = []
    for name, layers in faults:
        fault = CATALOGUE[name]
        assert fault.inject is not None, f"{name} cannot be injected into a port"
        fault.put_into(model, layers)
        around.append(fault.put_around)
    port = TorchModule(model, source, " and ".join(name for name, _ in faults) or "correct")
    for put_around in around:
        put_around(port, source)
    return port


def float64_sites(port: TorchModule, item: Input) -> dict[str, Any]:
    """Every site of the port in float64, of the first row."""
    found: dict[str, Any] = {}

    def keep(site: str, value: Any, narrowest: str | None = None) -> None:
        found[site] = value[0].copy()

    with port.float64() as float64_copy:
        float64_copy.activations(item.tokens, keep)
    return found
