"""Where two ports part, and what each operation adds to the difference of their log-probabilities.

What a port shows at a site differs from what the reference makes of the port's own numbers by a
rounding. The reference in float64 with all these roundings added *is* the port, to the last digit,
because each site is then made of the port's own numbers. So one port becomes the other when the
roundings of one are exchanged for those of the other, operation by operation, and each exchange
moves the log-probabilities by its part of the difference. No rounding falls otherwise meanwhile,
as it would if an engine were changed: what is left after the last exchange is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Call
from gpt_verify.graph.run import run
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.recipes.arithmetic import Array
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.reference.lens import kl_nats
from gpt_verify.reference.loss import log_softmax
from gpt_verify.sites import sites

Tokens = NDArray[np.integer]
#: Site → what a port showed of one sequence, or by how much that is rounded.
Numbers = Mapping[str, Array]


@dataclass(frozen=True)
class Part:
    """What the roundings of one kind of site add.

    Attributes:
        kind: ``mlp.act``, of all layers.
        share: of the difference of log-probabilities, along it; all of them sum to 1.
        left: of its square, what is left when this kind and all before it are exchanged.
    """

    kind: str
    share: float
    left: float


@dataclass(frozen=True)
class Attribution:
    """The difference between two ports on the same tokens.

    Attributes:
        first: the first site at which they differ; None where they differ nowhere.
        differ: how many elements of it do, of how many.
        parts: of each kind of site, in the order of computation.
        rms_nats: root mean square of the difference of log-probabilities.
        largest_nats: the largest.
        kl_nats: mean over the positions of KL(A ‖ B).
        kl_exact_nats: the same of the reference in float64 from A, and from B.
    """

    first: str | None
    differ: tuple[int, int]
    parts: tuple[Part, ...]
    rms_nats: float
    largest_nats: float
    kl_nats: float
    kl_exact_nats: tuple[float, float]


class Shown:
    """What a port shows of one sequence: a ``Visit`` of a batch of one row."""

    def __init__(self) -> None:
        self.values: dict[str, Array] = {}

    def __call__(
        self, site: str, value: NDArray[np.floating], narrowest: str | None = None
    ) -> None:
        self.values[site] = np.array(value[0], np.float64)


def attribute(
    config: Config, weights: DeclaredWeights, tokens_T: Tokens, a: Numbers, b: Numbers
) -> Attribution:
    """Account for the difference between two ports.

    Args:
        config: sizes.
        weights: the checkpoint's tensors in the format that both declare.
        tokens_T: what they ran on.
        a, b: what each has shown; the logits among it.
    """
    rounded_a, rounded_b = (roundings(config, weights, tokens_T, shown) for shown in (a, b))
    ends = [_log_p(config, weights, tokens_T, rounded) for rounded in (rounded_a, rounded_b, {})]
    log_a, log_b, exact = ends
    difference = log_a - log_b
    parts = _parts(config, weights, tokens_T, rounded_a, rounded_b, (log_a, log_b))
    first, differ = _first(config, a, b)
    return Attribution(
        first,
        differ,
        tuple(parts),
        float(np.sqrt(np.mean(difference**2))),
        float(np.max(np.abs(difference))),
        float(np.mean(kl_nats(log_a, log_b))),
        (float(np.mean(kl_nats(exact, log_a))), float(np.mean(kl_nats(exact, log_b)))),
    )


def roundings(
    config: Config, weights: DeclaredWeights, tokens_T: Tokens, shown: Numbers
) -> dict[str, Array]:
    """By how much each site is off what the reference makes of the port's own numbers. A site that
    is not shown is made by the reference, and what it rounds counts where it is next seen."""
    found: dict[str, Array] = {}

    def seen(call: Call, value: Array) -> Array:
        name = call.site.name
        if name not in shown:
            return value
        got = shown[name]
        if made_by(call.site).by_head:
            t, s = value.shape[-2:]
            got = np.where(ops.sees((t, s), config.window(call.layer)), got, value)
        found[name] = got - value
        return got

    for _ in run(Widened(weights).__getitem__, config, tokens_T, {}, alter=seen):
        pass
    return found


def _log_p(config: Config, weights: DeclaredWeights, tokens_T: Tokens, rounded: Numbers) -> Array:
    """The log-probabilities of the reference with these roundings."""

    def add(call: Call, value: Array) -> Array:
        return value + rounded[call.site.name] if call.site.name in rounded else value

    made = run(Widened(weights).__getitem__, config, tokens_T, {}, alter=add)
    logits_TV = next(value for site, value in made if site == "logits")
    return np.asarray(log_softmax(logits_TV))


def _parts(
    config: Config,
    weights: DeclaredWeights,
    tokens_T: Tokens,
    a: Numbers,
    b: Numbers,
    ends: tuple[Array, Array],
) -> Iterable[Part]:
    """Exchange the roundings of B for those of A, kind by kind."""
    log_a, before = ends
    difference = log_a - before
    square = float(np.sum(difference**2))
    rounded = dict(b)
    for kind, names in _kinds(config, [*a, *b]).items():
        for name in names:
            rounded.pop(name, None)
        rounded |= {name: a[name] for name in names if name in a}
        after = _log_p(config, weights, tokens_T, rounded)
        share = float(np.sum((after - before) * difference)) / square if square else 0.0
        left = float(np.sum((log_a - after) ** 2)) / square if square else 0.0
        yield Part(kind, share, left)
        before = after


def _kinds(config: Config, shown: Sequence[str]) -> dict[str, list[str]]:
    """Kind → its sites that were shown, in the order of computation."""
    found: dict[str, list[str]] = {}
    for site in sites(config).values():
        if site.name in shown:
            found.setdefault(site.kind, []).append(site.name)
    return found


def _first(config: Config, a: Numbers, b: Numbers) -> tuple[str | None, tuple[int, int]]:
    for site in sites(config).values():
        if site.name not in a or site.name not in b:
            continue
        apart = a[site.name] != b[site.name]
        if made_by(site).by_head:
            assert site.layer is not None, "scores belong to a layer"
            t, s = apart.shape[-2:]
            apart = apart[..., ops.sees((t, s), config.window(site.layer))]
        if apart.any():
            return site.name, (int(apart.sum()), apart.size)
    return None, (0, 0)
