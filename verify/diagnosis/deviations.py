"""What every known fault would do to the logits: the exact deviations, computed by the oracle.

All candidates share one pass of the correct model; each is computed from its first changed site on.
Of a large vocabulary a sample of the logits is enough: a fault changes all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.filter import Candidate, MatchedFilter
from gpt_verify.diagnosis.wirings import WIRINGS
from gpt_verify.faults.fault import Fault
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.operations.unembed import Head
from gpt_verify.graph.run import right, run
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights, Widened
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

#: Logits of each position that are looked at.
COLUMNS = 512
#: Deviations are larger than this part of the logits, or none.
BLIND = 1e-11


class Deviations:
    """The correct logits of some sequences, and what faults would change in them.

    Args:
        config: sizes.
        weights: as the port's precision holds them.
        tokens_ST: the sequences, all of one length.
        seed: of the sample of the vocabulary.
    """

    def __init__(
        self, config: Config, weights: DeclaredWeights, tokens_ST: Tokens, seed: int
    ) -> None:
        self._config, self._weights, self._tokens_ST = config, weights, tokens_ST
        rng = np.random.default_rng([seed, config.n_vocab])
        n = min(COLUMNS, config.n_vocab)
        self.columns = np.sort(rng.choice(config.n_vocab, n, replace=False))
        self._order = list(sites(config))
        self._routers = [s.name for s in sites(config).values() if s.kind == "mlp.router"]
        self._candidates: dict[tuple[int, bool], tuple[Fault, list[Candidate]]] = {}
        self._filters: dict[str, MatchedFilter] = {}
        self._lookup = Widened(weights).__getitem__
        head = {"logits": self._sampled(right)}
        self._right = [
            dict(run(self._lookup, config, tokens_T, head, keep=None)) for tokens_T in tokens_ST
        ]

    @property
    def distinguishable(self) -> bool:
        """Whether the correct logits of a position differ at all, by more than rounding in float64.
        Where they are one number (one token, equal rows of the head, zeros), nothing can be read
        from them, apart from that number."""
        right = np.array([known["logits"].ravel() for known in self._right])
        apart = right.reshape(-1, len(self.columns))
        spread = np.max(np.abs(apart - apart[:, :1]))
        return bool(spread > BLIND * np.max(np.abs(right)))

    def error(
        self, logits_STV: NDArray[np.floating], order: NDArray[np.intp] | None = None
    ) -> Floats:
        """A port's logits minus the correct ones, [S, T × columns]; minus those of other positions
        where there is an order."""
        sampled = np.asarray(logits_STV, np.float64)[..., self.columns]
        if order is not None:
            right_STN = np.array([known["logits"] for known in self._right])
            sampled = sampled - right_STN[:, order] + right_STN
        return self._deviating(sampled.reshape(len(self._right), -1))

    def order(self, logits_STV: NDArray[np.floating]) -> NDArray[np.intp]:
        """For each position of a port's logits, whose correct logits they are nearest to, in all
        sequences together, int[T]."""
        right_STN = np.array([known["logits"] for known in self._right])
        right_STN = right_STN - right_STN.mean(axis=-1, keepdims=True)
        got_STN = np.asarray(logits_STV, np.float64)[..., self.columns]
        got_STN = got_STN - got_STN.mean(axis=-1, keepdims=True)
        apart_TT = np.sum(right_STN**2, axis=(0, 2)) - 2 * np.einsum(
            "stn,sun->tu", got_STN, right_STN
        )
        nearest: NDArray[np.intp] = np.argmin(apart_TT, axis=-1)
        return nearest

    def filter(self, precision: Precision) -> MatchedFilter:
        """That of a port in this precision, for what rounding does to its logits: one realisation
        for each sequence. Made once."""
        if precision.name not in self._filters:
            self._filters[precision.name] = MatchedFilter(self._noise(precision, {}, 0.0))
        return self._filters[precision.name]

    def decided(self, precision: Precision) -> NDArray[np.bool_]:
        """Of each sequence, bool[S], whether rounding leaves every token with its experts.

        A port may choose another expert where the last that is chosen and the first that is left
        out lie nearer together than noise takes them, ``LIMIT_FLOORS`` times what it does on
        average; from there on its logits are another model's. True where there are no experts.
        """
        found = np.ones(len(self._tokens_ST), np.bool_)
        experts = self._config.keys.experts
        if experts is None or experts.chosen == experts.count:
            return found
        scale = precision.u / _narrow(precision).u
        for s, noisy in enumerate(self._rounded(precision, {})):
            for name in self._routers:
                exact_TE = self._right[s][name]
                off = scale * float(np.sqrt(np.mean((noisy[name] - exact_TE) ** 2)))
                ranked_TE = np.sort(exact_TE, axis=-1)[:, ::-1]
                apart_T = ranked_TE[:, experts.chosen - 1] - ranked_TE[:, experts.chosen]
                found[s] &= bool(np.min(apart_T) > LIMIT_FLOORS * off)
        return found

    def floor(self, candidate: Candidate, precision: Precision) -> float:
        """RMS of what rounding does to the logits of a model with this fault; 0 where the model
        cannot be computed in that precision."""
        fault = WIRINGS.get(candidate.fault) or CATALOGUE[candidate.fault]
        overrides = fault.overrides(self._config, candidate.layers)
        noise_SN = self._noise(precision, overrides, candidate.deviation_SN)
        return float(np.sqrt(np.mean(noise_SN**2))) if np.isfinite(noise_SN).all() else 0.0

    def _noise(
        self, precision: Precision, overrides: Mapping[str, Override], deviation_SN: Floats | float
    ) -> Floats:
        rows = [made["logits"].ravel() for made in self._rounded(precision, overrides)]
        noise_SN = self._deviating(np.asarray(rows, np.float64)) - deviation_SN
        return noise_SN * (precision.u / _narrow(precision).u)

    def _rounded(
        self, precision: Precision, overrides: Mapping[str, Override]
    ) -> Iterator[dict[str, NDArray[np.floating]]]:
        """Routers and logits of each sequence, where every site is rounded to a port's format."""
        kept = {*self._routers, "logits"}
        lookup, narrow = self._weights.__getitem__, _narrow(precision)
        rounded = {name: _rounding(narrow, overrides.get(name, right)) for name in self._order}
        rounded["logits"] = self._sampled(rounded["logits"])
        for tokens_T in self._tokens_ST:
            made = run(lookup, self._config, tokens_T, rounded, np.float32)
            yield {name: value for name, value in made if name in kept}

    def candidates(self, fault: Fault, single_layers: bool = False) -> list[Candidate]:
        """A fault of a site or of weights: in all layers, or in each by itself. Empty where it
        cannot be in these logits. Computed once for each."""
        key = id(fault), single_layers  # of the record: it is kept, and no other has its id
        if key not in self._candidates:
            self._candidates[key] = fault, list(self._computed(fault, single_layers))
        return self._candidates[key][1]

    def _computed(self, fault: Fault, single_layers: bool) -> Iterator[Candidate]:
        if not fault.predicted or (fault.tensors and fault.tensors.localised):
            return
        choices: list[tuple[int, ...] | None] = [None]
        if single_layers:
            table = sites(self._config)
            concerned = fault.overrides(self._config)
            in_blocks = any(table[name].layer is not None for name in concerned)
            if not (fault.layered and in_blocks and self._config.n_layer > 1):
                return
            choices = [(layer,) for layer in range(self._config.n_layer)]
        for layers in choices:
            overrides = fault.overrides(self._config, layers)
            deviation = self._deviation(overrides) if overrides else None
            if deviation is not None:
                yield Candidate(fault.name, layers, deviation, fault.sites.quantising)

    def _deviating(self, logits_SN: Floats) -> Floats:
        """What is not right, apart from a constant for each position, to which softmax is blind."""
        exact_SN = np.array([known["logits"].ravel() for known in self._right])
        deviation = (logits_SN - exact_SN).reshape(len(exact_SN), -1, len(self.columns))
        deviation -= deviation.mean(axis=-1, keepdims=True)
        flat: Floats = deviation.reshape(exact_SN.shape)
        return flat

    def _deviation(self, overrides: Mapping[str, Override]) -> Floats | None:
        """None where the fault cannot be computed at these sizes."""
        first = min(self._order.index(name) for name in overrides)
        overrides = dict(overrides)
        overrides["logits"] = self._sampled(overrides.get("logits", right))
        rows = []
        for tokens_T, known in zip(self._tokens_ST, self._right, strict=True):
            start = {name: known[name] for name in self._order[:first]}
            try:
                with np.errstate(all="ignore"):
                    sites_ = run(self._lookup, self._config, tokens_T, overrides, start=start)
                    rows.append(_last(sites_))
            except (KeyError, ValueError, IndexError):
                return None
        deviation = self._deviating(np.asarray(rows, np.float64))
        if not np.isfinite(deviation).all():
            return None
        # What rounding in float64 leaves of a fault to which the logits are blind is no deviation.
        size = max(float(np.max(np.abs(known["logits"]))) for known in self._right)
        return deviation if np.max(np.abs(deviation)) > BLIND * size else None

    def _sampled(self, act: Override) -> Override:
        """The logits of the sampled tokens only, where the operation allows it."""

        def logits(call: Call) -> NDArray[np.floating]:
            if act is right:
                return Head(call.config, call.lookup).logits(call.x, self.columns)
            return act(call)[..., self.columns]

        return logits


def _narrow(precision: Precision) -> Precision:
    """What noise is drawn in: that of float64 is float32's, scaled."""
    return FLOAT32 if precision.name == "float64" else precision


def _last(computed: Iterator[tuple[str, NDArray[np.floating]]]) -> NDArray[np.floating]:
    """The logits, which come last, in a row."""
    ((_site, logits),) = deque(computed, maxlen=1)
    return logits.ravel()


def _rounding(precision: Precision, act: Override) -> Override:
    def rounded(call: Call) -> NDArray[np.floating]:
        return precision.round(np.asarray(act(call), call.dtype))

    return rounded
