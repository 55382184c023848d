"""Port factories that waive a law, as a user's file does: on the factory, or on the Port."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sample_ports import good

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Floats, Parameter, Port, Tokens
from gpt_verify.reference import tensor_table

INFERENCE = "inference only: the head is a copy"


class Copied(Port):
    """The reference with a head of its own, equal bit for bit; it is never trained."""

    name = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.values = {n: checkpoint.tensors[n] for n in tensor_table(checkpoint.config)}
        self.values["lm_head"] = np.array(self.values["wte"])
        self._logits = good(checkpoint)

    def logits(self, tokens: Tokens) -> Floats:
        value: Floats = self._logits(tokens)
        return value

    def parameters(self) -> Iterator[Parameter]:
        for name, value in self.values.items():
            yield Parameter(name, value.shape, value.copy, name)


def unwaived(checkpoint: Checkpoint) -> Port:
    return Copied(checkpoint)


def on_the_factory(checkpoint: Checkpoint) -> Port:
    return Copied(checkpoint)


on_the_factory.waivers = {"tying.storage": INFERENCE, "tying.gradient": INFERENCE}


def on_the_port(checkpoint: Checkpoint) -> Port:
    port = Copied(checkpoint)
    port.waivers = {"tying": INFERENCE}
    return port


def excuses_nothing(checkpoint: Checkpoint) -> Port:
    return Copied(checkpoint)


excuses_nothing.waivers = {"tying.storage": INFERENCE, "tying.value": "not needed"}


def no_such_law(checkpoint: Checkpoint) -> Port:
    return Copied(checkpoint)


no_such_law.waivers = {"tying": INFERENCE, "tieing.storage": "a slip of the pen"}


def of_another_law(checkpoint: Checkpoint) -> Port:
    """What is waived is waived; what else is wrong still refutes."""
    port = Copied(checkpoint)
    correct = port.logits
    port.logits = lambda tokens: 2 * correct(tokens)  # type: ignore[method-assign]
    return port


of_another_law.waivers = {"tying": INFERENCE}


def a_function(checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    """Its logits are twice too large, and that is said not to matter."""
    correct = good(checkpoint)
    return lambda tokens: 2 * correct(tokens)


a_function.waivers = {"logits": "a temperature of one half"}


def a_module(checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    """A torch module has no place for waivers of its own."""
    import torch

    from gpt_verify.ports.huggingface import huggingface

    module = huggingface(checkpoint, "sdpa").module
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    return module


a_module.waivers = {"tying": INFERENCE}
