"""The law of the logits: the whole model, from the tokens to the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.graph.cascade import LIMIT_FLOORS, Lockstep
from gpt_verify.graph.outliers import Outliers
from gpt_verify.numerics.precision import Precision
from gpt_verify.numerics.scores import Statistic, Worst
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.reference.config import Config
from gpt_verify.text import element

Floats = NDArray[np.floating]
Tokens = NDArray[np.integer]


class LogitsComparison:
    """Squared error and squared noise of the logits over a run, with and without their mean.

    Softmax does not see a constant added to all logits of a position, and ports that centre
    their unembedding add one. It is told apart from an error by comparing both ways. Where the
    correct logits of a position are one number, as of one token or of equal rows of the head, that
    constant is all that they say, and it counts.
    """

    def __init__(self, config: Config, weights: DeclaredWeights, precision: Precision) -> None:
        self._config, self._weights, self._precision = config, weights, precision
        self._error = self._noise = self._centred_error = self._centred_noise = 0.0
        self._largest_shift = self._spread = 0.0
        self._worst: Worst | None = None
        self._outliers = Outliers(config.n_vocab, LIMIT_FLOORS)
        self._input = -1
        self.complaint: str | None = None

    def begin(self) -> None:
        """A new input is about to be compared."""
        self._input += 1

    def add(self, tokens_BT: Tokens, logits_BTV: Floats) -> None:
        """Compare one call of a port that shows nothing else."""
        self.begin()
        self.add_again(tokens_BT, logits_BTV)

    def add_again(
        self,
        tokens_BT: Tokens,
        logits_BTV: Floats,
        locksteps: Sequence[Lockstep] | None = None,
        at: Sequence[int] | None = None,
    ) -> None:
        """Compare other logits of the input that was begun last.

        Args:
            locksteps: of its rows, where there are some; they may have been asked for logits
                before.
            at: the positions whose logits these are; all where None.
        """
        if not self.accepts(tokens_BT, logits_BTV, at):
            return
        if locksteps is None:
            locksteps = [
                Lockstep(self._config, self._weights, self._precision, row) for row in tokens_BT
            ]
        for row, lockstep in enumerate(locksteps):
            with np.errstate(all="ignore"):  # what overflows is reported, not warned about
                for _ in self.add_row(row, logits_BTV[row], lockstep, at):
                    pass

    def accepts(
        self, tokens_BT: Tokens, logits_BTV: Floats, at: Sequence[int] | None = None
    ) -> bool:
        """Shape and dtype first; a complaint is a finding, and nothing further is compared."""
        rows, length = tokens_BT.shape
        shape = (rows, length if at is None else len(at), self._config.n_vocab)
        if logits_BTV.shape != shape:
            self.complaint = f"logits have shape {list(logits_BTV.shape)}, should be {list(shape)}"
        elif not np.issubdtype(logits_BTV.dtype, np.floating):
            self.complaint = (
                f"logits have dtype {logits_BTV.dtype}, should be a floating-point type"
            )
        return self.complaint is None

    def add_row(
        self, row: int, logits_TV: Floats, lockstep: Lockstep, at: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Floats, Floats]]:
        """Compare one sequence, or some of its positions, tile by tile, yielding ``(first token,
        error, noise)`` of each.

        Of the noise R draws, with the error R + 1 deviations.
        """
        sums: Floats = np.zeros(0)
        squares: Floats = np.zeros(0)
        outliers = self._outliers.row((self._input, row), at)
        one_T1: Floats | None = None
        for first, exact, noise in lockstep.logits():
            if at is not None:
                exact, noise = exact[list(at)], noise[:, list(at)]
            one_T1 = exact[:, :1].copy() if one_T1 is None else one_T1
            self._spread += float(np.sum((exact - one_T1) ** 2))
            got = np.asarray(logits_TV[:, first : first + exact.shape[-1]], np.float64)
            error = np.where(np.isfinite(got), got - exact, np.inf)
            deviations = np.concatenate([error[None], noise])
            sums = deviations.sum(axis=-1) + (sums if sums.size else 0.0)
            squares = (deviations**2).sum(axis=-1) + (squares if squares.size else 0.0)
            outliers.add(first, deviations)
            worst = np.unravel_index(int(np.argmax(np.abs(error))), error.shape)
            size = float(np.abs(error[worst]))
            if self._worst is None or size > self._worst.score:
                position = int(worst[0]) if at is None else at[int(worst[0])]
                index = (self._input, row, position, first + int(worst[1]))
                self._worst = Worst(index, float(got[worst]), float(exact[worst]), 0.0, size)
            yield first, error, noise
        outliers.done()
        n = self._config.n_vocab
        self._error += float(squares[0].sum())
        self._noise += float(squares[1:].mean(axis=0).sum())
        centred = np.maximum(squares - sums**2 / n, 0.0)
        self._centred_error += float(centred[0].sum())
        self._centred_noise += float(centred[1:].mean(axis=0).sum())
        self._largest_shift = max(self._largest_shift, float(np.max(np.abs(sums[0] / n))))

    @property
    def floors(self) -> float | None:
        """RMS error of the logits in noise floors."""
        if self._worst is None:
            return None
        return _ratio(self._error, self._noise)

    def findings(self) -> list[Finding]:
        if self.complaint:
            return [Finding("logits", Status.FAILED, self.complaint, "logits")]
        floors = self.floors
        if floors is None or self._worst is None:
            return [Finding("logits", Status.NOT_EXAMINED, "no logits were compared", "logits")]
        message = (
            f"{element('logits', self._worst.index, numbered=True)} = {self._worst.got:.9g}, "
            f"should be {self._worst.expected:.9g}; "
            f"RMS error {floors:.3g} noise floors"
        )
        centred = _ratio(self._centred_error, self._centred_noise)
        differ = self._spread > self._noise
        if floors > LIMIT_FLOORS and centred <= LIMIT_FLOORS and differ:
            message = (
                f"equal up to a constant for each position (at most {self._largest_shift:.3g}): "
                f"RMS error apart from it {centred:.3g} noise floors"
            )
            floors = centred
        every = [Statistic("rms", floors, LIMIT_FLOORS), *self._outliers.statistics()]
        details = {s.name: {"score": s.score, "limit": s.limit, "at": s.where} for s in every}
        worst = max(every, key=lambda s: np.inf if np.isnan(s.ratio) else s.ratio)
        if floors <= LIMIT_FLOORS < worst.ratio * LIMIT_FLOORS:
            place, score = self._place(worst), worst.score
            message += f" over all, {score:.3g} {place} (limit {worst.limit:.3g})"
        else:
            worst = every[0]
        status = Status.PASSED if worst.ratio <= 1.0 else Status.FAILED
        score, limit = worst.score, worst.limit
        return [Finding("logits", status, message, "logits", score, limit, details=details)]

    def _place(self, found: Statistic) -> str:
        """Where the logits are wrong, of which a mean over all of them says nothing."""
        if found.name == "token":
            return f"at token {found.where}"
        one = found.name == "max"
        at = self._outliers.worst_element if one else self._outliers.worst_position
        return f"at {element('logits', at, numbered=True)}{' alone' if one else ''}"


def _ratio(error: float, noise: float) -> float:
    if error == 0.0:
        return 0.0
    return float(np.sqrt(error / noise)) if noise > 0 else float("inf")
