"""Layer norms folded into the matrix that follows: recognised by the products.

``(x̂ ⊙ g + β) W + b`` is ``x̂ (g ⊙ W) + (β W + b)``, and ports that are made for inference or for
analyses (``fold_ln`` of TransformerLens) keep the two brackets and no layer norm. Bit for bit they
are nothing in the checkpoint. They are the products to within rounding: once for each element of a
matrix, and for a bias as often as it has summands.

What is recognised is judged as what it computes: against the checkpoint with the same layer norms
folded in, every site of which is defined as before. The bias that ``ln_f`` leaves at the head has
no place there, and is taken off the port's logits. What it adds to their rounding, u |β W| once, is
below what the sum itself may err by, √n u |x W|, but not in half precision, where only the result
is rounded coarsely: such a port is not judged.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Place
from gpt_verify.matching.layouts import layouts
from gpt_verify.matching.placement import Matching
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import split_qkv, tensor_table

Array = NDArray[np.floating]
Tensors = Mapping[str, Array]

#: Layer norm → what reads it.
_READERS = {"ln_1": "attn/c_attn", "ln_2": "mlp/c_fc"}
HEAD = "lm_head"
#: What the report says of the bias that ln_f leaves there.
HEAD_BIAS = "ln_f/b folded in: times wte, at the head"
#: Why a head with ln_f in it is not asked whether it is tied.
NOT_TIED = "ln_f is folded into the head, which is no copy of wte by that"


@dataclass(frozen=True)
class Folding:
    """The checkpoint as a port with folded layer norms has it.

    Attributes:
        config: of the model that it is then; a head with ``ln_f`` in it is no copy of ``wte``.
        tensors: the port's own products, no gain and no bias in the norms, all else as it was.
        norms: what is folded: ``h0/ln_1`` …
        notes: tensor → what became of it.
        head_bias: the parameter that is ``ln_f``'s bias times ``wte``; None without one.
        missing: what should be somewhere in the port and is not.
    """

    config: Config
    tensors: Tensors
    norms: tuple[str, ...]
    notes: Mapping[str, str]
    head_bias: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def gone(self) -> tuple[str, ...]:
        """Tensors that the port has no parameter for."""
        return tuple(f"{norm}/{leaf}" for norm in self.norms for leaf in "gb")

    def places(self, matching: Matching) -> dict[str, Place]:
        """The places of the parameters in which something is folded, for the report."""
        found = {}
        for placement in matching.placements:
            if norm := self.readers.get(placement.tensor):
                place = placement.place
                note = f"{place.note}, with {norm} folded in"
                found[placement.parameter] = replace(place, note=note, sure=False)
        if self.head_bias:
            found[self.head_bias] = Place(None, HEAD_BIAS, sure=False)
        return found

    @property
    def readers(self) -> dict[str, str]:
        """Tensor → the norm that is folded into it."""
        return {
            name: norm
            for norm in self.norms
            for name in ((HEAD,) if norm == "ln_f" else [f"{_readers(norm)[0]}/{x}" for x in "wb"])
        }

    def applied(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the same norms folded."""
        return replace(checkpoint, config=self.config, tensors=self.tensors)

    @property
    def remark(self) -> str:
        kinds = dict.fromkeys(norm.rpartition("/")[2] for norm in self.norms)
        return (
            f"layer norms folded into the next matrix ({', '.join(kinds)}), and judged as that: "
            "the weights against the products, the sites against the checkpoint with them folded"
        )


@dataclass(frozen=True)
class _Product:
    """A tensor with a layer norm folded in.

    Attributes:
        value: float64.
        bound: how far from it rounding may leave a port's.
    """

    value: Array
    bound: Array


def find_folding(
    parameters: Sequence[Parameter],
    matching: Matching,
    config: Config,
    tensors: Tensors,
    precision: Precision,
) -> Folding | None:
    """Find the layer norms that a port has folded; None where it has none.

    A norm of which the port has the gain or the bias bit for bit is not folded. Of the others a
    kind (``ln_1`` of all layers) is, where one of its products at least is found; the last one
    where any other is.

    Args:
        parameters: of the port.
        matching: of these to the checkpoint as it is.
        config: of the checkpoint.
        tensors: of the checkpoint, unrounded.
        precision: that the port declares.
    """
    if not config.tied or not config.norm_first or config.own is not None:
        return None
    exact = {p.tensor for p in matching.placements if p.exact}
    open_norms = [n for n in _norms(config) if not {f"{n}/g", f"{n}/b"} & exact]
    if not open_norms:
        return None
    found = _Search(parameters, config, tensors, precision)
    own: dict[str, Array] = {}
    for norm in open_norms:
        own |= found.of(norm)
    kinds = {_kind(norm) for norm in open_norms if any(f"{r}/w" in own for r in _readers(norm))}
    if kinds or HEAD in own:  # who folds the others folds the last, whose matrix may be wrong
        kinds.add("ln_f")
    norms = tuple(norm for norm in open_norms if _kind(norm) in kinds)
    return found.folding(norms, own) if norms else None


class _Search:
    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: Config,
        tensors: Tensors,
        precision: Precision,
    ) -> None:
        self._parameters, self._config = parameters, config
        self._tensors, self._precision = tensors, precision

    def of(self, norm: str) -> dict[str, Array]:
        """The products with one norm that the port has, as it has them, in the checkpoint's
        layout. Of one that it has in three parts, or of which a part is wrong, the rest is as it
        should be."""
        found: dict[str, Array] = {}
        for name, product in self._products(norm).items():
            for part, value in self._met(name, product):
                whole = found.setdefault(name, product.value.astype(np.float32))
                if part is None:
                    found[name] = value
                else:
                    split_qkv(whole)[part][...] = value
        return found

    def head_bias(self) -> tuple[str | None, bool]:
        """The parameter that is ln_f's bias at the head, and whether there should be one."""
        wte, bias = (self._tensors[name].astype(np.float64) for name in ("wte", "ln_f/b"))
        product = self._sum(np.zeros(len(wte)), bias, wte.T)
        if not product.value.any():
            return None, False
        for parameter in self._parameters:
            if parameter.shape == product.value.shape and _within(parameter.read(), product):
                return parameter.name, True
        return None, True

    def folding(self, norms: tuple[str, ...], own: Mapping[str, Array]) -> Folding:
        changed: dict[str, Array] = {}
        notes: dict[str, str] = {}
        config, head_bias = self._config, None
        missing: tuple[str, ...] = ()
        for norm in norms:
            reader = _readers(norm)[0]
            width = self._config.n_embd
            changed[f"{norm}/g"] = np.ones(width, np.float32)
            changed[f"{norm}/b"] = np.zeros(width, np.float32)
            notes |= {f"{norm}/{leaf}": f"folded into {reader}" for leaf in "gb"}
            for name, product in self._products(norm).items():
                changed[name] = own.get(name, product.value.astype(np.float32))
                notes[name] = f"{norm} folded in, equal to the product to within rounding"
        if "ln_f" in norms:
            config = replace(config, tied=False)
            head_bias, expected = self.head_bias()
            if expected and head_bias is None:
                missing = ("ln_f/b (times wte, at the head)",)
        tensors = ChainMap(changed, self._tensors)  # type: ignore[arg-type]  # it is not written to
        return Folding(config, tensors, norms, notes, head_bias, missing)

    def _products(self, norm: str) -> dict[str, _Product]:
        def wide(name: str) -> Array:
            return self._tensors[name].astype(np.float64)

        gain, shift = wide(f"{norm}/g"), wide(f"{norm}/b")
        if norm == "ln_f":
            return {HEAD: self._scaled(gain, wide("wte"))}
        (reader,) = _readers(norm)
        weight = wide(f"{reader}/w")
        return {
            f"{reader}/w": self._scaled(gain[:, None], weight),
            f"{reader}/b": self._sum(wide(f"{reader}/b"), shift, weight),
        }

    def _scaled(self, gain: Array, weight: Array) -> _Product:
        """One product, rounded in float32, and once more to the format of the port."""
        value = gain * weight
        u = FLOAT32.u + self._precision.u
        return _Product(value, u * np.abs(value) + self._tiny)

    def _sum(self, bias: Array, shift: Array, weight: Array) -> _Product:
        """Higham 2002, (3.5): n products summed in any order, in float32."""
        value = bias + shift @ weight
        terms = (len(shift) + 1) * FLOAT32.u * (np.abs(bias) + np.abs(shift) @ np.abs(weight))
        return _Product(value, terms + self._precision.u * np.abs(value) + self._tiny)

    @property
    def _tiny(self) -> float:
        """What rounding loses of a number that is too small for the format."""
        narrow = np.float16 if self._precision.name == "float16" else np.float32
        return float(np.finfo(narrow).smallest_subnormal)

    def _met(self, name: str, product: _Product) -> Iterator[tuple[int | None, Array]]:
        """Parts of a product that the port has, and its values, in the checkpoint's layout."""
        spec = tensor_table(self._config).get(name)  # a head of its own is in no tied table
        parts: list[int | None] = [None, *range(len(spec.parts) if spec else 0)]
        for part in parts:
            piece = product
            if part is not None:
                value, bound = (split_qkv(x)[part] for x in (product.value, product.bound))
                piece = _Product(value, bound)
            ways = layouts(name, piece.value.shape, self._config, part is not None)
            for parameter in self._parameters:
                for layout in ways:
                    if not layout.fits(parameter.shape):
                        continue
                    value = layout.to_checkpoint_layout(parameter.read()).reshape(piece.value.shape)
                    if _within(value, piece):
                        yield part, value.astype(np.float32)
                        break


def _within(value: Array, product: _Product) -> bool:
    """A few elements first: most parameters are some other tensor."""
    some = slice(0, 1)
    first = np.abs(value[some] - product.value[some]) <= product.bound[some]
    if not first.all():
        return False
    return bool((np.abs(value.astype(np.float64) - product.value) <= product.bound).all())


def _norms(config: Config) -> list[str]:
    return [name.removesuffix("/g") for name in tensor_table(config) if name.endswith("/g")]


def _kind(norm: str) -> str:
    return norm.rpartition("/")[2]


def _readers(norm: str) -> list[str]:
    if norm == "ln_f":
        return [HEAD]
    scope, _, kind = norm.partition("/")
    return [f"{scope}/{_READERS[kind]}"]
