"""Ports with a fault of the catalogue in them, in every form in which it can be injected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import Fault, InModel, Stored, tensors_of
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.port import Port
    from gpt_verify.process.worker import Worker

#: How a fault is shown to the suite.
EVERYWHERE, ONE_LAYER = "all layers", "one layer"
LOGITS, TENSORFLOW = "logits only", "TensorFlow"
FORMS = (EVERYWHERE, ONE_LAYER, LOGITS, TENSORFLOW)


@dataclass(frozen=True)
class Injection:
    """One fault in one form.

    Attributes:
        fault: its name.
        form: one of ``FORMS``.
        layers: where it is injected.
    """

    fault: str
    form: str
    layers: tuple[int, ...]


def injections(fault: Fault, config: Config) -> list[Injection]:
    """Every form that a fault has on a model of this size; empty where it cannot be injected."""
    every = tuple(range(config.n_layer))
    if config.own is not None:
        return _in_family(fault, config, every)
    if fault.inject is None:
        return []
    found = [Injection(fault.name, EVERYWHERE, every)]
    layers = [sites(config)[name].layer for name in fault.overrides(config)]
    in_blocks = any(layer is not None for layer in layers)
    in_blocks |= isinstance(fault.inject, InModel) and fault.inject.in_blocks
    if fault.layered and in_blocks and config.n_layer > 1:
        found.append(Injection(fault.name, ONE_LAYER, (config.n_layer // 2,)))
    if fault.predicted:
        found.append(Injection(fault.name, LOGITS, every))
    if fault.tensors:
        found.append(Injection(fault.name, TENSORFLOW, every))
    return found


def _in_family(fault: Fault, config: Config, every: tuple[int, ...]) -> list[Injection]:
    """Those of a family."""
    if fault.in_family is None or not fault.of(config):
        return []
    found = [Injection(fault.name, EVERYWHERE, every)]
    middle = config.n_layer // 2
    some = [
        layer for layer in (*every[middle:], *every[:middle]) if fault.overrides(config, [layer])
    ]
    if fault.in_family.by_layer and config.n_layer > 1 and some:
        found.append(Injection(fault.name, ONE_LAYER, (some[0],)))
    if fault.predicted:
        found.append(Injection(fault.name, LOGITS, every))
    return found


def why_not_injected(fault: Fault, checkpoint: Checkpoint) -> str | None:
    """Why a fault cannot be injected here; None where it can."""
    if fault.family == "tokenizer":
        if find_spec("tokenizers") is None:
            return "tokenizers is not installed"
        if not checkpoint.has_vocabulary:
            return "the checkpoint has no vocabulary"
    if checkpoint.config.own is not None and (why := _other_transformers()):
        return why
    if not injections(fault, checkpoint.config):
        return "is no fault of a model of this kind, or has no form in torch"
    return None


def _other_transformers() -> str | None:
    """Faults of the families know the modules and the keys of one version alone."""
    if find_spec("transformers") is None:
        return "transformers is not installed"
    installed = version("transformers")
    return (
        None if installed.startswith("5.") else f"is injected into transformers 5, not {installed}"
    )


def why_no_tensorflow(fault: Fault) -> str | None:
    """Why a fault has no form in TensorFlow; None where it has one."""
    if fault.tensors:
        return None
    return "not a damage to tensors, and the graph of the TensorFlow port is the published one"


def port_with(
    fault: Fault, injection: Injection, checkpoint: Checkpoint, worker: Worker | None = None
) -> Port:
    """The port with the fault, ready to be judged against the same checkpoint.

    Args:
        fault: what it does wrong.
        injection: the form of the fault, and the layers that have it.
        checkpoint: the weights.
        worker: the process that a port in TensorFlow is built in; one of its own where None.
    """
    if injection.form == TENSORFLOW:
        from gpt_verify.ports.openai_tf import openai_tf

        return openai_tf(damaged(fault, checkpoint, injection.layers), worker=worker)
    port = _port(fault, injection.layers, checkpoint)
    if injection.form == LOGITS:
        return logits_only(port)
    return port


def correct_port(checkpoint: Checkpoint) -> Port:
    """The same port without a fault."""
    return _port(None, (), checkpoint)


def damaged(fault: Fault, checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """A checkpoint in memory whose tensors are as a mistaken loader makes them."""
    assert fault.tensors, f"{fault.name} is no damage to tensors"
    tensors = {name: np.array(checkpoint.tensors[name]) for name in tensor_table(checkpoint.config)}
    whole = dict(tensors)
    for name in tensors_of(fault.tensors.kinds, layers):
        stored = Stored(checkpoint.config, name, whole[name], whole.__getitem__)
        tensors[name] = np.asarray(fault.tensors.corrupt(stored), np.float32)
    # Assigned one by one: the Saver would restore what lies in OpenAI's files.
    return replace(checkpoint, format="huggingface", tensors=tensors, files=())


def logits_only(port: Port) -> Port:
    """Nothing else of a port is shown."""
    from gpt_verify.ports.callable import CallablePort

    return CallablePort(lambda tokens: port.logits(tokens), port.name, port.dtype)


def _port(fault: Fault | None, layers: Sequence[int], checkpoint: Checkpoint) -> Port:
    if checkpoint.config.own is None:
        return _torch_port(fault, layers, checkpoint)
    from gpt_verify.ports.huggingface import huggingface
    from gpt_verify.ports.huggingface_family import Altered

    how = fault.in_family if fault is not None else None
    if fault is None or how is None:
        return huggingface(checkpoint, "eager")
    config, module = how.config, how.module

    def change(made: Any) -> None:
        if config is not None:
            config(made, checkpoint.config)

    def alter(made: Any) -> None:
        if module is not None:
            module(Decoder(made, checkpoint.config), layers)

    return huggingface(checkpoint, "eager", altered=Altered(fault.name, change, alter))


def _torch_port(fault: Fault | None, layers: Sequence[int], checkpoint: Checkpoint) -> Port:
    from gpt_verify.faults.model import build
    from gpt_verify.ports.torch.module import TorchModule

    model: Any = build(checkpoint)
    if fault is not None:
        fault.put_into(model, layers)
    port = TorchModule(model, checkpoint, fault.name if fault else "correct")
    if fault is not None:
        fault.put_around(port, checkpoint)
    return port
