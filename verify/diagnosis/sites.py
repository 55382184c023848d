"""At a site that is wrong by itself, every fault that can act there is tried.

The operation is computed with the fault, in float64, from the port's own input, and compared with
what the port made of it. The correct fault leaves rounding; every other one leaves about as much as
was there before. Sites that the port does not show (a fused attention) are computed on the way,
with the fault where it acts there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import Evidence, Fitted, Form
from gpt_verify.diagnosis.forms.table import OF_SITES
from gpt_verify.diagnosis.pairs import Single, pairs
from gpt_verify.explanation import Candidate, Explanation
from gpt_verify.faults.fault import AtSites, Fault
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.local import LocalOracle, NotShown
from gpt_verify.graph.run import right
from gpt_verify.graph.table import made_by
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites

Floats = NDArray[np.floating]

#: An explanation leaves at most this fraction of the failure.
FRACTION = 0.1
#: A fault that leaves no more than this is what was done, if one is: rounding leaves about 1.
SURE = 2.0
#: A form leaves at most this fraction, also where the failure is small: with one number for each
#: channel of four positions it would leave 0.87 of noise.
CLEAR = 0.5
#: Of the elements that a quantising fault computes, this fraction does not sit on a step's edge.
STEADY = 0.9
#: A score as low as this is masked, whatever number a port has for that.
HIDDEN = -9e3
#: Sites kept of what the port has shown: this block and the one before. What is still to be read,
#: through sites that are hidden, is kept besides.
_KEPT = 26
#: Sites of one kind without success at which a form is looked for, or two faults at once.
TRIES = 3


class SiteDiagnosis:
    """The ``Visit`` that tries every fault at the failed sites of one sequence.

    Args:
        config: sizes.
        weights: the checkpoint's, as the port's precision holds them.
        precision: what the run computes in.
        tokens_T: the sequence.
        row: which row of the batch it is.
        failed: the sites to explain.
        faults: what to try.
        own: the port's tensors that differ from the checkpoint's, by checkpoint name (``lm_head``
            for a head of its own).
        damage: what happened to each of those.
        forms: what is tried where no fault fits, and where there are some, two faults at once.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        precision: Precision,
        tokens_T: NDArray[np.integer],
        row: int,
        failed: Iterable[str],
        faults: Iterable[Fault],
        own: Mapping[str, Floats] | None = None,
        damage: Mapping[str, Candidate] | None = None,
        forms: Sequence[Form] = OF_SITES,
    ) -> None:
        self._forms = forms
        self._config, self._weights, self._precision = config, weights, precision
        self._tokens_T, self._row = tokens_T, row
        self._failed = set(failed)
        self._faults = [(fault.name, fault.sites) for fault in faults]
        self._own, self._damage = own or {}, damage or {}
        self._sites = sites(config)
        self._oracle = LocalOracle(config, weights, precision, tokens_T)
        self._shown: dict[str, Floats] = {}
        self._pairs_tried = 0
        self._tries: Counter[tuple[str, str]] = Counter()
        self._found: dict[str, Form] = {}
        self._left: dict[str, tuple[Floats, Measured, float]] = {}
        self.explanations: dict[str, Explanation] = {}

    def __call__(self, site: str, value: Floats, narrowest: str | None = None) -> None:
        got = np.array(value[self._row], np.float64)
        if site in self._failed and site not in self.explanations:
            with np.errstate(all="ignore"):
                self._explain(self._sites[site], got, value)
        self._oracle.show(site, value[self._row])
        self._shown[site] = got
        for old in list(self._shown)[: max(0, len(self._shown) - _KEPT)]:
            if old != "embed" and not self._oracle.keeps(old):
                del self._shown[old]

    def _explain(self, site: Site, got: Floats, batch: Floats) -> None:
        try:
            expected = self._expected(site)
        except NotShown:
            return
        assert expected.budget is not None, "an operation's result has a budget"
        before = _score(site, got, expected.value, expected.budget)
        narrow = self._predict(site, {}, np.float32)
        if (
            narrow is not None
            and not np.isfinite(self._squares(site)).all()
            and _score(site, got, narrow, expected.budget) <= LIMIT_FLOORS
        ):
            return  # what it reads has left the range of float32: that is another's fault
        candidates = []
        if damage := self._damaged(site):
            score = self._leaves(site, {}, got, expected)
            if score is not None:
                candidates.append(Candidate(damage.fault, score, damage.note))
        candidates += self._tried(site, {site.name, *self._hidden(site)}, got, expected)
        limit = min(LIMIT_FLOORS, max(before * FRACTION, 1.0))
        if min((c.score for c in candidates), default=np.inf) > limit:
            # Perhaps an input was shown before the fault struck: it is made anew, with the fault.
            candidates += self._tried(site, set(site.inputs) & set(self._shown), got, expected)
        best = min((c.score for c in candidates), default=np.inf)
        known = best <= limit
        # What leaves more than rounding may be no more than near what was done.
        if forms := list(self._found.values()) if best <= min(limit, SURE) else self._forms:
            # Where a fault of the catalogue fits by itself, a form that was found may fit as well,
            # and be the one that explains all.
            evidence = Evidence(self._call(site), got, expected, self._shown, batch, self._row)
            # What has numbers of its own must explain more than they would of noise.
            least = min(limit, before * CLEAR)
            fitted = list(self._fitted(evidence, forms, least))
            candidates += fitted if known or fitted else self._two(site, got, expected, least)
        candidates.sort(key=lambda candidate: candidate.score)
        accepted = tuple(c for c in candidates if c.score <= limit and c.score < before)
        if damage and any(c.fault == damage.fault for c in accepted):
            # What follows from a tensor follows from it whatever else is tried beside that.
            of_tensor = next(c for c in accepted if c.fault == damage.fault)
            accepted = tuple(c for c in accepted if c is of_tensor or 2 * c.score < of_tensor.score)
        # Those that leave no more than twice as much as the best cannot be told apart from it.
        accepted = tuple(c for c in accepted if c.score <= 2 * accepted[0].score)
        rest = tuple(c for c in candidates if c not in accepted)[:3]
        self.explanations[site.name] = Explanation(
            site.name,
            before,
            limit,
            accepted,
            rest,
            reads=site.inputs or ("the tokens",),
            precision=self._precision.name,
        )
        if not accepted:
            self._left[site.name] = got, expected, limit

    def _squares(self, site: Site) -> Floats:
        """In float32, of what an operation reads: those of a norm are added up."""
        shown = [self._shown[name] for name in site.inputs if name in self._shown]
        squares = [np.square(x, dtype=np.float32).ravel() for x in shown]
        return np.concatenate([np.zeros(1, np.float32), *squares])

    def _fitted(
        self, evidence: Evidence, forms: Iterable[Form], limit: float
    ) -> Iterator[Candidate]:
        """The first form that fits."""
        for form in forms:
            tried = form.name, evidence.site.kind
            if form.name not in self._found and self._tries[tried] >= TRIES:
                continue  # the same operation in other layers is the same code
            self._tries[tried] += 1
            try:
                for fitted in form.fits(evidence):
                    steady = STEADY if fitted.quantising else 1.0
                    score = self._leaves(
                        evidence.site, fitted.overrides, evidence.got, evidence.expected, steady
                    )
                    if score is not None and score <= limit:
                        self._found[form.name] = form
                        self._look_back(form, fitted)
                        self._by_the_same(form, fitted)
                        yield Candidate(fitted.fault or form.name, score, fitted.words)
                        return
            except (KeyError, ValueError, IndexError, np.linalg.LinAlgError):
                continue  # it needs what was not shown, or does not fit these sizes

    def _by_the_same(self, form: Form, fitted: Fitted) -> None:
        """What was taken for something else, as long as this was not known."""
        for name in fitted.explains:
            if name in self.explanations:
                found = (Candidate(fitted.fault or form.name, 0.0, fitted.words),)
                self.explanations[name] = replace(self.explanations[name], accepted=found)
                self._left.pop(name, None)

    def _look_back(self, form: Form, fitted: Fitted) -> None:
        """What is hidden was read before, by a site from which it could not be told."""
        for name, (got, expected, limit) in list(self._left.items()):
            reads = {*self._sites[name].inputs, *self._hidden(self._sites[name])}
            changed = {
                n: act for n, act in {**fitted.overrides, **fitted.also}.items() if n in reads
            }
            if changed:
                score = self._leaves(self._sites[name], changed, got, expected)
                if score is not None and score <= limit:
                    found = (Candidate(fitted.fault or form.name, score, fitted.words),)
                    self.explanations[name] = replace(self.explanations[name], accepted=found)
                    del self._left[name]

    def _tried(
        self, site: Site, concerned: set[str], got: Floats, expected: Measured
    ) -> Iterator[Candidate]:
        """Every fault that acts at one of these sites, with what it leaves."""
        for fault, overrides, steady in self._acting(site, concerned, got):
            tried = (
                self._leaves(site, some, got, expected, steady) for some in self._choices(overrides)
            )
            scores = [score for score in tried if score is not None]
            if scores:
                yield Candidate(fault, min(scores))

    def _acting(
        self, site: Site, concerned: set[str], got: Floats
    ) -> Iterator[tuple[str, dict[str, Override], float]]:
        """Every fault that acts at one of these sites: its name, what it makes of them, and the
        fraction of elements that are steady."""
        for fault, at in self._faults:
            made = {**at.operations, **at.early}
            overrides = {
                name: made[kind]
                for name in concerned
                if (kind := self._sites[name].kind) in made and self._acts(at, name)
            }
            if site.name in concerned and (fit := at.fitted.get(site.kind)):
                overrides[site.name] = partial(fit, got)
            if overrides:
                yield fault, overrides, STEADY if at.quantising else 1.0

    def _two(
        self, site: Site, got: Floats, expected: Measured, limit: float
    ) -> Iterator[Candidate]:
        """Two faults at once, where one is not enough: of two operations, or of one to which each
        adds its own."""
        if self._pairs_tried >= TRIES:
            return
        self._pairs_tried += 1
        acting = self._acting(site, {site.name, *self._hidden(site)}, got)
        made = [
            Single(fault, overrides, value)
            for fault, overrides, steady in acting
            if steady == 1.0 and (value := self._predict(site, overrides, np.float64)) is not None
        ]
        for one, other, overrides in pairs(
            site.name, got, expected.value, made, self._merged(site)
        ):
            score = self._leaves(site, overrides, got, expected)
            if score is not None and score <= limit:
                self._pairs_tried = 0  # it may be there in other layers as well
                yield Candidate(one, score, beside=other)
                return

    def _merged(self, site: Site) -> Callable[[Mapping[str, Override]], Floats | None]:
        return lambda overrides: self._predict(site, overrides, np.float64)

    def _choices(self, overrides: Mapping[str, Override]) -> Iterator[Mapping[str, Override]]:
        """All of them; where they lie in several layers, those of each by itself as well: what is
        hidden behind a site may reach back into layers that do not have the fault."""
        if overrides:
            yield overrides
        layers = dict.fromkeys(self._sites[name].layer for name in overrides)
        if len(layers) > 1:
            for layer in layers:
                yield {n: act for n, act in overrides.items() if self._sites[n].layer == layer}

    def _acts(self, at: AtSites, name: str) -> bool:
        site = self._sites[name]
        return site.layer is None or at.where(self._config, site)

    def _expected(self, site: Site) -> Measured:
        if site.name != "logits":
            return self._oracle.expected(site.name)
        tiles = [measured for _, measured in self._oracle.expected_logits()]
        budgets = [tile.budget for tile in tiles if tile.budget is not None]
        return Measured(
            np.concatenate([tile.value for tile in tiles], axis=-1),
            np.concatenate(budgets, axis=-1),
        )

    def _damaged(self, site: Site) -> Candidate | None:
        """What happened to a tensor that this site reads."""
        names = ["lm_head"] if site.name == "logits" and "lm_head" in self._own else site.weights
        return next((self._damage[name] for name in names if name in self._damage), None)

    def _leaves(
        self,
        site: Site,
        overrides: Mapping[str, Override],
        got: Floats,
        expected: Measured,
        fraction: float = 1.0,
    ) -> float | None:
        """What is left of the failure with these overrides and the port's own tensors.

        None where they need what was not shown, or do not fit.
        """
        predicted = self._predict(site, overrides, np.float64)
        if predicted is None or predicted.shape != got.shape:
            return None
        assert expected.budget is not None
        # Rounding of the faulted operation itself, measured: the same in float32, scaled to u.
        narrow = self._predict(site, overrides, np.float32)
        noise = np.zeros_like(predicted) if narrow is None else narrow - predicted
        noise = np.where(np.isfinite(noise), noise, 0.0) * (self._precision.u / FLOAT32.u)
        row_noise = np.sqrt(np.mean(noise**2, axis=-1, keepdims=True))
        budget = np.sqrt(expected.budget**2 + noise**2 + row_noise**2)
        return _score(site, got, predicted, budget, fraction)

    def _hidden(self, site: Site) -> Iterator[str]:
        """Sites between this one and what the port has shown."""
        for name in site.inputs:
            if name not in self._shown:
                yield name
                yield from self._hidden(self._sites[name])

    def _predict(
        self, site: Site, overrides: Mapping[str, Override], dtype: type[np.floating]
    ) -> Floats | None:
        try:
            act = overrides.get(site.name, right)
            return np.asarray(act(self._call(site, overrides, dtype)), np.float64)
        except (KeyError, ValueError, IndexError):
            return None  # it needs what was not shown, or does not fit these sizes

    def _call(
        self,
        site: Site,
        overrides: Mapping[str, Override] = MappingProxyType({}),
        dtype: type[np.floating] = np.float64,
    ) -> Call:
        """The operation on what the port has shown, and on what lies in between."""
        shown = {name: value for name, value in self._shown.items() if name not in overrides}

        def compute(name: str) -> Floats:
            call = replace(made, site=self._sites[name])
            return np.asarray(overrides.get(name, right)(call), dtype)

        def lookup(name: str) -> Floats:
            if name == "wte" and site.name == "logits" and "lm_head" in self._own:
                name = "lm_head"
            return self._own[name] if name in self._own else self._weights[name]

        values = _Values(shown, self._sites, compute, dtype)
        made = Call(self._config, site, self._tokens_T, values, lookup, dtype)
        return made


class _Values(Mapping[str, Floats]):
    """What the port has shown, and what lies in between, computed."""

    def __init__(
        self,
        shown: Mapping[str, Floats],
        sites: Mapping[str, Site],
        compute: Callable[[str], Floats],
        dtype: type[np.floating],
    ) -> None:
        self._shown, self._sites, self._compute, self._dtype = shown, sites, compute, dtype
        self._computed: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name in self._shown:
            return self._shown[name].astype(self._dtype)
        if name not in self._computed:
            if not made_by(self._sites[name]).bridged:
                raise KeyError(name)  # nor was it made up when the site was judged
            self._computed[name] = self._compute(name)
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)


def _score(
    site: Site, got: Floats, expected: Floats, budget: Floats, fraction: float = 1.0
) -> float:
    """RMS of |error| / budget, of the best fraction of all elements.

    Of scores only over s ≤ t, because the others are masked.
    """
    masked = made_by(site).masked
    z = (got - expected) / budget
    if masked:
        z = np.where((got <= HIDDEN) & (expected <= HIDDEN), 0.0, z)
    z = np.where(np.isfinite(z), z, np.inf)
    if masked:
        z = z[np.broadcast_to(np.tri(*z.shape[-2:], dtype=np.bool_), z.shape)]
    best = np.sort(z.ravel() ** 2)[: max(1, round(fraction * z.size))]
    return float(np.sqrt(np.mean(best))) if z.size else 0.0
