"""Factories of correct torch ports with faults of the catalogue planted in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verify.checkpoint import Checkpoint
from verify.faults.catalogue import CATALOGUE
from verify.faults.model import Options, build
from verify.inputs import Input
from verify.ports.torch_module import TorchModule


def planted(
    source: Checkpoint, *faults: tuple[str, Sequence[int]], options: Options | None = None
) -> TorchModule:
    """A port with each of the named faults in its layers."""
    model = build(source, options)
    for name, layers in faults:
        plant = CATALOGUE[name].plant
        assert plant is not None, f"{name} cannot be planted in a model"
        plant(model, layers)
    return TorchModule(model, source, " and ".join(name for name, _ in faults) or "correct")


def float64_sites(port: TorchModule, item: Input) -> dict[str, Any]:
    """Every site of the port in float64, of the first row."""
    found: dict[str, Any] = {}

    def keep(site: str, value: Any, narrowest: str | None = None) -> None:
        found[site] = value[0].copy()

    with port.float64() as twin:
        assert twin.activations is not None
        twin.activations(item.tokens, keep)
    return found
