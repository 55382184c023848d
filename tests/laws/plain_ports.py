"""A GPT-2 in torch, every step of which can be replaced, as a port to inject faults into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import checkpoint

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.model import Options, build
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.port import Dtype
from gpt_verify.ports.torch.module import TorchModule


def plain(
    alter: Callable[[Any], None] = lambda model: None,
    dtype: Dtype | None = None,
    source: Checkpoint | None = None,
    options: Options | None = None,
) -> TorchModule:
    """``gpt_verify.faults.model`` with the checkpoint's weights, altered after it was built."""
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
    fault.put_into(port.module, range(port.config.n_layer))
    fault.put_around(port, source or checkpoint())
    return port
