"""What a fault is: a known porting mistake, written once, for two uses.

Planted in a correct port, in torch, it measures whether the suite can fail. As an hypothesis, in
NumPy, it explains a failure: the site that it would change is computed with the mistake, from the
port's own input, and compared with what the port made of it. The two are written separately, so
that neither proves itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.graph.call import Act, Call
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

Array = NDArray[np.floating]
#: Changes a ``gpt_verify.faults.model.Model`` in the given layers.
Plant = Callable[[Any, Sequence[int]], None]
#: What a port made of a site, and the operation → what it would be with the mistake, where a number
#: of it is known from there alone; ValueError where it cannot be found out.
Fit = Callable[[Array, Call], Array]
#: Changes a port of a checkpoint as a whole: what lies around the model, not in it.
PlantPort = Callable[[Any, Checkpoint], None]


@dataclass(frozen=True)
class Stored:
    """One tensor of the checkpoint on its way into a port.

    Attributes:
        config: sizes.
        name: the checkpoint's.
        value: float32.
        lookup: the others, by name.
    """

    config: Config
    name: str
    value: Array
    lookup: Callable[[str], Array]


#: What a mistaken loader makes of a tensor.
Alter = Callable[[Stored], Array]

#: Sites that lie in no block.
OUTSIDE = frozenset(("embed", "ln_f", "logits"))


@dataclass(frozen=True)
class Fault:
    """One porting mistake.

    Attributes:
        name: ``gelu-erf``.
        family: ``gelu``, ``norm``, ``attention`` …
        summary: one sentence that completes "the port …": ``computes the exact GELU, with erf``.
        seen: where it was made (project, and issue or commit where known); empty where it is known
            from the literature on porting alone.
        acts: kind of site → what the operation becomes, in NumPy. A kind is a site's name without
            its layer: ``mlp.act``, ``ln_1``, ``embed``, ``logits``. Empty for a fault that changes
            no site of a plain forward pass.
        fits: kind of site → the same for a mistake with numbers of its own, which are fitted.
        alter: for a fault of the weights, what it makes of a tensor.
        tensors: for a fault of the weights, the kinds of tensor that it is planted in
            (``attn/c_attn/w``).
        spot: the damage is at a place of its own (one bit, one row), which is found where the
            tensor is shown, and not looked for in logits.
        plant: the fault in torch, in some layers of a model.
        plant_port: the same for a fault that lies around the model.
        law: the check that must refute it; None where the fault provably changes nothing.
        coarse: the mistake rounds coarsely, so that a tiny difference before it becomes a whole
            step after it where the step falls in between: one element in ten may be off by that.
        layered: it can be planted in one layer as well as in all.
        in_blocks: it lies in the blocks, although it changes none of their sites.
        entails: faults that laws would name it by as well, which see only what follows from it.
        needs: why it may change nothing on some checkpoints, in words; empty where it always does.
        last: of the blocks it is in the last alone.
        norm_first: it is one of blocks that norm first alone (True), or afterwards alone (False).
    """

    name: str
    family: str
    summary: str
    seen: str = ""
    acts: Mapping[str, Act] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    alter: Alter | None = None
    tensors: tuple[str, ...] = ()
    spot: bool = False
    plant: Plant | None = None
    plant_port: PlantPort | None = None
    law: str | None = "architecture"
    coarse: bool = False
    layered: bool = True
    in_blocks: bool = False
    entails: tuple[str, ...] = ()
    needs: str = ""
    last: bool = False
    norm_first: bool | None = None

    def overrides(self, config: Config, layers: Sequence[int] | None = None) -> dict[str, Act]:
        """Site → what it becomes, for ``gpt_verify.graph.run.run``; all layers where None.

        What lies outside the blocks is concerned where all layers are, or where nothing in the
        blocks is: an ε in one layer leaves the last norm as it is.
        """
        every = range(config.n_layer) if layers is None else layers
        every = every[-1:] if self.last else every
        whole = len(every) == config.n_layer or OUTSIDE.issuperset(self.acts)
        found: dict[str, Act] = {}
        for kind, act in self.acts.items():
            if kind not in OUTSIDE:
                found |= {f"h.{layer}.{kind}": act for layer in every}
            elif whole:
                found[kind] = act
        if self.alter is not None:
            altered = tensors_of(self.tensors, every)
            readers = [s for s in sites(config).values() if set(s.weights) & set(altered)]
            found |= {site.name: partial(_altered, self.alter, altered) for site in readers}
        return {site: act for site, act in found.items() if site in sites(config)}


def tensors_of(kinds: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Names in the checkpoint: ``ln_1/g`` in every one of the layers, ``wte`` once."""
    names: list[str] = []
    for kind in kinds:
        everywhere = kind in ("wte", "wpe") or kind.startswith("ln_f")
        names += [kind] if everywhere else [f"h{layer}/{kind}" for layer in layers]
    return names


def _altered(alter: Alter, names: Sequence[str], call: Call) -> Array:
    """The right operation on altered tensors."""

    def lookup(name: str) -> Array:
        if name not in names:
            return call.lookup(name)
        value = np.asarray(call.lookup(name), np.float32)
        return alter(Stored(call.config, name, value, call.lookup))

    return right(replace(call, lookup=lookup))
