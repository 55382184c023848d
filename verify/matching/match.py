"""Which parameter of a port is which tensor of the checkpoint.

By content first: a parameter that equals a tensor bit for bit (as it is, transposed, with its axes
in another order, or one of the three parts of ``c_attn``) is that tensor, whatever it is called.
What is left over is paired by shape, nearness and name, so that a *wrong* weight is reported as a
difference in the tensor that it should have been, and is never passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import layer_of
from gpt_verify.matching.layouts import Layout, layouts
from gpt_verify.matching.name_hints import block_number, name_score, sibling
from gpt_verify.matching.placement import Matching as Matching
from gpt_verify.matching.placement import Placement as Placement
from gpt_verify.matching.placement import squeeze
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import QKV, tensor_table

Array = NDArray[np.floating]

_SAMPLE = 4096
#: Elements that are compared at once.
_TILE = 1 << 20
#: More than the relative distance of any two samples, less what a name is worth.
_FARTHEST = 4.0
#: The relative distance of zeros from any tensor: what is as far says nothing of which it is.
_OF_ZEROS = 1.0
#: Between two layouts that fit neither, the one of the other matrices.
_OTHER_LAYOUT = 0.5


@dataclass(frozen=True)
class _Candidate:
    """A tensor, or a part of one, in one layout."""

    tensor: str
    part: int | None
    layout: Layout

    @property
    def slot(self) -> tuple[str, int | None]:
        return self.tensor, self.part

    @property
    def kind(self) -> str:
        """``attn/c_attn/w``, in whatever layer."""
        return self.tensor if self.layer is None else self.tensor.partition("/")[2]

    @property
    def layer(self) -> int | None:
        """None of an embedding or of the last norm."""
        return layer_of(self.tensor)

    def view(self, weights: DeclaredWeights) -> Array:
        """The tensor's values, an axis for each of the layout's."""
        return self.laid(weights[self.tensor])

    def laid(self, whole: Array) -> Array:
        """The same of the tensor's values at hand."""
        return self.layout.to_port_layout(self.placed("").of(whole))

    def placed(
        self,
        name: str,
        exact: bool = True,
        head: bool = False,
        alike: int = 1,
        distance: float | None = None,
    ) -> Placement:
        return Placement(name, self.tensor, self.layout, self.part, exact, head, alike, distance)


_Fits = Mapping[str, Sequence[_Candidate]]


def match(
    parameters: Sequence[Parameter],
    config: Config,
    weights: DeclaredWeights,
    by_head: bool = False,
    without: Collection[str] = (),
) -> Matching:
    """Pair the parameters of a port with the tensors of the checkpoint.

    Parameters that share memory are one parameter and are placed once. Tensors are read one at a
    time; a parameter is read once.

    Args:
        parameters: what the port holds.
        config: the checkpoint's sizes.
        weights: the checkpoint's tensors, in the precision that the port declares.
        by_head: accept a ``c_attn`` in which q, k and v of each head lie side by side. Only for a
            port of which it is known that it reads it so.
        without: tensors that the port is known not to have.
    """
    candidates = [
        c
        for c in _candidates(config)
        if (by_head or not c.layout.by_head) and c.tensor not in without
    ]
    prints: dict[bytes, list[_Candidate]] = {}
    for tensor, views in groupby(candidates, key=lambda c: c.tensor):
        whole = weights[tensor]  # read once: a checkpoint does not keep what it reads
        for c in views:
            prints.setdefault(fingerprint(c.laid(whole)), []).append(c)
    open_slots = {c.slot for c in candidates}
    placed: list[Placement] = []
    left: list[Parameter] = []

    exact: dict[str, list[_Candidate]] = {}
    padding = tuple(p.name for p in _distinct(parameters) if p.padding)
    for parameter in _distinct(parameters):
        if parameter.padding:
            continue
        value = parameter.read()
        if parameter.implies is not None:
            said = next((c for c in candidates if c.slot == (parameter.implies, None)), None)
            if said is not None and said.layout.shape == squeeze(value).shape:
                same = _same_bits(squeeze(value), squeeze(weights[said.tensor]))
                placed.append(replace(said.placed(parameter.name, same), lies=parameter.lies))
                _close(open_slots, said)
                continue
        left.append(parameter)
        exact[parameter.name] = [
            c
            for c in prints.get(fingerprint(value), ())
            if c.layout.fits(value.shape) and _same_bits(value, c.view(weights))
        ]
    exact = _one_layout_each(exact)
    layer_of = _layers_of_blocks(exact)
    taken = _take(_without_strangers(exact, layer_of), open_slots)
    placed += taken
    left = [p for p in left if p.name not in {placement.parameter for placement in taken}]
    told = _Told(taken, weights, layer_of)
    placed += _nearest(left, candidates, weights, open_slots, told, prints)

    names = {placement.parameter for placement in placed}
    surplus = tuple(p.name for p in left if p.name not in names)
    return Matching(tuple(placed), surplus, _missing(open_slots), padding)


def _missing(open_slots: set[tuple[str, int | None]]) -> tuple[str, ...]:
    whole = {slot for slot in open_slots if slot[1] is None}
    missing = [tensor for tensor, _ in sorted(whole)]
    # A c_attn of which only some parts were placed is missing the others.
    missing += [
        f"{tensor} ({QKV[part]})"
        for tensor, part in sorted(s for s in open_slots if s[1] is not None)
        if (tensor, None) not in whole and part is not None
    ]
    return tuple(missing)


class _Told:
    """What content told of some parameters says of the others: the layouts of each kind, the layer
    of each block, and which part of ``c_attn`` a weight or a bias is by what its fellow is."""

    def __init__(
        self,
        taken: Sequence[Placement],
        weights: DeclaredWeights,
        layer_of: Mapping[str, int],
    ) -> None:
        self._layer_of = layer_of
        self._beside = {
            sibling(p.parameter): (p.tensor.rpartition("/")[0], p.part)
            for p in taken
            if p.part is not None and p.alike == 1
        }
        self._orders: dict[tuple[str, bool], Counter[tuple[int, ...]]] = {}
        orientations: Counter[bool] = Counter()
        for p in taken:
            c = _Candidate(p.tensor, p.part, p.layout)
            self._orders.setdefault(_sort(c), Counter())[p.layout.order] += 1
            if weights[p.tensor].ndim > 1:
                orientations[p.transposed] += 1
        self._transposed = orientations.most_common(1)[0][0] if orientations else False

    def against(self, name: str, c: _Candidate) -> float:
        """What speaks against a candidate besides its values."""
        beside = self._beside.get(sibling(name)) if c.part is not None else None
        apart = beside is not None and beside != (c.tensor.rpartition("/")[0], c.part)
        found = _FARTHEST * (apart or _strange(name, c, self._layer_of))
        return found + _OTHER_LAYOUT * (not self.is_usual(c)) - name_score(name, c.tensor, c.part)

    def allows(self, c: _Candidate) -> bool:
        """Whether a layout is taken where content does not tell: as in the checkpoint, transposed,
        or as others are."""
        seen = self._orders.get(_sort(c), ())
        return c.layout.plain or c.layout.transposed or c.layout.order in seen

    def is_usual(self, c: _Candidate) -> bool:
        if seen := self._orders.get(_sort(c)):
            return c.layout.order == seen.most_common(1)[0][0]
        return len(c.layout.shape) < 2 or (
            c.layout.transposed if self._transposed else c.layout.plain
        )


def _nearest(
    left: Sequence[Parameter],
    candidates: Sequence[_Candidate],
    weights: DeclaredWeights,
    open_slots: set[tuple[str, int | None]],
    told: _Told,
    known: Collection[bytes],
) -> list[Placement]:
    """What equals no tensor, nearest first, so that a slightly wrong tensor is claimed before a
    quite different one. Names decide between those that it is no nearer to than zeros are. One
    matrix like wte may be a head of its own, where it should be none. A vector is none, however
    many elements it has, nor are several tensors that lie in one matrix: ``known`` has the
    fingerprints of all."""
    untied = any(c.tensor == "lm_head" for c in candidates)
    pairs = []
    for parameter in left:
        value = parameter.read()
        fitting = [c for c in candidates if c.layout.fits(value.shape)]
        for c in [c for c in fitting if told.allows(c)] or fitting:
            head = c.slot not in open_slots
            if head and (c.tensor != "wte" or untied or not _is_one_matrix(value, known)):
                continue
            distance = _distance(value, c.view(weights))
            rank = min(distance, _OF_ZEROS) + told.against(parameter.name, c)
            pairs.append((rank, head, parameter.name, c, distance))
    pairs = _together(pairs)
    pairs.sort(key=lambda pair: pair[:3])
    done: dict[str, Placement] = {}
    for _, head, name, c, distance in pairs:
        own_head = any(placement.head for placement in done.values())
        if name in done or ((c.slot not in open_slots) != head) or (head and own_head):
            continue
        done[name] = c.placed(name, exact=False, head=head, distance=distance)
        _close(open_slots, c)
    return list(done.values())


def _is_one_matrix(value: Array, known: Collection[bytes]) -> bool:
    return value.ndim > 1 and not any(fingerprint(row) in known for row in value[:1])


#: Rank, whether it is a head, name, candidate, distance.
_Pair = tuple[float, bool, str, _Candidate, float]


def _together(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Query, key and value parts are no more likely than the weight or the bias beside them is to
    be the same part."""
    best: dict[tuple[str, str, str, int], float] = {}
    for rank, _, name, c, _ in pairs:
        if c.part is not None:
            scope, _, leaf = c.tensor.rpartition("/")
            key = (sibling(name), scope, leaf, c.part)
            best[key] = min(rank, best.get(key, rank))
    found = []
    for rank, head, name, c, distance in pairs:
        if c.part is not None:
            scope, _, leaf = c.tensor.rpartition("/")
            other = best.get((sibling(name), scope, "b" if leaf == "w" else "w", c.part), rank)
            rank = (rank + other) / 2
        found.append((rank, head, name, c, distance))
    return found


def _take(exact: _Fits, open_slots: set[tuple[str, int | None]]) -> list[Placement]:
    """Give each tensor to the parameter that equals it, of several to the one with the best name.

    A second wte is a head: what is left when every slot is filled.
    """
    ranked = [(name, c) for name, fitting in exact.items() for c in fitting]
    ranked.sort(key=lambda pair: -name_score(pair[0], pair[1].tensor, pair[1].part))
    taken: dict[str, Placement] = {}
    for is_head in (False, True):
        for name, c in ranked:
            if name in taken or (c.slot not in open_slots) != is_head:
                continue
            if not is_head or c.tensor == "wte":
                alike = len({other.slot for other in exact[name]})
                taken[name] = c.placed(name, head=is_head, alike=alike)
                _close(open_slots, c)
    return [taken[name] for name in exact if name in taken]


def _one_layout_each(exact: _Fits) -> dict[str, list[_Candidate]]:
    """A parameter that equals a tensor in several layouts (a bias of zeros does in all) has that of
    the others of its kind; one that lies by heads where most do not is no such layout."""
    orders: Counter[tuple[tuple[str, bool], tuple[str, ...]]] = Counter()
    for fitting in exact.values():
        if len({c.layout.channels for c in fitting}) == 1:
            orders[_scope(fitting[0]), fitting[0].layout.channels] += 1
    chosen: dict[str, list[_Candidate]] = {}
    for name, fitting in exact.items():
        slots: dict[tuple[str, int | None], list[_Candidate]] = {}
        for c in fitting:
            slots.setdefault(c.slot, []).append(c)
        chosen[name] = []
        for same in slots.values():
            best = max(same, key=lambda c: orders[_scope(c), c.layout.channels])
            votes = [n for (scope, _), n in orders.items() if scope == _scope(best)]
            own = orders[_scope(best), best.layout.channels]
            if not best.layout.by_head or 2 * own > sum(votes):
                chosen[name].append(best)
    return chosen


def _scope(c: _Candidate) -> tuple[str, bool]:
    """Weight and bias of all layers: what a port keeps alike."""
    return c.kind.rpartition("/")[0], c.part is not None


def _sort(c: _Candidate) -> tuple[str, bool]:
    return c.kind, c.part is not None


def _layers_of_blocks(exact: _Fits) -> dict[str, int]:
    """First number in a name → the layer that most of the parameters with that number are of."""
    votes: dict[str, Counter[int]] = {}
    for name, fitting in exact.items():
        layers = {c.layer for c in fitting}
        if len(layers) == 1 and (layer := layers.pop()) is not None:
            votes.setdefault(block_number(name), Counter())[layer] += 1
    found = {}
    for block, counted in votes.items():
        layer, most = counted.most_common(1)[0]
        if block and 2 * most > counted.total():
            found[block] = layer
    return found


def _without_strangers(exact: _Fits, layer_of: Mapping[str, int]) -> dict[str, list[_Candidate]]:
    """Leave out candidates of another layer than that of the name, for kinds of which two
    parameters hold the same tensor: the second of them is not renamed, but wrong.

    Without a tensor that is there twice, content decides, whatever the names say.
    """
    holders = Counter(c.slot for fitting in exact.values() for c in fitting)
    twice = {(c.kind, c.part) for cs in exact.values() for c in cs if holders[c.slot] > 1}
    return {
        name: [c for c in cs if (c.kind, c.part) not in twice or not _strange(name, c, layer_of)]
        for name, cs in exact.items()
    }


def _strange(name: str, c: _Candidate, layer_of: Mapping[str, int]) -> bool:
    """A tensor of another layer than that of the block that the name is in."""
    return c.layer not in (None, layer_of.get(block_number(name), c.layer))


def _candidates(config: Config) -> Iterator[_Candidate]:
    for spec in tensor_table(config).values():
        parts: list[tuple[int | None, tuple[int, ...]]] = [(None, spec.shape)]
        parts += [(part, spec.part_shape) for part in range(len(spec.parts))]
        for part, shape in parts:
            for layout in layouts(spec.name, shape, config, part is not None):
                yield _Candidate(spec.name, part, layout)


def _close(open_slots: set[tuple[str, int | None]], c: _Candidate) -> None:
    """A whole tensor uses up its parts, and a part uses up the whole."""
    open_slots.discard(c.slot)
    parts = range(len(QKV)) if c.part is None else (None,)
    open_slots.difference_update((c.tensor, part) for part in parts)


def _distinct(parameters: Sequence[Parameter]) -> Iterator[Parameter]:
    seen = set()
    for parameter in parameters:
        if parameter.storage not in seen:
            seen.add(parameter.storage)
            yield parameter


def fingerprint(value: Array) -> bytes:
    """A few elements that differ between any two tensors that are not made to be alike."""
    places = np.unique(np.linspace(0, value.size - 1, 9).astype(np.int64))
    return bytes(str(value.size), "ascii") + _elements(value, places).astype(np.float64).tobytes()


def _elements(value: Array, places: NDArray[np.int64]) -> Array:
    """Single elements of a view, counted in the order of its axes, without a copy of the whole."""
    found: Array = (
        value.reshape(1) if value.ndim == 0 else value[np.unravel_index(places, value.shape)]
    )
    return found


def _same_bits(got: Array, expected: Array) -> bool:
    """Equal bit for bit, after exact widening: minus zero is not zero, NaN equals nothing."""
    got = got.reshape(expected.shape)
    rows = len(expected) if expected.ndim else 1
    step = max(1, _TILE * rows // max(1, expected.size))
    tiles = (slice(at, at + step) if expected.ndim else () for at in range(0, rows, step))
    return all(_same_tile(got[tile], expected[tile]) for tile in tiles)


def _same_tile(got: Array, expected: Array) -> bool:
    if got.dtype != expected.dtype:
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    return bool(np.array_equal(got, expected)) and bool(
        np.array_equal(np.signbit(got), np.signbit(expected))
    )


def _distance(got: Array, expected: Array) -> float:
    """Relative distance of a sample of elements: 0 equal, about 1.4 unrelated; at most 2."""
    places = np.arange(0, got.size, max(1, got.size // _SAMPLE))
    a, b = (_elements(x, places).astype(np.float64) for x in (got, expected))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 2.0
    scale = np.sqrt(np.mean(b * b)) or 1.0
    return float(min(np.sqrt(np.mean((a - b) ** 2)) / scale, 2.0))
