"""What a law is handed: one port, and what is needed to judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.files import read_json
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.errors import CheckpointError
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.floor import Floor, least_floor, measure_floor
from gpt_verify.matching.match import Matching
from gpt_verify.numerics.precision import PRECISIONS, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import NotExamined as NotExamined
from gpt_verify.port import Offers, Parameter, Port
from gpt_verify.process.memory import give_back
from gpt_verify.process.state import Loading
from gpt_verify.reference.bpe import BPE
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

#: From so many parameters on, a floor takes seconds. It is not measured where two versions of the
#: same logits are so close that they are within any.
LARGE = 1 << 24


@dataclass(frozen=True)
class FirstCall:
    """What a port made of the first thing that it was asked for in a run.

    Attributes:
        tokens_T: one sequence.
        last_V: the logits of its last position.
    """

    tokens_T: Tokens
    last_V: Floats


@dataclass
class Subject:
    """One port under test.

    Attributes:
        port: what is judged.
        checkpoint: what it is judged against.
        weights: the checkpoint's tensors as the port's precision holds them.
        seed: of everything that is drawn.
        parameters: what the port shows of its weights; empty where it shows none.
        matching: which of them is which tensor; None where it shows none.
        loading: the state of the process before and after the port was built; None where nobody
            looked.
        first_call: what the run began with; None where it began with nothing.
        logits_right: whether the logits of the inputs of the run are the reference's; None where
            they were not compared in this process.
        written: parameters that the port's own calls have changed.
        build: builds another port as this one was built; None where nobody knows how.
        memo: what a law has measured of the port, for the next law; each has keys of its own.
    """

    port: Port
    checkpoint: Checkpoint
    weights: DeclaredWeights
    seed: int = 0
    parameters: Sequence[Parameter] = ()
    matching: Matching | None = None
    loading: Loading | None = None
    first_call: FirstCall | None = None
    logits_right: bool | None = None
    written: Sequence[str] = ()
    build: Callable[[], Port] | None = None
    memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @property
    def offers(self) -> Offers:
        """What the port can do besides its logits."""
        return self.port.offers()

    @property
    def precision(self) -> Precision:
        """The one that the port declares."""
        return PRECISIONS[self.port.dtype]

    @cached_property
    def bpe(self) -> BPE:
        """The tokenizer that lies beside the checkpoint; CheckpointError where there is none."""
        return load(self.checkpoint)

    def rng(self, *key: int) -> np.random.Generator:
        """A stream of its own for each key, the same for the same seed."""
        return np.random.default_rng([self.seed, *key])

    def tokens(self, rows: int, length: int, *key: int) -> Tokens:
        """Random ids int64[rows, length], rows that differ.

        Where there is room, the ids that mean something to somebody are among them, in any place,
        and one token stands twice in a row.
        """
        rng = self.rng(rows, length, *key)
        drawn = rng.integers(0, self.config.n_vocab, (rows, length), dtype=np.int64)
        if length > 2:
            at = int(rng.integers(1, length))
            drawn[-1, at] = drawn[-1, at - 1]
        # No more than a half: what is drawn at random is what tells two sequences apart.
        special = self.special[: drawn.size // 2]
        drawn.reshape(-1)[rng.permutation(drawn.size)[: len(special)]] = special
        return drawn

    @cached_property
    def special(self) -> list[int]:
        """The first id and the last one, which is the end of text where nobody says otherwise, and
        those that ``config.json`` beside the weights calls the beginning, the end and padding."""
        last = self.config.n_vocab - 1
        return [i for i in dict.fromkeys((0, last, *named_ids(self.checkpoint))) if 0 <= i <= last]

    def other_tokens(self, tokens: Tokens, *key: int) -> Tokens:
        """Random ids of the same shape, each different from the given one (where V > 1)."""
        n = self.config.n_vocab
        if n == 1:
            return tokens.copy()
        step = self.rng(tokens.size, *key).integers(1, n, tokens.shape, dtype=np.int64)
        return np.asarray((tokens + step) % n, np.int64)

    def measured(self, tokens_T: Tokens, first: int = 0) -> Floor:
        """What rounding does to the logits from position ``first`` on; kept with the weights.

        NotExamined where the oracle overflows in the port's precision: it has no floor.
        """
        ids = np.ascontiguousarray(tokens_T, np.int64).tobytes()
        # Of the same positions: a floor has the mean over them, and must not depend on which law
        # was the first to ask.
        key = "floor", self.precision.name, first, ids
        measured = self.weights.memo
        floor = measured.get(key)
        if floor is None:
            give_back()  # what the port's run has freed: the oracle's takes as much
            floor = measure_floor(self.config, self.weights, self.precision, tokens_T, first)
            measured[key] = floor
        if not np.isfinite(floor.rms_T).all():
            raise NotExamined(f"the reference overflows in {self.precision.name}")
        return floor

    def floor(self, tokens_T: Tokens, first: int = 0) -> Floats:
        """RMS noise of the logits at each position from ``first`` on, [T - first]: what rounding
        in the port's precision does to the oracle."""
        return self.measured(tokens_T, first).rms_T

    def position_floors(self, squares_T: Floats, tokens_T: Tokens, first: int = 0) -> Floats:
        """How many noise floors two versions of the same logits are apart at each position.

        Args:
            squares_T: mean over the vocabulary of their squared difference, at the positions from
                ``first`` on, not necessarily to the end; infinite where one is not finite.
            tokens_T: the whole sequence.
        """
        if not squares_T.any():
            return np.zeros(len(squares_T))
        return np.sqrt(squares_T) / self.floor(tokens_T, first)[: len(squares_T)]

    def floors(self, difference_TV: Floats, tokens_T: Tokens, first: int = 0) -> float:
        """The same over all positions (RMS); infinite where something is not finite.

        Args:
            difference_TV: of the positions from ``first`` on, not necessarily to the end.
            tokens_T: the whole sequence.
            first: position of the first row of ``difference_TV``.
        """
        if not np.isfinite(difference_TV).all():
            return float("inf")
        squares_T = np.mean(np.asarray(difference_TV, np.float64) ** 2, axis=-1)
        return float(np.sqrt(np.mean(self.position_floors(squares_T, tokens_T, first) ** 2)))

    def floors_off(
        self,
        difference_TV: Floats,
        exact_TV: Floats,
        tokens_T: Tokens,
        first: int = 0,
        finer: float = 1.0,
    ) -> float:
        """How many floors a port is from the reference, RMS over the positions from ``first`` on;
        of a large model no more than that, where it is within the limit (``least_floor``).

        Args:
            difference_TV: the port's logits less the reference's; infinite where not finite.
            exact_TV: the reference's.
            tokens_T: the whole sequence.
            first: position of the first row.
            finer: unit roundoff of the declared precision ÷ that of the arithmetic.
        """
        if self.large:
            squares_T = np.mean(np.asarray(difference_TV, np.float64) ** 2, axis=-1)
            least_T = least_floor(self.config, self.precision, np.mean(exact_TV**2, axis=-1))
            with np.errstate(all="ignore"):
                bound = finer * float(np.sqrt(np.mean(squares_T / least_T**2)))
            if bound <= LIMIT_FLOORS:
                return bound
        return finer * self.floors(difference_TV, tokens_T, first)

    @property
    def large(self) -> bool:
        """Whether a noise floor of the model takes long."""
        return parameter_count(self.config) >= LARGE


def named_ids(checkpoint: Checkpoint) -> list[int]:
    """What ``config.json`` calls the beginning of text, its end, and padding; often nothing."""
    try:
        said = read_json(checkpoint.path / "config.json")
    except CheckpointError:
        return []
    named: list[int] = []
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        found = said.get(key)
        named += [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]
    return named


def same_bits(a: Floats, b: Floats) -> bool:
    """Equal bit for bit, shape and dtype included; NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.itemsize not in (2, 4, 8):  # text, or whatever else a port may return
        return a.tobytes() == b.tobytes()
    bits = np.dtype(f"u{a.dtype.itemsize}")
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return bool(np.array_equal(a.view(bits), b.view(bits)))
