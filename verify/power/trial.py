"""One port of which it is known what is wrong with it, judged: was it found?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.engines import tensorflow
from gpt_verify.errors import GptVerifyError
from gpt_verify.faults.fault import Fault
from gpt_verify.findings import Finding, PortReport, Status, concerns
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.floor import measure_floor
from gpt_verify.inputs import Input, default_inputs, seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.table import CHECKS
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights, Widened
from gpt_verify.port import FLOAT64_COPY, TOKENIZERS
from gpt_verify.power import baselines
from gpt_verify.power.alike import same_function
from gpt_verify.power.injection import (
    EVERYWHERE,
    LOGITS,
    TENSORFLOW,
    Injection,
    correct_port,
    damaged,
    port_with,
)
from gpt_verify.power.outcome import CorrectOutcome, FaultOutcome
from gpt_verify.power.reading import reads_otherwise
from gpt_verify.power.variants import variants_of
from gpt_verify.process.restored import restored
from gpt_verify.reference import forward
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.port import Port
    from gpt_verify.process.worker import Worker

Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]

_UNSEEN = Status.NOT_EXAMINED
#: In float64, fewer floors than this are what rounding leaves of nothing.
_BLIND = 1e-6
#: An input as long as this has the first token and the last in it.
_BOTH_ENDS = 8
#: Tokens of the largest input that a correct variant is run on beside the short ones.
_LARGEST = 512


class Bench:
    """One checkpoint, on which faults and variants are tried one after another, in a process that
    is put back as it was after each: some faults are that they change it.

    Args:
        checkpoint: the correct weights.
        seed: of the inputs that faults are tried on.
        every_law: check every law on every fault in all layers; otherwise, and against the
            other forms in any case, the law that must refute it alone. The weights, the sites and
            the logits are compared, and what failed is diagnosed, in any case.
    """

    def __init__(self, checkpoint: Checkpoint, seed: int, every_law: bool = False) -> None:
        # Read once: every trial asks for every tensor several times.
        self.checkpoint = replace(checkpoint, tensors=dict(checkpoint.tensors))
        self.seed, self.every_law = seed, every_law
        self._right: dict[int, baselines.Shown] = {}
        self._shared: tuple[int, SharedWeights] | None = None
        self._exact: list[tuple[Input, list[Floats], list[Floats]]] = []
        self._tensorflow: Worker | None = None
        #: Whether the port that was compared last moves a bit of the logits.
        self._moves = False

    def fault(self, injection: Injection) -> FaultOutcome:
        """A short input first; what it does not show in full is tried on the default ones."""
        batch, long = short_inputs(self.checkpoint, self.seed)
        # What acts at a site does so in one row; what lies around the model needs two.
        fault = CATALOGUE[injection.fault]
        first = long if fault.predict is not None else batch
        found = self._tried(injection, "short", [first])
        # From logits alone a fault is named on sequences of the filter's own: others add nothing.
        named = injection.form == LOGITS or (found.localised is not False and found.explained)
        blind = injection.form == LOGITS and not (found.floors or 0) >= 1
        if (found.detected and named) or not found.expected or blind:
            return found
        inputs = default_inputs(self.checkpoint.config, self.seed)
        return self._tried(injection, "default", inputs, found)

    def correct(self, name: str, seed: int, laws: Collection[str] | None = None) -> CorrectOutcome:
        """A correct variant on the inputs of one seed, against these laws; all where None."""
        checkpoint, shared = self.checkpoint, self._measured_once(seed)
        caught: dict[str, bool] = {}

        def build() -> Port:
            port = variants_of(checkpoint.config)[name](checkpoint)
            caught.update(self._caught(port, seed))
            return port

        report = _judged(
            name, checkpoint, varied_inputs(checkpoint, seed), seed, build, laws, shared
        )
        failures = [str(finding) for finding in _failed(report)]
        return CorrectOutcome(
            name,
            seed,
            report.verdict.value,
            tuple(failures[:3]) if failures or not report.error else (report.error,),
            report.explained_by,
            caught,
        )

    def _tried(
        self,
        injection: Injection,
        inputs: str,
        items: Sequence[Input],
        before: FaultOutcome | None = None,
    ) -> FaultOutcome:
        fault = CATALOGUE[injection.fault]
        laws = None
        if not self.every_law or injection.form != EVERYWHERE:
            laws = {law.id for law in CHECKS if fault.law and concerns(fault.law, law.id)}
        checkpoint, shared = self.checkpoint, self._measured_once(self.seed)
        report = _judged(
            injection.fault,
            checkpoint,
            items,
            self.seed,
            lambda: port_with(fault, injection, checkpoint, self._process(injection)),
            laws,
            shared,
        )
        failed = _failed(report)
        first = str(failed[0]) if failed else report.error or ""
        if before is None:
            with restored():
                unlike, floors, caught = self._measured(fault, injection)
        else:
            unlike, floors, caught = before.unlike, before.floors, before.baselines
        return FaultOutcome(
            injection,
            fault.family,
            fault.law,
            inputs,
            report.verdict.value,
            any(fault.law is not None and concerns(fault.law, f.id) for f in failed),
            self._sites(fault, injection, report),
            report.first_divergence,
            report.explained_by,
            tuple(name for cause in report.causes for name in cause.instead),
            unlike,
            floors,
            caught,
            first,
            report.seconds + (before.seconds if before else 0.0),
            same_function(checkpoint, short_inputs(checkpoint, self.seed), injection, report),
        )

    def _process(self, injection: Injection) -> Worker | None:
        """One for all ports in TensorFlow: it takes seconds to start."""
        if injection.form != TENSORFLOW:
            return None
        if self._tensorflow is None:
            self._tensorflow = tensorflow.start()
        return self._tensorflow

    def _measured_once(self, seed: int) -> SharedWeights:
        """The weights, with what one trial has had measured for the next one of the same seed. Of
        one seed at a time: it is much."""
        if self._shared is None or self._shared[0] != seed:
            self._shared = seed, SharedWeights(self.checkpoint.tensors, record=True)
        return self._shared[1]

    def _sites(self, fault: Fault, injection: Injection, report: PortReport) -> tuple[str, ...]:
        """The sites at which the fault acts; in place of one that the port does not show, the next
        one that is judged: what lies between two shown sites is one operation. The same holds where
        all of its sites are correct as they are shown: it strikes after that."""
        if injection.form == LOGITS:
            return ()
        order = list(sites(self.checkpoint.config))
        overrides = fault.overrides(self.checkpoint.config, injection.layers)
        concerned = {sites(self.checkpoint.config)[at].layer for at in overrides}
        local = [f for f in report.findings if f.id in ("architecture", "activations.local")]
        judged = {f.site for f in local if f.status is not _UNSEEN}
        if local and not judged and self.checkpoint.config.own is not None:
            return ()  # a family whose inside is not seen
        found = {at for at in order if at in overrides}
        table, early = sites(self.checkpoint.config), fault.sites.early
        found |= {at for at in order if table[at].kind in early and table[at].layer in concerned}
        shown_right = found.isdisjoint(f.site for f in local if f.status is Status.FAILED)
        # What follows experts is judged from the tokens on alone.
        cascaded = {
            f.site
            for f in report.findings
            if f.id == "activations.cascaded" and f.status is not _UNSEEN
        }
        for hidden in found - (set() if shown_right else judged):
            after = order[order.index(hidden) + 1 :]
            for seen in (judged, cascaded):
                found |= {next((site for site in after if site in seen), hidden)}
        return tuple(at for at in order if at in found)

    def _measured(
        self, fault: Fault, injection: Injection
    ) -> tuple[bool, float | None, dict[str, bool]]:
        """Whether it changes anything, how visible it is, and who else catches it."""
        if injection.form == LOGITS:
            return self._visible(fault, injection)
        if injection.form == TENSORFLOW:
            return self._damages(fault, injection), None, {}
        if injection.form != EVERYWHERE:
            return True, None, {}
        port = port_with(fault, injection, self.checkpoint)
        caught = self._caught(port, self.seed)
        port.close()
        sure = not fault.needs and self.checkpoint.config.own is None
        return sure or self._moves or self._unlike(fault, injection), None, caught

    def _damages(self, fault: Fault, injection: Injection) -> bool:
        """Some tensor is not as it was."""
        right, wrong = self.checkpoint.tensors, damaged(fault, self.checkpoint, injection.layers)
        return any(
            np.asarray(right[name]).tobytes() != np.asarray(value).tobytes()
            for name, value in wrong.tensors.items()
        )

    def _unlike(self, fault: Fault, injection: Injection) -> bool:
        """Whether a fault that needs something changes anything here: a bit of the logits, an id or
        a text."""
        one = port_with(fault, injection, self.checkpoint)
        if TOKENIZERS in one.offers():
            return reads_otherwise(one, self.checkpoint, self.seed)
        if not fault.predicted:
            return True
        other = correct_port(self.checkpoint)
        items = [
            *short_inputs(self.checkpoint, self.seed),
            *default_inputs(self.checkpoint.config, self.seed),
        ]
        return any(
            one.logits(item.tokens).tobytes() != other.logits(item.tokens).tobytes()
            for item in items
        )

    def _visible(
        self, fault: Fault, injection: Injection
    ) -> tuple[bool, float | None, dict[str, bool]]:
        """How far the fault moves the logits, in float64, in noise floors of float32.

        A fault of the arithmetic is not there in float64: it counts where it moves them further
        than rounding does. So does any fault in a port that cannot be run in float64.
        """
        port = port_with(
            fault, Injection(fault.name, EVERYWHERE, injection.layers), self.checkpoint
        )
        try:
            with _float64(port) as float64_copy:
                floors = self._moved(float64_copy)
        except (KeyError, RuntimeError):  # there is none, or its kernels have no float64
            floors = 0.0
        if floors <= _BLIND and (own := self._moved(port)) > LIMIT_FLOORS:
            floors = own
        return floors > _BLIND, floors, {}

    def _moved(self, port: Port) -> float:
        """How far a port's logits are from the oracle's, in noise floors of float32, apart from a
        constant for each position."""
        squares: list[float] = []
        with np.errstate(all="ignore"):
            for item, exact, floors_ in self._known():
                logits_BTV = np.asarray(port.logits(item.tokens), np.float64)
                for logits_TV, exact_TV, rms_T in zip(logits_BTV, exact, floors_, strict=True):
                    moved_TV = logits_TV - exact_TV
                    moved_TV -= moved_TV.mean(axis=-1, keepdims=True)
                    squares += list(np.mean(moved_TV**2, axis=-1) / rms_T**2)
        floors = float(np.sqrt(np.mean(squares)))
        # A fault that is not finite is as visible as can be.
        return floors if np.isfinite(floors) else float("inf")

    def _known(self) -> list[tuple[Input, list[Floats], list[Floats]]]:
        """The short inputs, with the oracle's logits and the noise floors of each row."""
        if not self._exact:
            weights = DeclaredWeights(self.checkpoint.tensors, FLOAT32)
            for item in short_inputs(self.checkpoint, self.seed):
                exact = [_exact(self.checkpoint, tokens_T) for tokens_T in item.tokens]
                floors = [
                    measure_floor(self.checkpoint.config, weights, FLOAT32, tokens_T).rms_T
                    for tokens_T in item.tokens
                ]
                self._exact.append((item, exact, floors))
        return self._exact

    def _caught(self, port: Port, seed: int) -> dict[str, bool]:
        items, self._moves = short_inputs(self.checkpoint, seed), False
        try:
            if seed not in self._right:
                self._right = {seed: baselines.show(correct_port(self.checkpoint), items)}
            right, shown = self._right[seed], baselines.show(port, items)
            pairs = zip(shown.logits, right.logits, strict=True)
            self._moves = any(a.tobytes() != b.tobytes() for a, b in pairs)
            return baselines.caught(shown, right)
        except (GptVerifyError, RuntimeError, ValueError, IndexError):
            return dict.fromkeys(
                baselines.COMPARISONS, True
            )  # a port that breaks is refused by all


def _judged(
    name: str,
    checkpoint: Checkpoint,
    inputs: Sequence[Input],
    seed: int,
    build: Callable[[], Port],
    laws: Collection[str] | None,
    shared: SharedWeights,
) -> PortReport:
    """One port by itself: the next one finds the process as this one found it."""
    import torch  # noqa: F401  # what is not imported yet cannot be put back

    with restored():
        return judge(
            name,
            checkpoint,
            inputs,
            None,
            "cpu",
            Silent(),
            seed,
            build=build,
            laws=laws,
            shared=shared,
        )


def short_inputs(checkpoint: Checkpoint, seed: int) -> list[Input]:
    """Two rows that differ, and one row beyond the tile of most kernels, with the first token of
    the vocabulary and the last in it: some faults take them for something else."""
    config = checkpoint.config
    rows = min(17, config.n_ctx)
    rng = np.random.default_rng([seed, rows, 2])
    tokens = rng.integers(0, config.n_vocab, (2, rows), dtype=np.int64)
    long = seeded(config, min(65, config.n_ctx), seed)
    if long.tokens.shape[1] >= _BOTH_ENDS:
        ends = long.tokens.copy()
        ends[0, [_BOTH_ENDS // 2, _BOTH_ENDS - 1]] = 0, config.n_vocab - 1
        long = Input(f"{long.name}, with the first token and the last", ends)
    return [Input(f"2 × {rows}", tokens), long]


def varied_inputs(checkpoint: Checkpoint, seed: int) -> list[Input]:
    """Two short rows, one token alone, and one of the default inputs, another one for each seed,
    long ones first."""
    more = [i for i in default_inputs(checkpoint.config, seed) if i.tokens.size <= _LARGEST]
    more.sort(key=lambda item: -item.tokens.size)
    batch, _long = short_inputs(checkpoint, seed)
    return [batch, seeded(checkpoint.config, 1, seed), more[seed % len(more)]]


def _failed(report: PortReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.status is Status.FAILED]


def _exact(checkpoint: Checkpoint, tokens_T: Tokens) -> Floats:
    """The oracle's logits, float64[T, V]."""
    weights = Widened(DeclaredWeights(checkpoint.tensors, FLOAT32))
    *_, (_, logits_TV) = forward(weights, checkpoint.config, tokens_T)
    return logits_TV


def _float64(port: Port) -> AbstractContextManager[Port]:
    return port.offers()[FLOAT64_COPY]()
