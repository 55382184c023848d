"""A model that a claim is put to: a port, its sites in float64, and how well formulas fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Finding, Status
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.local import LocalOracle
from gpt_verify.graph.run import right
from gpt_verify.inputs import seeded
from gpt_verify.judging.prepare import prepare
from gpt_verify.laws.subject import Subject
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, PRECISIONS
from gpt_verify.numerics.scores import SiteScores
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY, Capability, Floats, NotExamined, Port
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Tokens = NDArray[np.int64]
F = TypeVar("F")

#: Tokens of the sequence that most claims are decided on.
PROBE = 24


@dataclass(frozen=True)
class Fit:
    """How well a formula gives what a model computed from its own inputs.

    Attributes:
        ratio: largest score ÷ its limit, in units of what float64 rounding allows; a formula that
            is the model's own gives at most 1.
        elements: how many numbers were compared.
    """

    ratio: float
    elements: int

    def __bool__(self) -> bool:
        return self.ratio <= 1.0


class Model:
    """One implementation with one checkpoint's weights.

    Args:
        port: the implementation.
        checkpoint: the weights that it is said to have.
        seed: of everything that is drawn.
        shared: where several models have these weights: what is measured for one, the next one
            need not measure.
    """

    def __init__(
        self,
        port: Port,
        checkpoint: Checkpoint,
        seed: int = 0,
        shared: SharedWeights | None = None,
    ) -> None:
        self.port, self.checkpoint, self.seed = port, checkpoint, seed
        self._shared = shared or SharedWeights(checkpoint.tensors, record=False)
        self._sites: dict[bytes, dict[str, Floats]] = {}
        self._budgets: dict[tuple[str, bytes], Floats] = {}
        self._held: dict[str, Finding] = {}

    @property
    def name(self) -> str:
        return self.port.name

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @property
    def tensors(self) -> Mapping[str, Floats]:
        return self.checkpoint.tensors

    def w(self, name: str) -> Floats:
        """A tensor of the checkpoint in float64."""
        return np.asarray(self.tensors[name], np.float64)

    @cached_property
    def probe(self) -> Tokens:
        """A sequence of random ids, int64[T]."""
        tokens: Tokens = seeded(self.config, min(PROBE, self.config.n_ctx), self.seed).tokens[0]
        return tokens

    @property
    def layers(self) -> range:
        return range(self.config.n_layer)

    def rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def sites(self, tokens_T: Tokens | None = None) -> Mapping[str, Floats]:
        """Every site that the model shows of one sequence, computed in float64.

        Raises:
            NotExamined: it shows none, or cannot be run in float64.
        """
        tokens_T = self.probe if tokens_T is None else tokens_T
        key = np.asarray(tokens_T, np.int64).tobytes()
        if key not in self._sites:
            self._sites[key] = self._run(tokens_T)
        return self._sites[key]

    def _run(self, tokens_T: Tokens) -> dict[str, Floats]:
        float64 = self.port.offers().get(FLOAT64_COPY)
        if float64 is None or ACTIVATIONS not in self.port.offers():
            raise NotExamined("it shows nothing of what it computes in float64")
        shown: dict[str, Floats] = {}

        def keep(site: str, value: Floats, narrowest: object = None) -> None:
            shown[site] = np.array(value[0], np.float64)

        with float64() as float64_copy:
            float64_copy.offers()[ACTIVATIONS](np.asarray(tokens_T)[None], keep)
        return shown

    def at(self, site: str, tokens_T: Tokens | None = None) -> Floats:
        """One site; NotExamined where it is not shown."""
        shown = self.sites(tokens_T)
        if site not in shown:
            raise NotExamined(f"{site} is not shown")
        return shown[site]

    def patterns(self) -> Floats:
        """The attention weights of every layer, float64[L, H, T, S]."""
        return np.stack([self.at(f"h.{layer}.attn.pattern") for layer in self.layers])

    def logits(self, tokens_T: Tokens) -> Floats:
        """The logits as the port computes them in its own precision, [T, V]."""
        value: Floats = self.port.logits(np.asarray(tokens_T)[None])[0]
        return value

    def fit(self, name: str, act: Override = right, tokens_T: Tokens | None = None) -> Fit:
        """Compare a formula with one site, from what the model shows before that site.

        Args:
            name: the site.
            act: the formula; GPT-2's own if not given.
            tokens_T: the sequence.

        Raises:
            NotExamined: the site or one of its inputs is not shown.
        """
        tokens_T = self.probe if tokens_T is None else tokens_T
        site, got = sites(self.config)[name], self.at(name, tokens_T)
        expected = self._apply(act, site, tokens_T, np.float64)
        if expected.shape != got.shape:
            return Fit(np.inf, got.size)
        budget = self._budget(site, tokens_T)
        if act is not right:  # its own rounding, measured in float32 and scaled down
            narrow = self._apply(act, site, tokens_T, np.float32)
            noise = (narrow - expected) * (FLOAT64.u / FLOAT32.u)
            row = np.sqrt(np.mean(noise**2, axis=-1, keepdims=True))
            budget = np.sqrt(budget**2 + noise**2 + row**2)
        scores = SiteScores(site.heads)
        with np.errstate(all="ignore"):
            scores.add(got, expected, budget)
        return Fit(max(s.ratio for s in scores.statistics()), scores.elements)

    def fits(self, kind: str, act: Override = right) -> Fit:
        """The same at every layer; the worst one."""
        found = [self.fit(f"h.{layer}.{kind}", act) for layer in self.layers]
        return Fit(max(f.ratio for f in found), sum(f.elements for f in found))

    def _apply(
        self, act: Override, site: Site, tokens_T: Tokens, dtype: type[np.floating]
    ) -> Floats:
        values = {name: self.at(name, tokens_T) for name in self._needed(site, tokens_T)}
        with np.errstate(all="ignore"):
            values = {name: value.astype(dtype) for name, value in values.items()}
        call = Call(self.config, site, tokens_T, values, self.tensors.__getitem__, dtype)
        with np.errstate(all="ignore"):
            return np.asarray(act(call), np.float64)

    def _needed(self, site: Site, tokens_T: Tokens) -> list[str]:
        """The sites that a formula may look at: those before this one, in this block and the
        last."""
        for name in site.inputs:
            self.at(name, tokens_T)  # must be shown
        order = list(sites(self.config))
        here = order.index(site.name)
        shown = self.sites(tokens_T)
        return [name for name in order[max(0, here - 25) : here] if name in shown]

    def _budget(self, site: Site, tokens_T: Tokens) -> Floats:
        """What float64 rounding may do to one site, for the formula of GPT-2; kept once known."""
        key = site.name, np.asarray(tokens_T, np.int64).tobytes()
        if key not in self._budgets:
            self._budgets[key] = self._measure_budget(site, tokens_T)
        return self._budgets[key]

    def _measure_budget(self, site: Site, tokens_T: Tokens) -> Floats:
        oracle = LocalOracle(self.config, self.declared(FLOAT64.name), FLOAT64, tokens_T)
        for name in site.inputs:
            oracle.show(name, self.at(name, tokens_T))
        if site.name != "logits":
            budget = oracle.expected(site.name).budget
            assert budget is not None, "the oracle's operations return their budget"
            return budget
        tiles = [tile.budget for _, tile in oracle.expected_logits()]
        return np.concatenate([tile for tile in tiles if tile is not None], axis=-1)

    def declared(self, precision: str | None = None) -> DeclaredWeights:
        return DeclaredWeights(self.tensors, PRECISIONS[precision or self.port.dtype])

    @cached_property
    def subject(self) -> Subject:
        """The subject that the laws are handed."""
        return prepare(self.port, self.checkpoint, self._shared).subject(self.seed)

    def hold(self, law: str) -> Finding:
        """Check one of the laws for the model: its finding, failed if it has several and one is.

        Raises:
            NotExamined: the model lacks what the law needs.
        """
        if law not in self._held:
            self._held[law] = self._hold(law)
        return self._held[law]

    def _hold(self, law: str) -> Finding:
        (entry,) = (entry for entry in CHECKS if entry.id == law)
        if why := next((c.lacking for c in entry.needs if c not in self.port.offers()), None):
            raise NotExamined(why)
        found = [f for f in entry.hold(self.subject) if f.status is not Status.NOT_EXAMINED]
        if not found:
            raise NotExamined(f"{law} was not examined")
        return next((f for f in found if f.status is Status.FAILED), found[0])

    def passes(self, law: str) -> bool:
        return self.hold(law).status is Status.PASSED

    def need(self, capability: Capability[F]) -> F:
        """The function that has this capability; NotExamined where the port has none."""
        return self.port.offers()[capability]
