"""Rewritings of the weights that leave the function of a GPT-2 as it is.

None of them may round, or what is compared afterwards would be two functions. So each first brings
the weights to numbers that it moves exactly in the port's format (``base``: a few bits less, which
is another GPT-2, but as good a one), and then moves those (``moved``).

All layers are rewritten alike, so that two layers whose tensors are equal need not be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.directions import Direction
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

Array = NDArray[Any]
#: Acts on the last axis of an array.
Act = Callable[[Array], Array]

#: Of a queries' channel, and one over it for the keys': exact in any format that has two bits to
#: spare. Three moves every bit of the significand, and two none.
FACTORS = (3.0, 2.0, 1 / 2.0, 1 / 3.0)
#: Elements that are rewritten at a time.
TILE = 1 << 16
#: The bits of a float64's significand, and of its exponent.
_SIGNIFICAND, _EXPONENT = (1 << 52) - 1, 0x7FF << 52
#: Channels that a rotation mixes: a reflection with entries ± 1/2 needs four.
MIXED = 4


def same(x: Array) -> Array:
    return x


def _tiled(act: Act, x: Array) -> Array:
    """What ``act`` makes of a matrix, a few rows at a time, so that what it needs on the way stays
    in the processor's cache."""
    step = max(1, TILE // max(1, x.shape[-1]))
    if act is same or x.ndim < 2 or len(x) <= step:
        return act(x)
    tiles = [slice(i, i + step) for i in range(0, len(x), step)]
    first = act(x[tiles[0]])
    made = np.empty(x.shape, first.dtype)
    made[tiles[0]] = first
    for rows in tiles[1:]:
        made[rows] = act(x[rows])
    return made


@dataclass(frozen=True)
class Step:
    """How one kind of tensor is rewritten.

    Attributes:
        base: brings it to numbers that can be moved exactly.
        moved: moves those.
        rows: both act on the first axis, and not on the last.
        linear: what ``moved`` does to a direction, where it is more than an added constant.
        along: what is done to a direction where ``moved`` adds a constant and does more than that.
    """

    base: Act
    moved: Act
    rows: bool = False
    linear: bool = True
    along: Act | None = None

    @property
    def turns(self) -> Act | None:
        """What is done to a direction; None where nothing is."""
        return self.along or (self.moved if self.linear else None)

    def based(self, value: Array) -> Array:
        return self.base(value.T).T if self.rows else _tiled(self.base, value)

    def after(self, value: Array) -> Array:
        return self.moved(value.T).T if self.rows else _tiled(self.moved, value)


@dataclass(frozen=True)
class Symmetry:
    """One rewriting.

    Attributes:
        name: ``heads``.
        done: what was done, in words that go on with a comma.
        wrong: what it means if the output changes.
        seen: what goes before the places at which it does.
        steps: by kind of tensor, the checkpoint's name without its layer.
    """

    name: str
    done: str
    wrong: str
    steps: dict[str, Step]
    seen: str = " in"

    def direction(self, d: Direction) -> Direction:
        """The direction in which the same tensor moves after the rewriting."""
        step = self.steps.get(kind_of(d.tensor))
        if step is None or (turns := step.turns) is None:
            return d
        if not step.rows:
            return replace(d, right=turns(d.right))
        assert d.left is not None, "rows are those of a matrix"
        return replace(d, left=turns(d.left))


def kind_of(tensor: str) -> str:
    """The checkpoint's name without its layer: ``attn/c_attn/w``."""
    scope, _, rest = tensor.partition("/")
    return rest if scope.startswith("h") else tensor


def together(symmetries: Sequence[Symmetry]) -> Symmetry:
    """All of them at once, one after the other. No two bring the same numbers to another grid, so
    that all are exact still."""
    steps: dict[str, Step] = {}
    for symmetry in symmetries:
        for kind, step in symmetry.steps.items():
            steps[kind] = _then(steps[kind], step) if kind in steps else step
    return Symmetry("+".join(s.name for s in symmetries), "all of that was done at once", "", steps)


def _then(first: Step, second: Step) -> Step:
    return Step(
        base=lambda x: second.base(first.base(x)),
        moved=lambda x: second.moved(first.moved(x)),
        rows=first.rows,
        linear=first.linear and second.linear,
        along=None if first.along is second.along is None else _along(first, second),
    )


def _along(first: Step, second: Step) -> Act:
    one, other = first.turns or same, second.turns or same
    return lambda x: other(one(x))


def heads(config: Config, rng: np.random.Generator) -> Symmetry:
    """Another order of the heads, in which none keeps its place where there are two or more."""
    order = derangement(config.n_head, rng)
    channels = np.arange(config.n_embd).reshape(config.n_head, -1)[order].ravel()
    three = np.concatenate([channels + part * config.n_embd for part in range(3)])
    return Symmetry(
        "heads",
        "the heads of every layer were put into another order",
        "heads are not treated alike",
        {
            "attn/c_attn/w": Step(same, lambda x: x[..., three]),
            "attn/c_attn/b": Step(same, lambda x: x[..., three]),
            "attn/c_proj/w": Step(same, lambda x: x[..., channels], rows=True),
        },
    )


def neurons(config: Config, rng: np.random.Generator) -> Symmetry:
    """Another order of the MLP's neurons."""
    order = derangement(4 * config.n_embd, rng)
    return Symmetry(
        "neurons",
        "the neurons of every MLP were put into another order",
        "neurons are not treated alike",
        {
            "mlp/c_fc/w": Step(same, lambda x: x[..., order]),
            "mlp/c_fc/b": Step(same, lambda x: x[..., order]),
            "mlp/c_proj/w": Step(same, lambda x: x[..., order], rows=True),
        },
    )


def scale(config: Config, precision: Precision, rng: np.random.Generator) -> Symmetry:
    """Each channel of the queries times a factor, the same channel of the keys divided by it."""
    d = config.n_embd
    drawn_D, sign_D = rng.choice(FACTORS, d), rng.choice([-1.0, 1.0], d)
    # What is divided by 3 and what is multiplied by it: a number of few bits, and 3 times that.
    integers = np.concatenate([np.round(np.maximum(drawn_D, 1 / drawn_D))] * 2)
    enlarged = np.concatenate([drawn_D > 1, drawn_D < 1])
    sign = np.tile(sign_D, 2)

    def base(x: Array) -> Array:
        y = x.astype(np.float64)
        qk = y[..., : 2 * d]
        small = coarser(np.where(enlarged, qk, qk / integers), precision)
        y[..., : 2 * d] = np.where(enlarged, small, small * integers)
        return y

    def moved(x: Array) -> Array:
        y = x.astype(np.float64)
        qk = y[..., : 2 * d]
        y[..., : 2 * d] = sign * np.where(enlarged, qk * integers, qk / integers)
        return y

    return Symmetry(
        "scale",
        "the queries were multiplied, channel by channel, by what the keys were divided by",
        "queries and keys do not enter by their products alone",
        {kind: Step(base, moved) for kind in ("attn/c_attn/w", "attn/c_attn/b")},
    )


def rotate(config: Config, precision: Precision, rng: np.random.Generator) -> Symmetry:
    """Values are reflected within each head, four channels at a time, and c_proj takes it back."""
    d, size = config.n_embd, config.head_size
    order = rng.permutation(size)
    fours = size // MIXED * MIXED
    quads, rest = order[:fours].reshape(-1, MIXED), order[fours:]
    sign = rng.choice([-1.0, 1.0], quads.shape)

    def base(x: Array) -> Array:
        y = x.astype(np.float64).reshape(*x.shape[:-1], config.n_head, size)
        y[..., quads] = common_grid(y[..., quads], precision)
        return y.reshape(x.shape)

    def moved(x: Array) -> Array:
        y = x.astype(np.float64).reshape(*x.shape[:-1], config.n_head, size)
        # 1 - 2 w wᵀ with w = ± 1/2 in four channels.
        mixed = sign * y[..., quads]
        y[..., quads] = sign * (mixed - mixed.sum(axis=-1, keepdims=True) / 2)
        y[..., rest] *= -1
        return y.reshape(x.shape)

    def of_values(act: Act) -> Act:
        def apply(x: Array) -> Array:
            y = x.astype(np.float64)
            y[..., 2 * d :] = act(y[..., 2 * d :])
            return y

        return apply

    how = "rotated" if fours else "mirrored"
    values = Step(of_values(base), of_values(moved))
    return Symmetry(
        "rotate",
        f"the values were {how} within every head, and the rows of attn/c_proj with them",
        "between values and c_proj something is not linear, or not the same for all channels",
        {
            "attn/c_attn/w": values,
            "attn/c_attn/b": values,
            "attn/c_proj/w": Step(base, moved, rows=True),
        },
    )


def written(config: Config) -> tuple[str, ...]:
    """What GPT-2 and GPT write into the residual stream, with constants of their own."""
    embedded = ("wpe",) if normed(config, "embed") else ()
    return (*embedded, "attn/c_proj/b", "mlp/c_proj/b")


def shift(
    weights: DeclaredWeights,
    precision: Precision,
    written: Sequence[str],
    tables: Sequence[str] = ("wte", "wpe"),
) -> Symmetry:
    """A constant for all channels in everything that is written into the residual stream, of the
    size of what is embedded; layer norms take it away. Not in the embeddings where the first block
    reads them as they are.

    Args:
        weights: of the checkpoint.
        precision: the port's.
        written: the tensors that it is added to.
        tables: what is embedded.
    """
    squares = sum(float(np.mean(weights[name].astype(np.float64) ** 2)) for name in tables)
    constant = float(2.0 ** np.round(np.log2(squares) / 2)) if squares > 0 else 1.0

    def added(sign: float) -> Step:
        def base(x: Array) -> Array:
            # What is so much larger that the constant is lost beside it is cut off.
            y = np.clip(
                x.astype(np.float64), -constant / (4 * precision.u), constant / (4 * precision.u)
            )
            return on_grid(y, np.abs(y) + constant, precision)

        return Step(base, lambda x: x.astype(np.float64) + sign * constant, linear=False)

    return Symmetry(
        "shift",
        "a constant was added to everything that is written into the residual stream",
        "something reads the mean of the residual stream, which layer norm takes away",
        # In turns, so that it does not grow with the depth.
        {name: added(-1 if name.startswith("mlp") else 1) for name in written},
        seen="; it shows when the constant is added in",
    )


def normed(config: Config, name: str) -> bool:
    """Whether nothing but layer norms reads a site, itself or as part of a sum."""
    read_by = [site for site in sites(config).values() if name in site.inputs]
    return all(
        made_by(site).normalises or (made_by(site).adds and normed(config, site.name))
        for site in read_by
    )


def derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """An order in which nothing keeps its place (one thing does)."""
    order = np.empty(n, np.int64)
    cycle = rng.permutation(n)
    order[cycle] = np.roll(cycle, 1)
    return order


def coarser(x: Array, precision: Precision) -> Array:
    """With two bits less than the format has, so that three times it fits."""
    return on_grid(x, 4 * np.abs(x), precision)


def common_grid(x: Array, precision: Precision) -> Array:
    """On a grid that also holds half of every sum of ± the last axis."""
    return on_grid(x, 2 * np.abs(x).sum(axis=-1, keepdims=True), precision)


def on_grid(x: Array, bound: Array, precision: Precision) -> Array:
    """Rounded to multiples of the spacing of the format's numbers just below ``bound``, rounded up
    to a power of two; nothing is left between zero and the smallest number that can be halved."""
    with np.errstate(invalid="ignore", over="ignore"):
        # 2 u times a power of two is the spacing below twice that power.
        spacing = _power_above(bound)
        spacing *= precision.u
        np.maximum(spacing, 4 * precision.tiny, out=spacing)
        y = x / spacing
        np.round(y, out=y)
        y *= spacing
        return y


def _power_above(bound: Array) -> Array:
    """The smallest power of two that is no less, of numbers ≥ 0: zero of zero, infinity where
    float64 has none. Read off the bits: where any of the significand is set, the exponent grows."""
    bits = np.array(bound, np.float64, order="C").view(np.uint64)
    bits += np.uint64(_SIGNIFICAND)
    bits &= np.uint64(_EXPONENT)
    return bits.view(np.float64)
