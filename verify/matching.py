"""Which parameter of a port is which tensor of the checkpoint.

By content first: a parameter that equals a tensor bit for bit (as it is, transposed, or one of the
three parts of ``c_attn``) is that tensor, whatever it is called. What is left over is paired by
shape, nearness and name, so that a *wrong* weight is reported as a difference in the tensor that
it should have been, and is never passed over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.weights import tensor_table
from verify.numerics.weights import DeclaredWeights
from verify.ports.port import Parameter

Array = NDArray[np.floating]

#: Names of the parts of c_attn, in the order in which they lie side by side.
PARTS = ("q", "k", "v")
_SAMPLE = 4096
#: More than the relative distance of any two samples, less what a name is worth.
_FARTHEST = 4.0
#: Between two layouts of a square matrix that fits neither, the one of the other matrices.
_OTHER_LAYOUT = 0.5


@dataclass(frozen=True)
class Placement:
    """One parameter of a port and the tensor that it is.

    Attributes:
        parameter: the port's name.
        tensor: the checkpoint's name.
        transposed: the port keeps ``[out, in]``.
        part: 0, 1 or 2 where the parameter is the query, key or value part of ``c_attn`` alone.
        exact: equal bit for bit.
        head: a second matrix for ``wte``: an output head of its own.
    """

    parameter: str
    tensor: str
    transposed: bool = False
    part: int | None = None
    exact: bool = True
    head: bool = False

    def expected(self, weights: DeclaredWeights) -> Array:
        """The tensor in the port's layout (without axes of length 1)."""
        value = weights[self.tensor]
        if self.part is not None:
            value = np.split(value, 3, axis=-1)[self.part]
        return value.T if self.transposed else value

    def __str__(self) -> str:
        part = "" if self.part is None else f" ({PARTS[self.part]})"
        layout = ", transposed" if self.transposed else ""
        note = "" if self.exact else ", by shape and name: the values differ"
        return f"{self.tensor}{part}{layout}{note}"


@dataclass(frozen=True)
class Matching:
    """The result: where each parameter went, and what was left on either side."""

    placements: tuple[Placement, ...]
    surplus: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A tensor, or a part of one, in one orientation."""

    tensor: str
    part: int | None
    transposed: bool
    shape: tuple[int, ...]

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
        scope, slash, _ = self.tensor.partition("/")
        return int(scope[1:]) if slash and scope != "ln_f" else None


def match(parameters: Sequence[Parameter], config: Config, weights: DeclaredWeights) -> Matching:
    """Pair the parameters of a port with the tensors of the checkpoint.

    Parameters that share memory are one parameter and are placed once. Tensors are read one at a
    time; a parameter is read once.
    """
    candidates = list(_candidates(config))
    prints = {c: _fingerprint(_view(weights, c)) for c in candidates}
    open_slots = {c.slot for c in candidates}
    placed: list[Placement] = []
    left: list[Parameter] = []
    own_heads: set[str] = set()

    exact: dict[str, list[_Candidate]] = {}
    for parameter in _distinct(parameters):
        value = _squeeze(parameter.read())
        if parameter.implies is not None:
            c = next((c for c in candidates if c.slot == (parameter.implies, None)), None)
            if c is not None and c.shape == value.shape:
                same = _same_bits(value, _view(weights, c))
                placed.append(Placement(parameter.name, c.tensor, exact=same))
                _close(open_slots, c)
                continue
        left.append(parameter)
        exact[parameter.name] = [
            c
            for c in candidates
            if c.shape == value.shape
            and np.array_equal(prints[c], _fingerprint(value))
            and _same_bits(value, _view(weights, c))
        ]
    layer_of = _layers_of_blocks(exact)
    taken = _take(_without_strangers(exact, layer_of), open_slots)
    placed += taken
    upright = Counter(p.transposed for p in taken if weights[p.tensor].ndim > 1).most_common(1)
    usual = upright[0][0] if upright else False
    left = [p for p in left if p.name not in {placement.parameter for placement in taken}]

    # Nearest first, so that a slightly wrong tensor is claimed before a quite different one.
    pairs = []
    for parameter in left:
        value = _squeeze(parameter.read())
        for c in candidates:
            head = c.slot not in open_slots
            if c.shape != value.shape or (head and c.tensor != "wte"):
                continue
            distance = _distance(value, _view(weights, c))
            distance += _FARTHEST * _strange(parameter.name, c, layer_of)
            if value.ndim > 1:
                distance += _OTHER_LAYOUT * (c.transposed != usual)
            pairs.append((distance - _name_score(parameter.name, c), head, parameter.name, c))
    pairs.sort(key=lambda pair: pair[:3])
    done: set[str] = set()
    for _, head, name, c in pairs:
        if name in done or ((c.slot not in open_slots) != head) or (head and own_heads):
            continue
        placed.append(Placement(name, c.tensor, c.transposed, c.part, False, head))
        done.add(name)
        if head:
            own_heads.add(name)
        _close(open_slots, c)

    surplus = tuple(p.name for p in left if p.name not in done)
    whole = {slot for slot in open_slots if slot[1] is None}
    missing = [tensor for tensor, _ in sorted(whole)]
    # A c_attn of which only some parts were placed is missing the others.
    missing += [
        f"{tensor} ({PARTS[part]})"
        for tensor, part in sorted(s for s in open_slots if s[1] is not None)
        if (tensor, None) not in whole and part is not None
    ]
    return Matching(tuple(placed), surplus, tuple(missing))


def _take(
    exact: Mapping[str, Sequence[_Candidate]], open_slots: set[tuple[str, int | None]]
) -> list[Placement]:
    """Give each tensor to the parameter that equals it, of several to the one with the best name.

    A second wte is a head: what is left when every slot is filled.
    """
    ranked = [(name, c) for name, fitting in exact.items() for c in fitting]
    ranked.sort(key=lambda pair: -_name_score(*pair))
    taken: dict[str, Placement] = {}
    for is_head in (False, True):
        for name, c in ranked:
            if name in taken or (c.slot not in open_slots) != is_head:
                continue
            if not is_head or c.tensor == "wte":
                taken[name] = Placement(name, c.tensor, c.transposed, c.part, True, is_head)
                _close(open_slots, c)
    return [taken[name] for name in exact if name in taken]


def _layers_of_blocks(exact: Mapping[str, Sequence[_Candidate]]) -> dict[str, int]:
    """First number in a name → the layer that most of the parameters with that number are of."""
    votes: dict[str, Counter[int]] = {}
    for name, fitting in exact.items():
        layers = {c.layer for c in fitting}
        if len(layers) == 1 and (layer := layers.pop()) is not None:
            votes.setdefault(_block(name), Counter())[layer] += 1
    found = {}
    for block, counted in votes.items():
        layer, most = counted.most_common(1)[0]
        if block and 2 * most > counted.total():
            found[block] = layer
    return found


def _without_strangers(
    exact: Mapping[str, Sequence[_Candidate]], layer_of: Mapping[str, int]
) -> dict[str, list[_Candidate]]:
    """Where some layers have the same tensor, one of another layer was not renamed: it is wrong.

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
    return c.layer not in (None, layer_of.get(_block(name), c.layer))


def _block(name: str) -> str:
    """The first number in a name; empty where there is none."""
    return next(iter(re.findall(r"\d+", name)), "")


def _candidates(config: Config) -> Iterator[_Candidate]:
    for spec in tensor_table(config).values():
        views: list[tuple[int | None, tuple[int, ...]]] = [(None, spec.shape)]
        if "/c_attn/" in spec.name:
            third = (*spec.shape[:-1], spec.shape[-1] // 3)
            views += [(part, third) for part in range(3)]
        for part, shape in views:
            squeezed = tuple(n for n in shape if n != 1)
            yield _Candidate(spec.name, part, False, squeezed)
            if len(squeezed) == 2:
                yield _Candidate(spec.name, part, True, squeezed[::-1])


def _close(open_slots: set[tuple[str, int | None]], c: _Candidate) -> None:
    """A whole tensor uses up its parts, and a part uses up the whole."""
    open_slots.discard(c.slot)
    others = [(c.tensor, part) for part in range(3)] if c.part is None else [(c.tensor, None)]
    open_slots.difference_update(others)


def _distinct(parameters: Sequence[Parameter]) -> Iterator[Parameter]:
    seen = set()
    for parameter in parameters:
        if parameter.storage not in seen:
            seen.add(parameter.storage)
            yield parameter


def _view(weights: DeclaredWeights, c: _Candidate) -> Array:
    value = Placement("", c.tensor, c.transposed, c.part).expected(weights)
    return _squeeze(value)


def _squeeze(value: Array) -> Array:
    """Axes of length 1 carry nothing: OpenAI's [1, in, out] is [in, out]."""
    return value.reshape([n for n in value.shape if n != 1])


def _fingerprint(value: Array) -> Array:
    """A few elements that differ between any two tensors that are not made to be alike."""
    flat_corners = [value[index] for index in _corners(value.shape)]
    return np.asarray(flat_corners, np.float64)


def _corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(shape) == 2:
        rows, columns = (0, shape[0] // 2, -1), (0, shape[1] // 2, -1)
        return [(i, j) for i in rows for j in columns]
    return [(i,) for i in (0, shape[0] // 2, -1)] if shape else [()]


def _same_bits(got: Array, expected: Array) -> bool:
    """Equal bit for bit, after exact widening: minus zero is not zero, NaN equals nothing."""
    if got.dtype != expected.dtype:
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    return bool(np.array_equal(got, expected)) and bool(
        np.array_equal(np.signbit(got), np.signbit(expected))
    )


def _distance(got: Array, expected: Array) -> float:
    """Relative distance of a sample of elements: 0 equal, about 1.4 unrelated; at most 2."""
    step = max(1, got.size // _SAMPLE)
    a, b = (x.reshape(-1)[::step].astype(np.float64) for x in (got, np.ascontiguousarray(expected)))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 2.0
    scale = np.sqrt(np.mean(b * b)) or 1.0
    return float(min(np.sqrt(np.mean((a - b) ** 2)) / scale, 2.0))


_HINTS = {
    "wte": r"wte|tok|embed_tokens|word|lm_head|unembed|head\b",
    "wpe": r"wpe|pos",
    "ln_1": r"ln_?1|norm_?1|input_layernorm|attn_norm|ln_attn",
    "ln_2": r"ln_?2|norm_?2|post_attention|mlp_norm|ffn_norm|ln_mlp",
    "ln_f": r"ln_?f|final|norm\b|last",
    "attn/c_attn": r"c_attn|qkv|in_proj|query|key|value|\b[wb]_?[qkv]\b|[qkv]_(proj|lin)",
    "attn/c_proj": r"att\w*\.(c_)?(proj|out|dense|o)|o_proj|out_proj|\b[wb]_?o\b",
    "mlp/c_fc": r"c_fc|fc_?1|fc_in|up|w_?in\b|intermediate",
    "mlp/c_proj": r"(mlp|ff\w*)\.(c_)?proj|fc_?2|fc_out|down|w_?out\b",
}
_PART_HINTS = (r"\bq|query|_q\b|wq|bq", r"\bk|key|_k\b|wk|bk", r"\bv|value|_v\b|wv|bv")


def _name_score(name: str, c: _Candidate) -> float:
    """How well a port's name suits a tensor, 0 to 1; decides only between equal contents."""
    layer = re.match(r"h(\d+)/", c.tensor)
    numbers = re.findall(r"\d+", name)
    score = 0.5 if layer and layer[1] in numbers[:1] else 0.0
    lowered = name.lower().replace("/", ".")
    kind = re.sub(r"^h\d+/|/[wbg]$", "", c.tensor)
    score += 0.3 if re.search(_HINTS.get(kind, r"$^"), lowered) else 0.0
    if c.part is not None:
        score += 0.15 if re.search(_PART_HINTS[c.part], lowered) else 0.0
    is_bias = bool(re.search(r"bias|\bb[a-z_]{0,3}\b|_b\b", lowered))
    return score + (0.05 if is_bias == c.tensor.endswith("/b") else 0.0)
