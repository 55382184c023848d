"""Finds the tensors that a port keeps in pieces, by every row and column of them.

Layouts are without number; rows and columns of the checkpoint's matrices are all different. Each
has a number that its bits determine, and a parameter all of whose rows, along one of its axes, have
numbers of the checkpoint's is a concatenation, a selection or another order of these. This is
looked into only where something was not found whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import layer_of
from gpt_verify.matching.assembly import Array, Assembly, Form, Ints, Patch, laid, vectors
from gpt_verify.matching.name_hints import block_number, sibling
from gpt_verify.matching.placement import Matching, squeeze
from gpt_verify.numerics.weights import TABLES, DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table

Numbers = NDArray[np.uint64]

#: Elements whose numbers are worked out at once.
_TILE = 1 << 20


def pieced(
    parameters: Sequence[Parameter], matching: Matching, config: Config, weights: DeclaredWeights
) -> list[Assembly]:
    """The tensors that lie in pieces, or in another order; none where each was found whole.

    Args:
        parameters: of the port.
        matching: of these, each taken for one tensor or a part of one.
        config, weights: what they were matched to.
    """
    whole = {p.tensor for p in matching.placements if p.exact and p.part is None}
    parts = Counter(p.tensor for p in matching.placements if p.exact and p.part is not None)
    whole |= {tensor for tensor, n in parts.items() if n == 3}
    table = tensor_table(config)
    wanted = [name for name in table if name not in whole and name not in TABLES]
    settled = {p.parameter for p in matching.placements if p.exact and p.tensor in whole}
    settled |= {p.parameter for p in matching.placements if p.tensor in TABLES}
    sources: dict[object, Parameter] = {}
    for parameter in parameters:
        if parameter.name not in settled and not parameter.padding:
            sources.setdefault(parameter.storage, parameter)
    if not wanted or not sources:
        return []
    search = _Search(list(sources.values()), wanted, weights)
    return search.found(matching)


class _Search:
    def __init__(
        self, sources: Sequence[Parameter], wanted: Sequence[str], weights: DeclaredWeights
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._order = {name: at for at, name in enumerate(self._sources)}
        self._wanted, self._weights = wanted, weights
        self._shapes = {name: squeeze(weights[name]).shape for name in wanted}
        self._by_size: dict[int, list[str]] = {}
        for source in sources:
            self._by_size.setdefault(math.prod(source.shape), []).append(source.name)

    def found(self, matching: Matching) -> list[Assembly]:
        lengths = {n for source in self._sources.values() for n in source.shape}
        index = _Index(self._forms(lengths))
        strange = _Strange(matching)
        readings = [r for source in self._sources.values() if (r := _reading(source, index))]
        readings = strange.without(readings, index)
        made = _complete(readings, index, self._shapes, self._order)
        made += self._like_others(made, matching)
        made += self._biases(made)
        made += self._gains(made)
        used = {patch.source for assembly in made for patch in assembly.patches}
        tensors = {assembly.tensor for assembly in made}
        biases = [n for n in self._wanted if len(self._shapes[n]) == 1 and n not in tensors]
        most = sum(self._shapes[n][0] for n in biases)
        left = [
            source
            for name, source in self._sources.items()
            if name not in used and math.prod(source.shape) <= most
        ]
        index = _Index((n, "elements", vectors(self._value(n), "elements")) for n in biases)
        readings = [r for source in left if (r := _reading(source, index, elements=True))]
        readings = strange.without(readings, index)
        return made + _complete(readings, index, self._shapes, self._order)

    def _value(self, name: str) -> Array:
        return squeeze(self._weights[name])

    def _forms(self, lengths: Iterable[int]) -> Iterator[tuple[str, Form, Array]]:
        """Rows, columns and vectors that are as long as an axis of a parameter."""
        for name, shape in self._shapes.items():
            if set(shape[-2:]) & set(lengths):
                value = self._value(name)
                forms: tuple[Form, ...] = ("rows", "columns") if value.ndim == 2 else ("whole",)
                for form in forms:
                    yield name, form, vectors(value, form)

    def _like_others(self, made: Sequence[Assembly], matching: Matching) -> list[Assembly]:
        """What is wrong in one layer lies as its fellows do in the others, if it was placed nowhere
        or is nearer to the tensor so."""
        done = {assembly.tensor for assembly in made}
        used = {patch.source for assembly in made for patch in assembly.patches}
        moved_from: dict[str, str] = {}
        by_kind: dict[str, Assembly] = {}
        for assembly in made:
            if layer_of(assembly.tensor) is not None:
                by_kind.setdefault(assembly.tensor.partition("/")[2], assembly)
        distance = {p.tensor: p.distance for p in matching.placements if p.part is None}
        blocks = _blocks(matching)
        found: list[Assembly] = []
        for name in (name for name in self._wanted if name not in done):
            like = by_kind.get(name.partition("/")[2])
            block = blocks.get(layer_of(name))
            if like is None or block is None:
                continue
            patches = tuple(replace(p, source=_in_block(p.source, block)) for p in like.patches)
            pairs = list(zip(patches, like.patches, strict=True))
            if not self._fit(like, patches, used) or any(
                moved_from.get(p.source, other.source) != other.source for p, other in pairs
            ):
                continue
            moved = replace(like, tensor=name, patches=patches)
            here, there = _apart(moved.read(self._sources), self._value(name)), distance.get(name)
            # What is unlike the tensor either way lies as its fellows do.
            if there is None or min(here, 1.0) <= min(there, 1.0):
                found.append(moved)
                # What else lies in these lies there beside it.
                moved_from |= {p.source: other.source for p, other in pairs}
        return found

    def _fit(self, like: Assembly, patches: Sequence[Patch], used: set[str]) -> bool:
        for patch, other in zip(patches, like.patches, strict=True):
            if patch.source in used or patch.source not in self._sources:
                return False
            if self._sources[patch.source].shape != self._sources[other.source].shape:
                return False
        return True

    def _biases(self, made: Sequence[Assembly]) -> list[Assembly]:
        """The bias of a matrix that lies in pieces: beside each of them, in the same order. Where
        matrices lie in one parameter, their biases do."""
        used = {patch.source for assembly in made for patch in assembly.patches}
        beside_of: dict[str, str] = {}
        found = []
        for assembly in made:
            name = assembly.tensor.removesuffix("/w") + "/b"
            if assembly.form != "columns" or name not in self._shapes:
                continue
            value, patches = self._value(name), []
            for patch in assembly.patches:
                beside = beside_of.get(patch.source) or self._beside(patch, value, used)
                if beside is None:
                    break
                used.add(beside)
                if not patch.whole:
                    beside_of[patch.source] = beside
                patches.append(replace(patch, source=beside, axis=None))
            else:
                shape = self._shapes[name]
                found.append(Assembly(name, shape, "elements", tuple(patches)))
        return found

    def _gains(self, made: Sequence[Assembly]) -> list[Assembly]:
        """The gain of queries or keys that lie in another order: in the same one, for all heads at
        once or for each."""
        found = []
        taken = {patch.source for assembly in made for patch in assembly.patches}
        for assembly in made:
            name = assembly.tensor.removesuffix("/w") + "_norm/g"
            if assembly.form != "columns" or assembly.straight or name not in self._shapes:
                continue
            value = self._value(name)
            order = np.array(assembly.order[: len(value)])
            if sorted(order) != list(range(len(value))):
                continue
            fitting = [n for n in self._by_size.get(len(value), ()) if n not in taken]
            block = block_number(assembly.patches[0].source)
            for source in sorted(fitting, key=lambda n: block_number(n) != block):
                if np.array_equal(self._sources[source].read().reshape(-1), value[order]):
                    taken.add(source)
                    patch = Patch(source, None, len(value), np.arange(len(value)), order)
                    found.append(Assembly(name, value.shape, "elements", (patch,)))
                    break
        return found

    def _beside(self, patch: Patch, bias: Array, used: set[str]) -> str | None:
        """The parameter with as many elements as the matrix has columns whose name and values, or
        values, or name, say that it belongs to it."""
        fitting = [n for n in self._by_size.get(patch.of, ()) if n not in used]
        alike = [name for name in fitting if sibling(name) == sibling(patch.source)]
        expected = bias[patch.channels]
        for name in (*alike, *fitting):
            if np.array_equal(self._sources[name].read().reshape(-1)[patch.at], expected):
                return name
        return next(iter(alike), None)


@dataclass(frozen=True)
class _Reading:
    """A parameter as vectors of the checkpoint: the place in the index of each."""

    source: str
    axis: int | None
    places: Ints


class _Index:
    """Every vector of some tensors, by its number."""

    def __init__(self, forms: Iterable[tuple[str, Form, Array]]) -> None:
        self.names: list[tuple[str, Form]] = []
        found: list[Numbers] = []
        which: list[Ints] = []
        channel: list[Ints] = []
        for name, form, value in forms:
            which.append(np.full(len(value), len(self.names), np.int64))
            channel.append(np.arange(len(value), dtype=np.int64))
            found.append(numbers(value))
            self.names.append((name, form))
        self.which = np.concatenate(which) if which else np.zeros(0, np.int64)
        self.channel = np.concatenate(channel) if channel else np.zeros(0, np.int64)
        every = np.concatenate(found) if found else np.zeros(0, np.uint64)
        self._order = np.argsort(every, kind="stable")
        self._sorted = every[self._order]
        self.taken = np.zeros(len(every), bool)

    def places(self, wanted: Numbers) -> Ints | None:
        """The place of each of these; None where one is nowhere. Of equal ones, the one that
        follows the last is preferred, then one of a tensor that the others are of, then one that is
        not taken."""
        first = np.searchsorted(self._sorted, wanted, "left")
        last = np.searchsorted(self._sorted, wanted, "right")
        if not len(wanted) or (first == last).any():
            return None
        found = self._order[first]
        doubtful = np.flatnonzero(last - first > 1)
        sure = np.delete(found, doubtful)
        kinds = set(self.which[sure].tolist())
        taken = self.taken
        taken[sure] = True
        for i in doubtful:
            options = self._order[first[i] : last[i]]
            options = options[~taken[options]] if not taken[options].all() else options
            follows = found[i - 1] + 1 if i else -1
            ranked = [(p != follows, int(self.which[p]) not in kinds, int(p)) for p in options]
            found[i] = min(ranked)[2]
            kinds.add(int(self.which[found[i]]))
            taken[found[i]] = True
        return np.asarray(found, np.int64)


class _Strange:
    """Parameters that have a tensor of another layer than that of the block that their name is in.
    Where some layers have the same tensor, that is a mistake and no other name."""

    def __init__(self, matching: Matching) -> None:
        votes: dict[str, Counter[int]] = {}
        for placement in matching.placements:
            layer = layer_of(placement.tensor)
            if placement.exact and layer is not None:
                votes.setdefault(block_number(placement.parameter), Counter())[layer] += 1
        self._layers = {
            block: {layer for layer, n in counted.items() if 2 * n > counted.total()}
            for block, counted in votes.items()
            if block
        }

    def without(self, readings: Sequence[_Reading], index: _Index) -> list[_Reading]:
        """The others; all of them where no tensor is there twice."""
        counts = np.zeros(len(index.which), np.int64)
        for reading in readings:
            np.add.at(counts, reading.places, 1)
        twice = {_kind(index.names[which][0]) for which in set(index.which[counts > 1].tolist())}
        return [r for r in readings if not self._is(r, index, twice)]

    def _is(self, reading: _Reading, index: _Index, twice: set[str]) -> bool:
        tensors = [index.names[which][0] for which in set(index.which[reading.places].tolist())]
        layers = {layer_of(tensor) for tensor in tensors}
        known = self._layers.get(block_number(reading.source))
        stranger = bool(known) and not layers <= (known or set())
        return stranger and bool(twice & {_kind(tensor) for tensor in tensors})


def _kind(tensor: str) -> str:
    return tensor if layer_of(tensor) is None else tensor.partition("/")[2]


def _reading(source: Parameter, index: _Index, elements: bool = False) -> _Reading | None:
    value = source.read()
    if elements:
        places = index.places(numbers(laid(value, None)))
        return None if places is None else _Reading(source.name, None, places)
    for axis in reversed(range(value.ndim)):
        if value.shape[axis] > 1:
            places = index.places(numbers(laid(value, axis)))
            if places is not None:
                return _Reading(source.name, axis, places)
    return None


def _complete(
    readings: Sequence[_Reading],
    index: _Index,
    shapes: Mapping[str, tuple[int, ...]],
    order: Mapping[str, int],
) -> list[Assembly]:
    """The tensors that are all there, each row or column once, in parameters that hold nothing
    else."""
    left = list(readings)
    while True:
        counts = np.zeros(len(index.which), np.int64)
        for reading in left:
            np.add.at(counts, reading.places, 1)
        once = np.bincount(index.which, counts == 1, len(index.names))
        whole = set(np.flatnonzero(once == np.bincount(index.which)).tolist())
        kept = [r for r in left if set(index.which[r.places].tolist()) <= whole]
        if len(kept) == len(left):
            break
        left = kept
    patches: dict[int, list[Patch]] = {}
    for reading in sorted(left, key=lambda r: order[r.source]):
        which = index.which[reading.places]
        for tensor in dict.fromkeys(which.tolist()):
            at = np.flatnonzero(which == tensor)
            channels = index.channel[reading.places[at]]
            patch = Patch(reading.source, reading.axis, len(reading.places), at, channels)
            patches.setdefault(tensor, []).append(patch)
    made = []
    for tensor, of in patches.items():
        name, form = index.names[tensor]
        made.append(Assembly(name, shapes[name], form, tuple(of)))
    return made


def numbers(rows: Array) -> Numbers:
    """One number for each row, which its bits determine: a sum of products with odd numbers, modulo
    2^64."""
    n = rows.shape[1]
    factors = np.random.default_rng(n).integers(0, 2**63, n, dtype=np.uint64) * np.uint64(2)
    factors += np.uint64(1)
    made = np.empty(len(rows), np.uint64)
    step = max(1, _TILE // max(1, n))
    for start in range(0, len(rows), step):
        wide = np.ascontiguousarray(rows[start : start + step], np.float64)
        made[start : start + step] = wide.view(np.uint64) @ factors
    return made


def _apart(got: Array, expected: Array) -> float:
    """Relative RMS distance; what is not finite is far."""
    a, b = got.astype(np.float64), expected.astype(np.float64)
    value = float(np.sqrt(np.mean((a - b) ** 2)) / (np.sqrt(np.mean(b * b)) or 1.0))
    return value if np.isfinite(value) else 2.0


def _blocks(matching: Matching) -> dict[int | None, str]:
    """Layer → the first number in the names of most of the parameters that are its tensors."""
    votes: dict[int | None, Counter[str]] = {}
    for placement in matching.placements:
        if placement.exact and (layer := layer_of(placement.tensor)) is not None:
            votes.setdefault(layer, Counter())[block_number(placement.parameter)] += 1
    return {layer: counted.most_common(1)[0][0] for layer, counted in votes.items()}


def _in_block(name: str, block: str) -> str:
    """The parameter of the same name in another block."""
    return re.sub(r"\d+", block, name, count=1)
