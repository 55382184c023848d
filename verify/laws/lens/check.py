"""The law of the lens: every state of a port, read as if it were the last, says what it should.

Two lenses of a port are judged, as far as it has them. One reads the states that are seen while it
runs with the checkpoint's own ln_f and wte: this is what ``gpt-verify lens`` shows. The other is
the port's own (``Port.lens``): what somebody gets who takes the hidden states that it hands out,
its last norm and its head. Both are checked against the oracle's at every state, every position and
every statistic: the logits by their noise floor, and each statistic by how far it may move when
the logits do (``gpt_verify.laws.lens.budgets``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.laws.lens.budgets import Block, Judged
from gpt_verify.laws.lens.hypotheses import another_head, recognised, sampled
from gpt_verify.laws.lens.oracle import Oracle, oracle, unembedded
from gpt_verify.laws.lens.read import Malformed, PortLens, own, seen
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.lens.engine_numpy import measure_logits
from gpt_verify.lens.states import state_sites
from gpt_verify.numerics.scores import limit_max
from gpt_verify.port import NOT_SHOWN

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]

LAW = "lens"
#: How many of the most probable tokens are compared.
TOP = 5
#: What compares a state with the last one, and with the first one.
TO_FINAL = (
    "rank_final_top1",
    "kl_final_layer_nats",
    "kl_layer_final_nats",
    "js_distance",
    "total_variation",
)
TO_INPUT = ("kl_input_layer_nats",)
#: Positions of the sequence, and fewer where there is much to compare: states × vocabulary ×
#: positions are kept below the second number, and those of a block below the third.
MOST, LEAST, ELEMENTS, BLOCK_ELEMENTS = 48, 8, 14 << 20, 6 << 20


@dataclass
class _Wrong:
    """The statistic that is furthest from where it should be."""

    statistic: str
    where: str
    got: float
    exact: float
    low: float
    high: float
    excess: float

    @property
    def weight(self) -> tuple[bool, float]:
        """What is measured says more than what is counted or listed."""
        return not self.statistic.startswith(("rank", "top")), self.excess

    def describe(self) -> str:
        where = f"{self.statistic}[{self.where}] = {self.got:.9g}, should be "
        if self.statistic.startswith("rank"):
            between = f", from {self.low:g} to {self.high:g} within rounding"
            return where + f"{self.exact:g}" + between * (self.low != self.high)
        return where + f"{self.exact:.9g} ± {abs(self.high - self.exact):.2g}"


@dataclass
class _State:
    """What was found about one state of one lens."""

    lens: str
    squares: list[float] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)
    mistake: str | None = None
    _wrong: dict[str, _Wrong] = field(default_factory=dict)
    _near: dict[str, list[int]] = field(default_factory=dict)

    @property
    def floors(self) -> float:
        return float(np.sqrt(np.mean(self.squares)))

    @property
    def wrong(self) -> _Wrong | None:
        """The statistic that is furthest off."""
        return max(self._wrong.values(), key=lambda wrong: wrong.weight, default=None)

    @property
    def holds(self) -> bool:
        return self.floors <= LIMIT_FLOORS and self.wrong is None

    @property
    def near(self) -> int:
        """Positions at which a rank or the top token is another one, and may be."""
        return len({position for positions in self._near.values() for position in positions})

    def add(self, name: str, judged: Judged, n: int, first: int) -> None:
        """One statistic at some positions, the first of which is ``first``."""
        excess, wrong = judged.excess[n], judged.wrong[n]
        if name == "top_ids" or name.startswith("rank"):
            other = ((judged.got != judged.exact)[n] & ~wrong).reshape(len(wrong), -1)[:, 0]
            self._near.setdefault(name, []).extend((first + np.flatnonzero(other)).tolist())
        self.statistics[name] = max(self.statistics.get(name, 0.0), float(excess.max()))
        if not wrong.any():
            return
        at = np.unravel_index(int(np.argmax(np.where(wrong, excess, -1.0))), wrong.shape)
        where = ", ".join(str(int(i)) for i in (at[0] + first, *at[1:]))
        parts = (judged.got, judged.exact, judged.low, judged.high)
        got, exact, low, high = (float(part[n][at]) for part in parts)
        found = _Wrong(name, where, got, exact, low, high, float(excess[at]))
        known = self._wrong.get(name)
        if known is None or found.weight > known.weight:
            self._wrong[name] = found

    def without(self, names: Sequence[str]) -> None:
        """Leave statistics out: what they compare this state with is wrong by itself."""
        for name in names:
            for known in (self.statistics, self._wrong, self._near):
                known.pop(name, None)


def check_lens(subject: Subject) -> Iterator[Finding]:
    """One finding for each state of the stream."""
    tokens_T = _tokens(subject)
    lenses, malformed = [], []
    missing = []
    for read in (seen, own):
        try:
            lenses.append(read(subject, tokens_T))
        except NotExamined as why:
            missing.append(str(why))
        except Malformed as finding:
            malformed.append(finding)
    for complaint in malformed:
        yield Finding(LAW, Status.FAILED, str(complaint), complaint.site)
    if not lenses:
        if malformed:
            return
        raise NotExamined("; ".join(missing))
    exact = oracle(subject, tokens_T)
    found: dict[str, list[_State]] = {site: [] for site in exact.sites}
    for lens in lenses:
        for site, state in _judge(exact, lens).items():
            found[site].append(state)
    refused = {complaint.site for complaint in malformed}
    for site, states in found.items():
        if states and site not in refused:
            yield _finding(site, states, len(tokens_T))
        elif site not in refused:
            yield Finding(LAW, Status.NOT_EXAMINED, NOT_SHOWN, site)


def _tokens(subject: Subject) -> Tokens:
    config = subject.config
    elements = len(state_sites(config)) * config.n_vocab
    length = min(config.n_ctx, max(LEAST, min(MOST, ELEMENTS // elements)))
    tokens_T: Tokens = subject.tokens(1, length)[0]
    return tokens_T


def _judge(exact: Oracle, lens: PortLens) -> dict[str, _State]:
    """Every state that the lens reads."""
    found = {site: _State(lens.name) for site in lens.sites}
    length, n_vocab = len(exact.tokens_T), len(exact.wte_VD)
    step = max(1, BLOCK_ELEMENTS // (len(lens.sites) * n_vocab))
    kept = []
    for start in range(0, length, step):
        at = slice(start, min(start + step, length))
        got_NPV = _compare_block(exact, lens, at, list(found.values()))
        kept.append(got_NPV[..., sampled(n_vocab)])
    _name_mistakes(exact, lens, found, np.concatenate(kept, axis=1))
    return found


def _name_mistakes(
    exact: Oracle, lens: PortLens, found: dict[str, _State], got_NTS: Floats
) -> None:
    """Of every state that does not hold by itself."""
    first, last = found[lens.sites[0]], found[lens.sites[-1]]
    for end, names in ((last, TO_FINAL), (first, TO_INPUT)):
        if end.floors > LIMIT_FLOORS:
            for state in found.values():
                if state is not end:
                    state.without(names)
    if all(state.holds for state in found.values()):
        return
    heads = _other_heads(exact.subject)
    apart = another_head(exact, lens.precision, lens.sites, got_NTS)
    for n, (site, state) in enumerate(found.items()):
        if state.floors > LIMIT_FLOORS:
            state.mistake = recognised(exact, lens.precision, site, got_NTS[n], heads) or apart


def _compare_block(exact: Oracle, lens: PortLens, at: slice, found: Sequence[_State]) -> Floats:
    """Some positions; the lens's own logits there, [N, P, V]."""
    n_vocab = len(exact.wte_VD)
    other = None if lens.decoded_NTD is None else lens.decoded_NTD[:, at]
    with np.errstate(all="ignore"):  # what is not finite is reported
        decoded = exact.decoded(lens.precision, lens.sites, at)
        y_NPV, budget_NPV, got_NPV = unembedded(lens.precision, decoded, exact.head, n_vocab, other)
        if got_NPV is None:
            assert lens.logits_NTV is not None, "a lens has states or logits"
            got_NPV = lens.logits_NTV[:, at].astype(np.float64)
        score_NPV = np.abs(got_NPV - y_NPV)
        # No error is none, of a logit that cannot be off as well: all of them are 0 there.
        np.divide(score_NPV, budget_NPV, out=score_NPV, where=score_NPV != 0)
        squares_NP = np.mean(np.square(score_NPV, out=score_NPV), axis=-1)
    squares_NP = np.where(np.isfinite(squares_NP), squares_NP, np.inf)
    # A correct port is as far off at a position as it is, if no further than the limit; and of its
    # logits there none further than the union bound over all tokens has it.
    floors_NP = np.clip(np.sqrt(squares_NP), 1.0, LIMIT_FLOORS)
    within_NP = limit_max(n_vocab) * floors_NP * budget_NPV.max(axis=-1)
    tokens_P, next_P = exact.tokens_T[at], exact.tokens_T[at.start + 1 : at.stop + 1]
    padded_P = np.append(next_P, np.zeros(len(tokens_P) - len(next_P), np.int64))
    measured = measure_logits(np.swapaxes(got_NPV, 0, 1), tokens_P, padded_P, TOP)
    got = {name: np.swapaxes(values, 0, 1) for name, values in measured.items()}
    judged = Block(y_NPV, within_NP, tokens_P, next_P).judged(got)
    for n, state in enumerate(found):
        state.squares += squares_NP[n].tolist()
        for name, statistic in judged.items():
            state.add(name, statistic, n, at.start)
    return got_NPV


def _other_heads(subject: Subject) -> dict[str, Floats]:
    """Matrices of the port that have the head's size and are not the head."""
    wte_VD = subject.weights[subject.config.head]
    heads: dict[str, Floats] = {}
    for parameter in subject.parameters:
        if sorted(parameter.shape) == sorted(wte_VD.shape):
            value = parameter.read()
            value = value if value.shape == wte_VD.shape else value.T
            if not np.array_equal(value, wte_VD):
                heads[parameter.name] = value
    return heads


def _finding(site: str, states: Sequence[_State], positions: int) -> Finding:
    """Of all lenses that read this state, the one that is furthest off first."""
    worst = max(states, key=lambda state: (not state.holds, state.floors))
    near = sum(state.near for state in states)
    lenses = {
        state.lens: {
            "floors": state.floors,
            "near_ties": state.near,
            "statistics": state.statistics,
            "mistake": state.mistake,
        }
        for state in states
    }
    details = {"positions": positions, "near_ties": near, "lenses": lenses}
    if worst.holds:
        each = ", ".join(f"{state.lens} {state.floors:.2g}" for state in states)
        count = min(len(state.statistics) for state in states)
        ties = f"{near or 'no'} near-tie{'s' * (near != 1)}"
        message = (
            f"{site}: RMS error of the logits in noise floors: {each}; {count} "
            f"statistics at {positions} position{'s' * (positions > 1)} within budget, {ties}"
        )
        return Finding(LAW, Status.PASSED, message, site, worst.floors, LIMIT_FLOORS, details)
    what = worst.wrong.describe() if worst.wrong else "logits"
    message = f"{what} [{worst.lens}; RMS error of the logits {worst.floors:.3g} noise floors]"
    if worst.mistake:
        message += f": {worst.mistake}"
    score, limit = worst.floors, LIMIT_FLOORS
    if score <= limit and worst.wrong:
        score, limit = worst.wrong.excess, 1.0
    return Finding(LAW, Status.FAILED, f"{site}: {message}", site, score, limit, details)
