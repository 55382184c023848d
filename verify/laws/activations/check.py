"""The laws of architecture, activations and logits: every site against the oracle, as it passes.

One visitor serves them all. It is handed to a port's ``activations`` and compares each tensor in
the moment in which the port shows it: locally (the operation alone, from the port's own input) and
cascaded (from the tokens on). Nothing is kept but sums.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS, CascadeScores, Lockstep
from gpt_verify.graph.local import LocalOracle, NotShown
from gpt_verify.graph.table import made_by
from gpt_verify.graph.tiles import EVERY, head_tiles
from gpt_verify.laws.logits.check import LogitsComparison
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.parallel import by_twos
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.numerics.scores import SiteScores
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import NOT_SHOWN
from gpt_verify.reference.config import Config
from gpt_verify.sites import Site, sites
from gpt_verify.text import element

Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]

#: Elements from which on it is worth the while to score them in two threads.
LARGE = 1 << 16


class SiteComparison:
    """Scores of every site, gathered over the inputs of one port in one precision.

    Args:
        precision: what the run computes in: the declared precision, or float64 for the float64
            copy.
        declared: what the port declares. A float64 copy that keeps an operation in the declared
            precision is judged there as that; nothing is ever judged as narrower than declared.
        cascaded: compare from the tokens on as well. Not needed for the float64 copy, whose
            local comparison leaves nothing out.
        last_only: the port makes the logits of the last position only, and may make what leads to
            them there only, too: a site that is shown so is compared there.
    """

    def __init__(
        self,
        config: Config,
        weights: DeclaredWeights,
        precision: Precision,
        declared: Precision,
        cascaded: bool,
        on_site: Callable[[str], None] = lambda site: None,
        last_only: bool = False,
    ) -> None:
        self._last_only = last_only
        self._config = config
        self._weights = weights
        self._precision = precision
        self._declared = declared
        self._cascaded = cascaded
        self._on_site = on_site
        self._sites = sites(config)
        self.local = {name: SiteScores(site.heads) for name, site in self._sites.items()}
        self.cascade = {name: CascadeScores() for name in self._sites}
        self.wrong_shape: dict[str, str] = {}
        self.hidden_input: dict[str, str] = {}
        self.narrowed: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self.order: list[int] = []
        self._layer = -1
        self.logits = LogitsComparison(config, weights, precision)
        self._input = -1
        self._names: list[str] = []
        self.inputs: list[NDArray[np.integer]] = []
        self._oracles: list[LocalOracle] = []
        self._locksteps: list[Lockstep] = []
        self._shown_logits: dict[int, int] = {}

    def begin(self, tokens_BT: Tokens, name: str = "input") -> None:
        """A new input is about to run."""
        self._input += 1
        self._names.append(name)
        self.inputs.append(tokens_BT)
        self._layer = -1
        self._shown_logits = {}
        self.logits.begin()
        self._tokens_BT = tokens_BT
        self._oracles = [
            LocalOracle(self._config, self._weights, self._precision, row) for row in tokens_BT
        ]
        self._locksteps = (
            [Lockstep(self._config, self._weights, self._precision, row) for row in tokens_BT]
            if self._cascaded
            else []
        )

    def __call__(self, site: str, value: Floats, narrowest: str | None = None) -> None:
        """Compare one site of the whole batch: the ``Visit`` of ``gpt_verify.port``."""
        name = site
        if name == "logits" and self._last_only and value.ndim == 2:
            value = value[:, None]
        if complaint := self._shape_complaint(self._sites[name], value):
            self.wrong_shape.setdefault(name, complaint)
            if name == "logits":
                self.logits.accepts(self._tokens_BT, value, self._at())
            return
        self._note_order(self._sites[name])
        precision = self._judged_as(name, narrowest)
        with np.errstate(all="ignore"):  # a wrong port may overflow anything; it is scored as inf
            for row in range(len(self._tokens_BT)):
                if name == "logits":
                    self._compare_logits(row, value[row], precision)
                else:
                    self._compare(row, name, value[row], precision)
        self._on_site(name)

    def returned(self, logits_BTV: Floats, at: Sequence[int] | None = None) -> None:
        """The logits that the run has returned, and that of those who call it is what counts.

        They are compared by themselves unless they are, bit for bit, those that it has shown.

        Args:
            at: the positions of logits that another run has returned; None of this one.
        """
        assert self._cascaded, "there is nothing to compare them with"
        rows = range(len(self._tokens_BT))
        at = self._at() if at is None else at
        if self.logits.accepts(self._tokens_BT, logits_BTV, at) and any(
            self._shown_logits.get(row) != bits_of(logits_BTV[row]) for row in rows
        ):
            self.logits.add_again(self._tokens_BT, logits_BTV, self._locksteps, at)

    def _at(self) -> list[int] | None:
        """The positions of which there are logits; None of all."""
        return [self._tokens_BT.shape[1] - 1] if self._last_only else None

    def _judged_as(self, name: str, narrowest: str | None) -> Precision:
        """The run's own precision, or a narrower one that a float64 copy kept and the port
        declares."""
        seen = PRECISIONS[narrowest] if narrowest else self._precision
        if not self._precision.u < seen.u:
            return self._precision
        judged = min(seen, self._declared, key=lambda p: p.u)
        if judged is not self._precision:
            self.narrowed[name] = judged.name
        return judged

    def _note_order(self, site: Site) -> None:
        """A layer that is computed after a later one is in the wrong place. The stream that the
        next one reads may be shown by its second reader, where the first is no norm."""
        if site.layer is None or (site.is_sum and site.layer == self._layer - 1):
            return
        if site.layer not in self.order:
            self.order.append(site.layer)
        if site.layer < self._layer:
            self.late.setdefault(site.name, f"{site.name} is computed after layer {self._layer}")
        self._layer = max(self._layer, site.layer)

    def _compare(self, row: int, name: str, value: Floats, precision: Precision) -> None:
        site, oracle = self._sites[name], self._oracles[row]
        tiles = [EVERY]
        if made_by(site).by_head:
            tiles = head_tiles(self._config.n_head, value.shape[-1])
        known = self._locksteps[row].value(name) if self._cascaded else None
        cut = self._cut(value)
        if known is not None and cut:
            known = known[0][cut:], known[1][:, cut:]
        # Two at a time, of which each one's tensors are gone before the next two.
        for i in range(0, len(tiles), 2):
            some = tiles[i : i + 2]
            jobs = [partial(self._expected, oracle, name, precision, heads) for heads in some]
            for heads, whole in zip(some, by_twos(jobs), strict=True):
                expected = _from(whole, cut) if cut and whole is not None else whole
                self._add(row, name, heads, value, expected, known)
        oracle.show(name, value)

    def _cut(self, value: Floats) -> int:
        """How many positions are left out before those that a site shows; it has none if they are
        its heads'."""
        length = self._tokens_BT.shape[1]
        return length - 1 if self._last_only and value.ndim == 2 and len(value) == 1 else 0

    def _expected(
        self, oracle: LocalOracle, name: str, precision: Precision, heads: slice
    ) -> Measured | None:
        try:
            return oracle.expected(name, precision, heads)
        except NotShown as hidden:
            self.hidden_input[name] = str(hidden)
            return None

    def _add(
        self,
        row: int,
        name: str,
        heads: slice,
        value: Floats,
        expected: Measured | None,
        known: tuple[Floats, Floats] | None,
    ) -> None:
        """Score some heads of a site, or all of what has none."""
        got, first = value, 0
        if heads != EVERY:
            got, first = value[heads], heads.start
        budget = None if expected is None else _budget(expected)
        jobs: list[Callable[[], None]] = []
        if expected is not None and budget is not None:
            jobs.append(
                lambda: self.local[name].add(
                    got, expected.value, budget, (self._input, row), first_head=first
                )
            )
        if known is not None:
            exact, noise = known
            if heads != EVERY:
                exact, noise = exact[heads], noise[:, heads]
            channels = self._config.n_head if heads != EVERY else 0
            jobs.append(
                lambda: self.cascade[name].add(
                    np.asarray(got, np.float64) - exact, noise, budget, first, channels
                )
            )
        if got.size >= LARGE:
            by_twos(jobs)
        else:
            for job in jobs:
                job()

    def _compare_logits(self, row: int, value_TV: Floats, precision: Precision) -> None:
        n_vocab = self._config.n_vocab
        budgets: list[Floats] = []
        try:
            for first, expected in self._oracles[row].expected_logits(precision):
                expected = _from(expected, len(expected.value) - len(value_TV))
                part = value_TV[:, first : first + expected.value.shape[-1]]
                budget = _budget(expected)
                self.local["logits"].add(
                    part, expected.value, budget, (self._input, row), first, n_vocab
                )
                budgets.append(budget.astype(np.float32))
        except NotShown as hidden:
            self.hidden_input["logits"] = str(hidden)
        if self._cascaded:
            self._shown_logits[row] = bits_of(value_TV)
            tiles = self.logits.add_row(row, value_TV, self._locksteps[row], self._at())
            for i, (first, error, noise) in enumerate(tiles):
                own = budgets[i].astype(np.float64) if budgets else None
                self.cascade["logits"].add(error, noise, own, first, n_vocab)

    def _shape_complaint(self, site: Site, value: Floats) -> str | None:
        batch, length = self._tokens_BT.shape
        config = self._config
        if made_by(site).by_head:
            shape: tuple[int, ...] = (batch, config.n_head, length, length)
        else:
            shape = (batch, length, site.width)
        short = (batch, 1, *shape[2:])
        if site.kind == "logits" and self._last_only:
            shape = short
        if value.shape != shape and not (
            self._last_only and not made_by(site).by_head and value.shape == short
        ):
            return f"{site.name} has shape {list(value.shape)}, should be {list(shape)}"
        if not np.issubdtype(value.dtype, np.floating):
            return f"{site.name} has dtype {value.dtype}, should be a floating-point type"
        return None

    def local_findings(self, law: str) -> list[Finding]:
        """One finding for each site, by the worst of its statistics."""
        return [self._local_finding(law, site) for site in self._sites.values()]

    def _local_finding(self, law: str, site: Site) -> Finding:
        name = site.name
        if name in self.wrong_shape:
            return Finding(law, Status.FAILED, self.wrong_shape[name], name)
        if name in self.late:
            return Finding(law, Status.FAILED, self.late[name], name)
        scores = self.local[name]
        statistics = scores.statistics()
        if not statistics or scores.worst is None:
            why = NOT_SHOWN
            if name in self.hidden_input:
                why = f"its input {self.hidden_input[name]} is {NOT_SHOWN}"
            return Finding(law, Status.NOT_EXAMINED, why, name)
        worst = max(statistics, key=lambda s: s.ratio)
        passed = worst.ratio <= 1.0
        off, (given, *at_index) = scores.worst, scores.worst.index
        message = (
            f"{element(name, at_index)} = {off.got:.9g}, should be {off.expected:.9g} "
            f"± {off.budget:.2g} [{self._names[given]}]"
        )
        if worst.name not in ("max",):
            at = "" if worst.where is None else f" {worst.where}"
            what = "over all" if worst.name == "rms" else f"at {worst.name}{at}"
            message += f"; RMS score {what}: {worst.score:.3g} (limit {worst.limit:.3g})"
        if name in self.narrowed:
            message += f"; computed in {self.narrowed[name]}, and judged as that"
        details = {s.name: {"score": s.score, "limit": s.limit, "at": s.where} for s in statistics}
        details["elements"] = {"count": scores.elements}
        status = Status.PASSED if passed else Status.FAILED
        return Finding(law, status, message, name, worst.score, worst.limit, details)

    def cascaded_findings(self, law: str) -> list[Finding]:
        """One finding for each site: the error in noise floors. Of the first that fails, which
        operations before it are hidden: what is wrong first may be one of these."""
        found: list[Finding] = []
        for name, scores in self.cascade.items():
            if not scores.seen:
                why = self.wrong_shape.get(name, NOT_SHOWN)
                found.append(Finding(law, Status.NOT_EXAMINED, why, name))
                continue
            floors = scores.floors()
            status = Status.PASSED if floors <= LIMIT_FLOORS else Status.FAILED
            message = f"{name}: RMS error since the tokens is {floors:.3g} noise floors"
            first = not any(finding.status is Status.FAILED for finding in found)
            if first and status is Status.FAILED and (hidden := self._hidden_before(name)):
                message += f"; what is wrong first is this or a site that is {NOT_SHOWN}: {hidden}"
            found.append(Finding(law, status, message, name, floors, LIMIT_FLOORS))
        return found

    def _hidden_before(self, name: str) -> str:
        """The sites between one that nothing judges by itself and those that are shown."""
        waiting = [name] if name in self.hidden_input else []
        between: set[str] = set()
        while waiting:
            for before in self._sites[waiting.pop()].inputs:
                if not self.cascade[before].seen and before not in between:
                    between.add(before)
                    waiting.append(before)
        return ", ".join(site for site in self._sites if site in between)


def bits_of(value_TV: Floats) -> int:
    """A checksum of the bits and of their format: what is large need not be kept to be known
    again."""
    crc = zlib.crc32(f"{value_TV.dtype} {value_TV.shape}".encode())
    for row_V in value_TV:
        crc = google_crc32c.extend(crc, np.ascontiguousarray(row_V).tobytes())
    return crc


def _from(expected: Measured, first: int) -> Measured:
    """What was expected at the positions from ``first`` on."""
    budget = None if expected.budget is None else expected.budget[first:]
    return Measured(expected.value[first:], budget)


def _budget(expected: Measured) -> Floats:
    """An operation's result always has one; only a tensor that was shown has none."""
    assert expected.budget is not None, "the oracle's operations return their budget"
    return expected.budget
