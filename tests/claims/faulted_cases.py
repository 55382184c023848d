"""How cases are made on which a claim comes out the other way, and the register of them.

Each entry is a function without arguments that returns a ``Case``; its docstring says what is wrong
with it. The functions are in ``faults_….py``, by topic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models import CONFIG, checkpoint

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.models import Model
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.claims.transformers_code import TransformersCode, installed
from gpt_verify.graph.call import Override
from gpt_verify.port import Port
from gpt_verify.reference.config import Config

HERE = Path(__file__).resolve().parent
Make = Callable[[], Case]
FAULTED: dict[str, list[Make]] = {}


def faulted(*claims: str) -> Callable[[Make], Make]:
    """Register a case on which these claims come out the other way."""

    def register(make: Make) -> Make:
        for claim in claims:
            FAULTED.setdefault(claim, []).append(make)
        return make

    return register


# How a faulted case is made


def asked(port: Port, source: Checkpoint | None = None, config: Config = CONFIG) -> Case:
    """One port is asked, and nothing else."""
    source = source or checkpoint(config)
    return Case(source, models=[Model(port, source)], code=[])


def altered(overrides: Mapping[str, Override], config: Config = CONFIG) -> Case:
    """The oracle with some operations replaced; ``*`` stands for every layer."""
    everywhere: dict[str, Override] = {}
    for site, act in overrides.items():
        layers: Sequence[int] = range(config.n_layer) if "*" in site else [0]
        everywhere |= {site.replace("*", str(layer)): act for layer in layers}
    source = checkpoint(config)
    return asked(OraclePort(source, everywhere, "faulted"), source)


def with_tensors(config: Config = CONFIG, **tensors: Any) -> Case:
    """The oracle on a checkpoint some of whose tensors are others (``/`` written ``__``)."""
    source = checkpoint(config)
    changed = {**source.tensors, **{n.replace("__", "/"): v for n, v in tensors.items()}}
    return weights(replace(source, tensors=changed))


def weights(source: Checkpoint) -> Case:
    """The oracle on another checkpoint."""
    return asked(OraclePort(source), source)


def torch_model(alter: Callable[[Any], None]) -> Case:
    """transformers' model, altered after it was loaded."""
    from gpt_verify.ports.huggingface import huggingface

    source = checkpoint()
    port = huggingface(source, "eager")
    alter(port.module)
    return asked(port, source)


def code(before: str) -> Case:
    """transformers with a fault injected before it is examined; all else is as it should be."""
    (now,) = installed()
    source = open_checkpoint(default_checkpoint())
    return Case(source, code=[TransformersCode(now.python, HERE / before)])
