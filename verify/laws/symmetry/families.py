"""The same rewritings for models of the families: queries, keys and values are three matrices.

Heads that share keys and values stay together. Channels that are turned together are multiplied
alike, so that the turn and the factor may be exchanged. Where queries and keys are normed, a factor
of their matrices is taken away again, and goes into the gains instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.laws.symmetry.transforms import (
    FACTORS,
    MIXED,
    Array,
    Step,
    Symmetry,
    coarser,
    common_grid,
    derangement,
    normed,
    on_grid,
    same,
    shift,
)
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.reference.positions import pairs

Ints = NDArray[np.int64]


def family_symmetries(
    config: Config,
    weights: DeclaredWeights,
    precision: Precision,
    rng: dict[str, np.random.Generator],
) -> dict[str, Symmetry | str]:
    """By name; in the place of one that such a model does not have, why.

    Args:
        config: sizes and architecture.
        weights: of the checkpoint.
        precision: the port's.
        rng: name → what chooses.
    """
    return {
        "scale": _scale(config, precision, rng["scale"]),
        "rotate": _rotate(config, precision, rng["rotate"]),
        "heads": _heads(config, rng["heads"]),
        "neurons": _neurons(config, rng["neurons"]),
        "shift": _shift(config, weights, precision),
    }


def _reordered(order: Ints, rows: bool = False) -> Step:
    return Step(same, lambda x: x[..., order], rows=rows)


def _channels(order: Ints, size: int) -> Ints:
    """Channels of heads in this order."""
    found: Ints = (order[:, None] * size + np.arange(size)).ravel()
    return found


def _heads(config: Config, rng: np.random.Generator) -> Symmetry | str:
    """Another order of the groups, and of the heads within each."""
    h, g, keys = config.n_head, config.n_kv, config.keys
    if keys.alibi:
        return "each head has a slope of its own"
    if h == 1:
        return "one head has no other order"
    groups = derangement(g, rng)
    # One group keeps its place; its heads do not.
    within = [derangement(h // g, rng) if g == 1 else rng.permutation(h // g) for _ in range(g)]
    order = np.concatenate([groups[i] * (h // g) + within[i] for i in range(g)])
    queries, shared = (_channels(x, config.head_size) for x in (order, groups))
    steps = {"attn/o/w": _reordered(queries, rows=True), "attn/sinks": _reordered(order)}
    for part, channels in (("q", queries), ("k", shared), ("v", shared)):
        steps |= {f"attn/{part}/{leaf}": _reordered(channels) for leaf in "wb"}
        if keys.qk_norm == "all" and part != "v":
            steps[f"attn/{part}_norm/g"] = _reordered(channels)
    return Symmetry(
        "heads",
        "the heads of every layer were put into another order, with the keys that they share",
        "heads are not treated alike",
        steps,
    )


def _neurons(config: Config, rng: np.random.Generator) -> Symmetry:
    """Another order of the channels between the products of an MLP, or of each expert."""
    step, count = derangement(config.n_inner, rng), config.keys.experts
    scopes = [f"experts/{e}/" for e in range(count.count)] if count is not None else [""]
    first = ("gate", "up") if config.keys.gated else ("c_fc",)
    last = "down" if config.keys.gated else "c_proj"
    steps = {f"mlp/{scope}{last}/w": _reordered(step, rows=True) for scope in scopes}
    for part in first:
        steps |= {f"mlp/{scope}{part}/{at}": _reordered(step) for scope in scopes for at in "wb"}
    return Symmetry(
        "neurons",
        "the neurons of every MLP were put into another order",
        "neurons are not treated alike",
        steps,
    )


def _scale(config: Config, precision: Precision, rng: np.random.Generator) -> Symmetry | str:
    """Each channel of the queries times a factor, what meets it in the keys divided by it."""
    if config.n_ctx == 1:
        return "one position attends to itself, whatever its query and key"
    label_K = _together(config)
    if label_K is None:
        return "channels are turned in other pairs from one layer to the next"
    keys, g, times = config.keys, config.n_kv, config.n_head // config.n_kv
    rows = 1 if keys.qk_norm == "head" else g
    drawn_GK = rng.choice(FACTORS, (rows, len(label_K)))[:, label_K]
    sign_GK = rng.choice([-1.0, 1.0], drawn_GK.shape)[:, label_K]
    steps: dict[str, Step] = {}
    offset = float(keys.norm.plus_one and keys.qk_norm is not None)
    for part, factor_GK in (("q", drawn_GK), ("k", 1 / drawn_GK)):
        repeated = times if part == "q" and rows == g and keys.qk_norm != "head" else 1
        factor, sign = (x.repeat(repeated, axis=0).ravel() for x in (factor_GK, sign_GK))
        step = _multiplied(factor, sign, precision, offset)
        names = [f"attn/{part}_norm/g"] if keys.qk_norm else [f"attn/{part}/{x}" for x in "wb"]
        steps |= dict.fromkeys(names, step)
    return Symmetry(
        "scale",
        "the queries were multiplied, channel by channel, by what the keys were divided by",
        "queries and keys do not enter by their products alone",
        steps,
    )


def _together(config: Config) -> Ints | None:
    """A number for each channel of a head, equal for the two of a pair; None where layers
    differ."""
    found: list[Ints] = []
    for layer in range(config.n_layer):
        if (rope := config.rope(layer)) is not None:
            label_K = np.arange(config.head_size)
            a, b = pairs(rope)
            label_K[b] = label_K[a]
            found.append(label_K)
    if any(not np.array_equal(found[0], other) for other in found):
        return None
    return found[0] if found else np.arange(config.head_size)


def _multiplied(factor: Array, sign: Array, precision: Precision, offset: float) -> Step:
    """Times a factor, one over an integer or an integer; ``offset`` is what the model adds to what
    is stored before it multiplies with it."""
    integers, enlarged = np.round(np.maximum(factor, 1 / factor)), factor > 1

    def base(x: Array) -> Array:
        y = x.astype(np.float64) + offset
        small = np.where(enlarged, y, y / integers)
        if offset:
            # A grid that holds three times each of them, and that less one.
            small = on_grid(small, 4 * np.abs(small).max(initial=0.0) + 2, precision)
        else:
            small = coarser(small, precision)
        return np.asarray(np.where(enlarged, small, small * integers) - offset)

    def moved(x: Array) -> Array:
        y = x.astype(np.float64) + offset
        scaled = sign * np.where(enlarged, y * integers, y / integers)
        return np.asarray(scaled - offset)

    def along(x: Array) -> Array:
        return np.asarray(sign * np.where(enlarged, x * integers, x / integers))

    return Step(base, moved, linear=not offset, along=along if offset else None)


def _rotate(config: Config, precision: Precision, rng: np.random.Generator) -> Symmetry:
    """Values are reflected, four channels of a head at a time, and the matrix after it takes it
    back; in all heads alike, so in those that share them."""
    size = config.head_size
    order = rng.permutation(size)
    fours = size // MIXED * MIXED
    quads, rest = order[:fours].reshape(-1, MIXED), order[fours:]
    sign = rng.choice([-1.0, 1.0], quads.shape)

    def base(x: Array) -> Array:
        y = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
        y[..., quads] = common_grid(y[..., quads], precision)
        return y.reshape(x.shape)

    def moved(x: Array) -> Array:
        y = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
        # 1 - 2 w wᵀ with w = ± 1/2 in four channels.
        mixed = sign * y[..., quads]
        y[..., quads] = sign * (mixed - mixed.sum(axis=-1, keepdims=True) / 2)
        y[..., rest] *= -1
        return y.reshape(x.shape)

    values, how = Step(base, moved), "rotated" if fours else "mirrored"
    return Symmetry(
        "rotate",
        f"the values were {how} within every head, and the rows of attn/o with them",
        "between values and attn/o something is not linear, or not the same for all channels",
        {"attn/v/w": values, "attn/v/b": values, "attn/o/w": Step(base, moved, rows=True)},
    )


def _shift(config: Config, weights: DeclaredWeights, precision: Precision) -> Symmetry | str:
    """A constant in all that is written into the stream and has a bias or a table of its own."""
    keys = config.keys
    if keys.norm.rms:
        return "an RMS norm does not take a constant away"
    written: tuple[str, ...] = ("wpe",) if keys.table and normed(config, "embed") else ()
    if keys.norm_branch or keys.norm_sum:
        return "what is written into the stream is normed first"
    written += ("attn/o/b",) if keys.bias_out else ()
    written += ("mlp/c_proj/b",) if keys.bias_mlp and not keys.gated else ()
    if not written:
        return "nothing that is written into the stream has a bias"
    tables = ("wte", "wpe") if keys.table else ("wte",)
    return shift(weights, precision, written, tables)
