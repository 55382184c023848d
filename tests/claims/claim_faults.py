"""For every claim, at least one model or code base of which it is not so.

Each entry is a function without arguments that returns a ``Case``; its docstring says what is wrong
with it. On it the evidence of that claim must come out the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from models import CONFIG, checkpoint

from reference.config import Config
from verify.checkpoint import Checkpoint
from verify.claims.case import Case
from verify.claims.models import Model
from verify.claims.oracle_port import OraclePort
from verify.claims.transformers_code import TransformersCode, installed
from verify.faults.oracle import Act
from verify.ports.port import Port

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


def altered(overrides: Mapping[str, Act], config: Config = CONFIG) -> Case:
    """The oracle with some operations replaced; ``*`` stands for every layer."""
    everywhere: dict[str, Act] = {}
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
    from verify.ports.huggingface import huggingface

    source = checkpoint()
    port = huggingface(source, "eager")
    alter(port.module)
    return asked(port, source)


def code(before: str) -> Case:
    """transformers with a fault planted before it is examined."""
    (now,) = installed()
    return Case(checkpoint(), models=[], code=[TransformersCode(now.python, HERE / before)])


# Tying


@faulted("tie-transpose")
def head_of_other_rows() -> Case:
    """The last product reads the table's rows in another order."""
    return altered({"logits": lambda c: c.x @ c.w("wte")[::-1].T})


# The lens


@faulted("lens-hf-last")
def states_before_the_norm() -> Case:
    """A transformers whose hidden_states end before ln_f."""
    return code("before_hidden_states.py")


# Claims about weights


@faulted("embed-unigram")
def last_block_does_it_all() -> Case:
    """Every block but the last writes nothing, so that the first one makes no step."""
    from verify.checkpoint import default_checkpoint, open_checkpoint

    source = open_checkpoint(default_checkpoint())
    silent = {
        name: np.zeros_like(value)
        for name, value in source.tensors.items()
        if "/c_proj/" in name and not name.startswith(f"h{source.config.n_layer - 1}/")
    }
    return weights(replace(source, tensors={**source.tensors, **silent}))
