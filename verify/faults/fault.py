"""What a fault is: a known porting mistake, written once, for two uses.

Injected into a correct port, in torch, it measures whether the suite can fail. As an hypothesis, in
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
from gpt_verify.faults.decoder import Decoder
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.port import Dtype
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Array = NDArray[np.floating]
#: Changes a ``gpt_verify.faults.model.Model`` in the given layers.
Inject = Callable[[Any, Sequence[int]], None]
#: What a port made of a site, and the operation → what it would be with the mistake, where a number
#: of it is known from there alone; ValueError where it cannot be found out.
Fit = Callable[[Array, Call], Array]
#: Changes a port of a checkpoint as a whole: what lies around the model, not in it.
InjectPort = Callable[[Any, Checkpoint], None]
#: Changes the configuration that transformers builds a model from, given what it should say.
InjectConfig = Callable[[Any, Config], None]
#: Changes the given layers of transformers' model of a family.
InjectDecoder = Callable[[Decoder, Sequence[int]], None]


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
Corrupt = Callable[[Stored], Array]

#: Sites that lie in no block.
OUTSIDE = frozenset(("embed", "ln_embed", "ln_f", "logits"))


@dataclass(frozen=True)
class InModel:
    """A fault that is injected in torch, into some layers of a ``gpt_verify.faults.model.Model``.

    Attributes:
        inject: changes the model.
        layered: it can be injected into one layer as well as into all.
        in_blocks: it lies in the blocks, although it changes none of their sites.
    """

    inject: Inject
    layered: bool = True
    in_blocks: bool = False


@dataclass(frozen=True)
class AroundPort:
    """A fault that is injected around the model: into its tokenizer, its cache, its process.

    Attributes:
        inject: changes the port.
        model: changes the model first; None where the fault is around it alone.
    """

    inject: InjectPort
    model: Inject | None = None


@dataclass(frozen=True)
class InTransformers:
    """A fault that is injected into transformers' own model of a family.

    Attributes:
        config: changes the configuration, and with it every layer; None where the fault is none
            of a key.
        module: changes the model that is built; None where the configuration says it all.
        layered: as of ``InModel``, where there is a ``module``.
    """

    config: InjectConfig | None = None
    module: InjectDecoder | None = None
    layered: bool = True

    @property
    def by_layer(self) -> bool:
        """It can be injected into one layer as well as into all."""
        return self.config is None and self.layered


def any_model(config: Config) -> bool:
    """Of a fault that every model can have."""
    return True


def any_site(config: Config, site: Site) -> bool:
    """Of a fault that changes every site of its kinds."""
    return True


@dataclass(frozen=True)
class AtSites:
    """What a fault makes of operations of the forward pass, in NumPy.

    A kind of site is its name without the layer: ``mlp.act``, ``ln_1``, ``embed``, ``logits``.

    Attributes:
        operations: kind of site → what the operation becomes.
        fitted: kind of site → the same for a fault with numbers of its own, which are fitted.
        quantising: it rounds so coarsely that a tiny difference before it becomes a whole step
            after it where the step falls in between: one element in ten may be off by that.
        where: the sites in blocks, of those kinds, that it changes; of windows, those of layers
            that have one.
        early: kind of site → what a port may show there already, before the fault strikes: scores
            that are masked.
    """

    operations: Mapping[str, Override] = field(default_factory=dict)
    fitted: Mapping[str, Fit] = field(default_factory=dict)
    quantising: bool = False
    where: Callable[[Config, Site], bool] = any_site
    early: Mapping[str, Override] = field(default_factory=dict)

    def at(self, config: Config, layers: Sequence[int]) -> dict[str, Override]:
        """Site → what it becomes with the fault in these layers.

        What lies outside the blocks is concerned where all layers are, or where nothing in the
        blocks is: an ε in one layer leaves the last norm as it is.
        """
        whole = len(layers) == config.n_layer or OUTSIDE.issuperset(self.operations)
        found: dict[str, Override] = {}
        table = sites(config)
        for kind, act in self.operations.items():
            if kind not in OUTSIDE:
                at = (table.get(f"h.{layer}.{kind}") for layer in layers)
                found |= {s.name: act for s in at if s is not None and self.where(config, s)}
            elif whole:
                found[kind] = act
        return found


@dataclass(frozen=True)
class OfTensors:
    """What a loader with a fault makes of tensors of the checkpoint.

    Attributes:
        corrupt: what becomes of one.
        kinds: which it is injected into (``attn/c_attn/w``).
        localised: the damage is at a place of its own (one bit, one row), which is found where the
            tensor is shown, and not looked for in logits.
    """

    corrupt: Corrupt
    kinds: tuple[str, ...]
    localised: bool = False

    def at(self, config: Config, layers: Sequence[int]) -> dict[str, Override]:
        """Site that reads one of them → what it becomes with those of these layers corrupted."""
        names = tensors_of(self.kinds, layers)
        readers = [s for s in sites(config).values() if set(s.weights) & set(names)]
        return {site.name: partial(_corrupted, self.corrupt, names) for site in readers}


@dataclass(frozen=True)
class Fault:
    """One porting mistake.

    Attributes:
        name: ``gelu-erf``.
        family: ``gelu``, ``norm``, ``attention`` …
        summary: one sentence that completes "the port …": ``computes the exact GELU, with erf``.
        seen: where it was made (project, and issue or commit where known); empty where it is known
            from the literature on porting alone.
        inject: puts it into a correct port of GPT-2; None where that would be another model.
        in_family: puts it into transformers' model of a family; None where nobody has said how.
        predict: what it makes of the forward pass, in NumPy; None where it changes no site of it.
        law: the check that must refute it; None where the fault provably changes nothing.
        entails: faults that laws would name it by as well, which see only what follows from it.
        needs: why it may change nothing on some checkpoints, in words; empty where it always does.
        of: which models can have it.
        stored: the format in which it keeps what a port of that format, or of a coarser one, keeps
            so anyway: of such a port it is no fault.
    """

    name: str
    family: str
    summary: str
    seen: str = ""
    inject: InModel | AroundPort | None = None
    predict: AtSites | OfTensors | None = None
    law: str | None = "architecture"
    entails: tuple[str, ...] = ()
    needs: str = ""
    of: Callable[[Config], bool] = any_model
    in_family: InTransformers | None = None
    stored: Dtype | None = None

    @property
    def sites(self) -> AtSites:
        """What it makes of operations; nothing where it is no fault of theirs."""
        return self.predict if isinstance(self.predict, AtSites) else AtSites()

    @property
    def tensors(self) -> OfTensors | None:
        """What it makes of tensors; None where it is no fault of a loader."""
        return self.predict if isinstance(self.predict, OfTensors) else None

    @property
    def predicted(self) -> bool:
        """The reference can compute with it, without numbers that are fitted first."""
        return self.tensors is not None or bool(self.sites.operations)

    @property
    def layered(self) -> bool:
        """It can be injected into one layer as well as into all; of a fault of families alone,
        there."""
        if self.inject is None:
            return self.in_family is not None and self.in_family.by_layer
        return isinstance(self.inject, InModel) and self.inject.layered

    @property
    def of_all_layers(self) -> bool:
        """A family's model has it in every layer that it concerns, or in none."""
        return self.inject is None and self.in_family is not None and not self.in_family.by_layer

    def concerns(self, precision: Precision) -> bool:
        """Whether it is a fault in a port of this precision."""
        return self.stored is None or precision.u < PRECISIONS[self.stored].u

    def put_into(self, model: Any, layers: Sequence[int]) -> None:
        """Inject what lies in the model, before a port is made of it."""
        match self.inject:
            case InModel(inject) | AroundPort(model=inject) if inject is not None:
                inject(model, layers)

    def put_around(self, port: Any, checkpoint: Checkpoint) -> None:
        """Inject what lies around the model."""
        if isinstance(self.inject, AroundPort):
            self.inject.inject(port, checkpoint)

    def overrides(self, config: Config, layers: Sequence[int] | None = None) -> dict[str, Override]:
        """Site → what it becomes, for ``gpt_verify.graph.run.run``; all layers where None."""
        every = range(config.n_layer) if layers is None else layers
        found = self.predict.at(config, every) if self.predict is not None else {}
        return {site: act for site, act in found.items() if site in sites(config)}


def of_operations(
    name: str,
    family: str,
    summary: str,
    seen: str,
    operations: Mapping[str, Override],
    inject: Inject,
    *,
    layered: bool = True,
    quantising: bool = False,
    fitted: Mapping[str, Fit] | None = None,
    **more: Any,
) -> Fault:
    """A fault of operations of the forward pass, in its two writings.

    Args:
        name, family, summary, seen: as of ``Fault``.
        operations: in NumPy, as of ``AtSites``.
        inject: in torch, as of ``InModel``.
        layered: as of ``InModel``.
        quantising, fitted: as of ``AtSites``.
        more: whatever else ``Fault`` takes.
    """
    predict = AtSites(operations, fitted or {}, quantising)
    return Fault(name, family, summary, seen, InModel(inject, layered), predict, **more)


def tensors_of(kinds: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Names in the checkpoint: ``ln_1/g`` in every one of the layers, ``wte`` once."""
    names: list[str] = []
    for kind in kinds:
        everywhere = kind in ("wte", "wpe") or kind.startswith("ln_f")
        names += [kind] if everywhere else [f"h{layer}/{kind}" for layer in layers]
    return names


def _corrupted(corrupt: Corrupt, names: Sequence[str], call: Call) -> Array:
    """The correct operation on corrupted tensors."""

    def lookup(name: str) -> Array:
        if name not in names:
            return call.lookup(name)
        value = np.asarray(call.lookup(name), np.float32)
        return corrupt(Stored(call.config, name, value, call.lookup))

    return right(replace(call, lookup=lookup))
