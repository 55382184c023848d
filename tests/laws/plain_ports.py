"""A GPT-2 in torch, every step of which can be replaced, as a port to plant faults in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import checkpoint

from verify.checkpoint import Checkpoint
from verify.faults.catalogue import CATALOGUE
from verify.faults.model import Options, build
from verify.ports.port import Dtype
from verify.ports.torch_module import TorchModule


def plain(
    alter: Callable[[Any], None] = lambda model: None,
    dtype: Dtype | None = None,
    source: Checkpoint | None = None,
    options: Options | None = None,
) -> TorchModule:
    """``verify.faults.model`` with the checkpoint's weights, altered after it was built."""
    source = source or checkpoint()
    port = TorchModule(build(source, options), source, "plain", dtype)
    alter(port.module)
    return port


def faulty(
    name: str,
    dtype: Dtype | None = None,
    source: Checkpoint | None = None,
    options: Options | None = None,
) -> TorchModule:
    """The same with a fault of the catalogue, in every layer."""
    fault = CATALOGUE[name]
    port = plain(dtype=dtype, source=source, options=options)
    if fault.plant:
        fault.plant(port.module, range(port.config.n_layer))
    if fault.plant_port:
        fault.plant_port(port, source or checkpoint())
    return port
