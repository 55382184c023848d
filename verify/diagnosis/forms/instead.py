"""The right operation on something else: another input, another tensor, another part or head.

Fitted is a choice for each part: which of the sites that the port has shown it reads, which tensor
of the same shape it is computed with (of another layer, all zeros, all ones), which part or head of
a matrix or a bias stands in the place of each. Choices are few beside the elements that they must
explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, listed
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.weights import QKV, tensor_table
from gpt_verify.sites import Site, sites

#: Positions on which matrices are tried.
PROBED = 4
#: Pieces of which more than these differ are told by their number alone.
MOST = 3


@dataclass(frozen=True)
class _Values(Mapping[str, Array]):
    """Sites, one of which is another one."""

    sites: Mapping[str, Array]
    name: str
    other: str

    def __getitem__(self, name: str) -> Array:
        return self.sites[self.other if name == self.name else name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def inputs(e: Evidence) -> Iterator[Fitted]:
    """Another site in the place of one of those that it reads."""
    if e.site.is_sum:  # the coefficients of a sum say more
        return
    tried: list[tuple[float, Override, str]] = []
    for other, value in e.shown.items():
        if value.shape == e.got.shape and np.array_equal(value[:1], e.got[:1]):
            tried.append((e.distance(value), _Value(other), f"is {other} over again"))
    for name in dict.fromkeys(e.site.inputs):
        if name not in e.shown:
            continue
        for other, value in e.shown.items():
            if other == name or value.shape != e.shown[name].shape:
                continue
            reading = _Reading(name, other)
            words = f"reads {other} in place of {name}{_as_if(e, name, other)}"
            tried.append((e.distance(reading(e.call)), reading, words))
    if tried:
        _, act, words = min(tried, key=lambda one: one[0])
        yield e.alone(act, words)
        yield from _in_part(e, tried)


def _as_if(e: Evidence, name: str, other: str) -> str:
    """What may have been left out between the two."""
    made, instead = sites(e.config)[name], sites(e.config)[other]
    if made.layer is None or not made.is_sum or made.kind != "resid_post":
        return ""
    before = "embed" if made.layer == 0 else f"h.{made.layer - 1}.resid_post"
    return f", as if block {made.layer} were left out" if instead.name == before else ""


def _in_part(e: Evidence, tried: Sequence[tuple[float, Override, str]]) -> Iterator[Fitted]:
    """Another site at some positions, and the correct one at the others."""
    budget = e.expected.budget
    if e.got.ndim != 2 or budget is None or not np.isfinite(e.got).all():
        return
    right_T = np.sum(((e.got - e.right) / budget) ** 2, axis=-1)
    found: list[tuple[float, Override, str]] = []
    for _, act, words in tried:
        left_T = np.sum(((e.got - act(e.call)) / budget) ** 2, axis=-1)
        at = np.flatnonzero(left_T < right_T)
        if 0 < len(at) < len(right_T):
            left = float(np.minimum(left_T, right_T).sum())
            where = _places(at, len(right_T))
            found.append((left, _At(at, act), f"at {where}, {words}"))
    if found:
        _, act, words = min(found, key=lambda one: one[0])
        yield e.alone(act, words)


def _places(at: NDArray[np.integer], length: int) -> str:
    """Positions: how many, if they are no stretch."""
    if len(at) == length - 1:
        left = (set(range(length)) - set(at.tolist())).pop()
        return "all tokens but the last" if left == length - 1 else f"all positions but {left}"
    if len(at) == 1:
        return f"position {at[0]}"
    if at[-1] - at[0] + 1 == len(at):
        return f"positions {at[0]} … {at[-1]}"
    return f"positions {listed(at)}"


class _At:
    """Another operation at these positions, the correct one at the others."""

    def __init__(self, positions: NDArray[np.integer], act: Override) -> None:
        self._positions, self._act = positions, act

    def __call__(self, call: Call) -> Array:
        made = np.array(right(call))
        made[self._positions] = self._act(call)[self._positions]
        return made


class _Value:
    """Another site."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, call: Call) -> Array:
        return call.values[self._name]


class _Reading:
    """The operation that reads another site."""

    def __init__(self, name: str, other: str) -> None:
        self._name, self._other = name, other

    def __call__(self, call: Call) -> Array:
        return right(replace(call, values=_Values(call.values, self._name, self._other)))


def normed(e: Evidence) -> Iterator[Fitted]:
    """One of the sites that it reads, after a norm that has no place there: that which leaves
    least."""
    width = e.config.n_embd
    norms = [
        site
        for site in sites(e.config).values()
        if site.operation in ("layer_norm", "rms_norm") and not site.heads
    ]
    tried: list[tuple[float, Override, str]] = []
    for name in dict.fromkeys(e.site.inputs):
        if name in e.shown and e.shown[name].ndim == 2 and e.shown[name].shape[-1] == width:
            for norm in norms:
                after = _AfterNorm(name, norm)
                words = f"reads {name} after it has passed {norm.name}"
                tried.append((e.distance(after(e.call)), after, words))
    if tried:
        _, act, words = min(tried, key=lambda one: one[0])
        yield e.alone(act, words)


class _AfterNorm:
    """The operation, one of whose inputs is normed first."""

    def __init__(self, name: str, norm: Site) -> None:
        self._name, self._norm = name, norm

    def __call__(self, call: Call) -> Array:
        x = call.values[self._name]
        made = right(replace(call, site=self._norm, values={self._norm.inputs[0]: x}))
        values = {name: call.values[name] for name in call.site.inputs}
        return right(replace(call, values={**values, self._name: made}))


def tensors(e: Evidence) -> Iterator[Fitted]:
    """Other tensors of the same shape: one exchanged, then each by the best for it."""
    if e.site.looks_up or e.site.is_logits or not e.site.weights or e.got.ndim != 2:
        return
    names = e.site.weights[:2]
    if e.site.operation not in ("linear", "layer_norm", "rms_norm"):
        return
    table = tensor_table(e.config)
    choices = [
        [name, *(n for n, spec in table.items() if spec.shape == table[name].shape and n != name)]
        for name in names
    ]
    made = _Made(e)
    best = made.best(choices, names)
    if best == tuple(names):
        return
    pairs = [(name, other) for name, other in zip(names, best, strict=True) if name != other]
    words = "; ".join(f"{other} in place of {name}" for name, other in pairs)
    values = {name: made.value(other, e.call.w(name)) for name, other in pairs}
    yield e.alone(e.with_tensors(values), f"computed with {words}")


#: Stand for tensors that are none of the checkpoint's.
ZEROS, ONES = "zeros", "ones"


class _Made:
    """What the operation makes with a tensor in the place of another."""

    def __init__(self, e: Evidence) -> None:
        self._e = e
        few = e.site.operation == "linear"
        self._x = e.call.x[:PROBED] if few else e.call.x
        self._got = e.got[:PROBED] if few else e.got
        if not few:
            # The norm without its gain and bias.
            name, *bias = e.site.weights
            one = {name: np.ones_like(e.call.w(name))} | {
                b: np.zeros_like(e.call.w(b)) for b in bias
            }
            self._x = e.with_tensors(one)(e.call)

    def value(self, name: str, like: Array) -> Array:
        if name == ZEROS:
            return np.zeros_like(like)
        if name == ONES:
            return np.ones_like(like)
        return self._e.call.w(name)

    def best(self, choices: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[str, ...]:
        linear = self._e.site.operation == "linear"
        first = self._e.call.w(names[0])
        biases = []
        if len(names) > 1:
            like = self._e.call.w(names[1])
            biases = [(b, self.value(b, like)) for b in (*choices[1], ZEROS)]
        best, least = tuple(names), np.inf
        for w in choices[0] if linear else (*choices[0], ONES):
            value = self.value(w, first)
            rest = self._got - (self._x @ value if linear else self._x * value)
            if not biases:
                left = float(np.sum(rest * rest))
                if left < least:
                    best, least = (w,), left
                continue
            for name, bias in biases:
                left = float(np.sum((rest - bias) ** 2))
                if left < least:
                    best, least = (w, name), left
        return best


def parts(e: Evidence) -> Iterator[Fitted]:
    """Queries, keys and values, then heads: a piece of a matrix or bias in another's place."""
    if e.site.operation != "linear" or not np.isfinite(e.got).all():
        return
    width, config = e.site.width, e.config
    layouts: list[list[str]] = []
    if config.keys.fused and width == len(QKV) * config.n_embd:
        layouts.append(list(QKV))
        if config.n_embd % config.n_head == 0:
            layouts.append([f"head {h} of {part}" for part in QKV for h in range(config.n_head)])
    elif e.site.heads:
        layouts.append([f"head {h}" for h in range(e.site.heads)])
    elif width % config.n_head == 0:
        layouts.append([f"block {h}" for h in range(config.n_head)])
    for names in layouts:
        if (fitted := _pieces(e, names)) is not None:
            yield fitted


def _pieces(e: Evidence, names: Sequence[str]) -> Fitted | None:
    n, x = len(names), e.call.x
    w_name, *b_names = e.site.weights
    w_io = e.call.w(w_name)
    b_o = e.call.w(b_names[0]) if b_names else np.zeros(w_io.shape[-1])
    pieces = _split(x @ w_io, n)  # [n, T, size]
    bias = _split(b_o[None], n)  # [n, 1, size]
    got = _split(e.got, n)
    zero = np.zeros_like(pieces[:1])
    pieces, bias = np.concatenate([pieces, zero]), np.concatenate([bias, zero[:, :1]])
    w_from, b_from = [], []
    for i in range(n):
        rest = got[i] - pieces  # [n + 1, T, size]: less each product
        # ‖rest - b‖² of each product and each bias.
        of_rest = np.sum(rest * rest, axis=(1, 2))[:, None]
        of_bias = rest.shape[1] * np.sum(bias * bias, axis=(1, 2))[None]
        left = of_rest + of_bias - 2 * np.einsum("ps,bs->pb", rest.sum(axis=1), bias[:, 0])
        # What is in its own place is taken for granted where it does as well.
        left[i] *= 1 - 1e-9
        left[:, i] *= 1 - 1e-9
        w, b = np.unravel_index(np.argmin(left), left.shape)
        w_from.append(int(w))
        b_from.append(int(b) if b_names else i)
    words = _pieces_words(names, w_from, b_from)
    if not words:
        return None
    w_pieces = np.concatenate([_split(w_io, n), np.zeros_like(_split(w_io, n)[:1])])
    tensors = {w_name: np.concatenate([w_pieces[i] for i in w_from], axis=-1)}
    if b_names:
        tensors[b_names[0]] = np.concatenate([bias[i, 0] for i in b_from])
    return e.alone(e.with_tensors(tensors), words)


def _split(x: Array, n: int) -> Array:
    return np.stack(np.split(x, n, axis=-1))


def _pieces_words(names: Sequence[str], w_from: Sequence[int], b_from: Sequence[int]) -> str:
    """What stands in another's place."""
    whole = [*names, "nothing"]
    found = []
    for i, (w, b) in enumerate(zip(w_from, b_from, strict=True)):
        if w == b != i:
            found.append(f"{names[i]} is {whole[w]}")
            continue
        if w != i:
            found.append(f"the weights of {names[i]} are those of {whole[w]}")
        if b != i:
            that = "nothing" if b == len(names) else f"that of {whole[b]}"
            found.append(f"the bias of {names[i]} is {that}")
    more = f", and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more


def _few(words: Sequence[str]) -> str:
    more = f", and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more


NORMED = Form("norm-added", "norms a value that has no norm there", normed)
INPUTS = Form("input-elsewhere", "reads something else than it should", inputs)
TENSORS = Form("tensor-elsewhere", "computes with another tensor", tensors)
PARTS = Form("part-equal", "has one part, head or bias in the place of another", parts)
