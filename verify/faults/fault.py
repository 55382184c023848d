"""What a fault is: a known porting mistake, written once, for two uses.

Planted in a correct port, in torch, it measures whether the suite can fail. As an hypothesis, in
NumPy, it explains a failure: the site that it would change is computed with the mistake, from the
port's own input, and compared with what the port made of it. The two are written separately, so
that neither proves itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from verify.faults.oracle import Act

Array = NDArray[np.floating]
#: Changes a ``verify.faults.model.Model`` in the given layers.
Plant = Callable[[Any, Sequence[int]], None]
#: Changes a port as a whole: what lies around the model, not in it.
PlantPort = Callable[[Any], None]
#: One tensor of the checkpoint → what a mistaken loader makes of it. Arguments: its name, its
#: value, and how to look up the others. None where the mistake does not concern that tensor.
Alter = Callable[[str, Array, Callable[[str], Array]], Array | None]


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
        alter: for a fault of the weights, what it makes of a tensor.
        tensors: for a fault of the weights, the kind of tensor that it is planted in
            (``attn/c_attn/w``).
        plant: the fault in torch, in some layers of a model.
        plant_port: the same for a fault that lies around the model.
        law: the check that must refute it; None where the fault provably changes nothing.
        coarse: the mistake rounds coarsely, so that a tiny difference before it becomes a whole
            step after it where the step falls in between: one element in ten may be off by that.
        layered: it can be planted in one layer as well as in all.
        needs: why it may change nothing on some checkpoints, in words; empty where it always does.
    """

    name: str
    family: str
    summary: str
    seen: str = ""
    acts: Mapping[str, Act] = field(default_factory=dict)
    alter: Alter | None = None
    tensors: tuple[str, ...] = ()
    plant: Plant | None = None
    plant_port: PlantPort | None = None
    law: str | None = "architecture"
    coarse: bool = False
    layered: bool = True
    needs: str = ""

    def overrides(self, config: Config, layers: Sequence[int] | None = None) -> dict[str, Act]:
        """Site → what it becomes, for ``verify.faults.oracle.run``; all layers where None."""
        found: dict[str, Act] = {}
        for kind, act in self.acts.items():
            if kind in ("embed", "ln_f", "logits"):
                found[kind] = act
            else:
                every = range(config.n_layer) if layers is None else layers
                found |= {f"h.{layer}.{kind}": act for layer in every}
        return found


def kind_of(site: str) -> str:
    """``h.3.mlp.act`` → ``mlp.act``."""
    return site.split(".", 2)[2] if site.startswith("h.") else site
