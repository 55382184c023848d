"""The law of symmetry: weights that are rewritten so that they mean the same give the same output.

A port is held against itself, before and after, so this is a witness that knows no reference: that
it holds of GPT-2 follows from the paper. Only the noise floor is the oracle's, of the very weights
that were written. What is rewritten is exact in the port's format (``symmetry_transforms``), so
that in float64 a difference of 1e-12 is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.config import Config
from reference.weights import tensor_table
from verify.checks.subject import NotExamined, Subject, same_bits
from verify.checks.symmetry_floor import symmetry_floor
from verify.checks.symmetry_transforms import (
    Symmetry,
    heads,
    kind_of,
    neurons,
    rotate,
    scale,
    shift,
)
from verify.checks.symmetry_writes import Stored, Write
from verify.checks.twin import throughout
from verify.findings import Finding, Status
from verify.numerics.cascade import LIMIT_FLOORS
from verify.numerics.precision import PRECISIONS
from verify.ports.port import Floats

Array = NDArray[Any]

#: Positions of the input.
_LENGTH = 16
#: Parameters that are rewritten at most, which bounds what is kept to put them back; of a larger
#: model, only some layers are rewritten.
_MOST = 1 << 28


def check_heads(subject: Subject) -> Iterable[Finding]:
    """The order of the heads does not matter."""
    if subject.config.n_head == 1:
        raise NotExamined("one head has no other order")
    return [_held(subject, heads_of(subject))]


def check_neurons(subject: Subject) -> Iterable[Finding]:
    """The order of the MLP's neurons does not matter."""
    return [_held(subject, neurons_of(subject))]


def check_scale(subject: Subject) -> Iterable[Finding]:
    """Queries may be multiplied by what keys are divided by."""
    if subject.config.n_ctx == 1:
        raise NotExamined("one position attends to itself, whatever its query and key")
    return [_held(subject, scale_of(subject))]


def check_rotate(subject: Subject) -> Iterable[Finding]:
    """Values may be rotated within a head, where c_proj rotates back."""
    return [_held(subject, rotate_of(subject))]


def check_shift(subject: Subject) -> Iterable[Finding]:
    """Nothing reads the mean of the residual stream."""
    return [_held(subject, shift_of(subject))]


def heads_of(subject: Subject) -> Symmetry:
    return heads(subject.config, subject.rng(*b"heads"))


def neurons_of(subject: Subject) -> Symmetry:
    return neurons(subject.config, subject.rng(*b"neurons"))


def scale_of(subject: Subject) -> Symmetry:
    return scale(subject.config, subject.precision, subject.rng(*b"scale"))


def rotate_of(subject: Subject) -> Symmetry:
    return rotate(subject.config, subject.precision, subject.rng(*b"rotate"))


def shift_of(subject: Subject) -> Symmetry:
    return shift(subject.weights, subject.precision)


def tensors_of(symmetry: Symmetry, config: Config) -> dict[str, str]:
    """Tensor → where it is, ``layer 3``, of all that are rewritten."""
    table = tensor_table(config)
    every = [name for name in table if symmetry.step(name)]
    inside = [name for name in every if name != kind_of(name)]
    each = sum(table[name].size for name in inside) // config.n_layer
    most = max(1, min(config.n_layer, _MOST // each))
    layers = {f"h{round(i)}" for i in np.linspace(0, config.n_layer - 1, most)}
    return {
        name: f"layer {name[1 : name.index('/')]}" if name in inside else name
        for name in every
        if name not in inside or name.split("/")[0] in layers
    }


@dataclass(frozen=True)
class _Change:
    """What the rewriting did to the logits in one arithmetic.

    Attributes:
        floors: RMS change in noise floors; NaN where nothing can be said.
        message: of the logit that changed most.
    """

    floors: float
    message: str


def _held(subject: Subject, symmetry: Symmetry) -> Finding:
    trial = _Trial(subject, symmetry)
    with trial.stored.rewriting() as rewrite:
        changes = trial.changes(rewrite)
        law, score = f"symmetry.{symmetry.name}", max(c.floors for c in changes.values())
        details: dict[str, Any] = {name: change.floors for name, change in changes.items()}
        if score <= LIMIT_FLOORS:
            within = ", ".join(f"{c.floors:.3g} noise floors in {n}" for n, c in changes.items())
            message = f"{symmetry.done}: within {within}{trial.left_out}"
            return Finding(law, Status.PASSED, message, None, score, LIMIT_FLOORS, details)
        worst = max(changes, key=lambda name: changes[name].floors)
        where = trial.where(rewrite, worst)
    message = f"{changes[worst].message} after {symmetry.done}: {symmetry.wrong}"
    if where:
        message += f" in {', '.join(where)}"
    return Finding(law, Status.FAILED, message, None, score, LIMIT_FLOORS, details)


class _Trial:
    """One rewriting of one port.

    Raises:
        NotExamined: what is to be rewritten cannot be found for certain, or not be written.
    """

    def __init__(self, subject: Subject, symmetry: Symmetry) -> None:
        self._subject, self._symmetry = subject, symmetry
        self._places = tensors_of(symmetry, subject.config)
        self.stored = Stored(subject, list(self._places))
        self.left_out = self._leave_out_what_is_doubtful()
        length = min(subject.config.n_ctx, _LENGTH)
        self._tokens = subject.tokens(1, length, *b"symmetry")
        self._twin: bool | None = None

    def _leave_out_what_is_doubtful(self) -> str:
        doubtful = [name for name in self._places if self.stored.doubtful(name)]
        # Zeros stay zeros, whatever they are zeros of, where nothing is added.
        linear = [name for name in doubtful if self._symmetry.steps[kind_of(name)].linear]
        if wrong := [name for name in linear if self.stored.original(name).any()]:
            raise NotExamined(f"{wrong[0]} looks like another tensor, or like itself transposed")
        added = [name for name in doubtful if name not in linear]
        for name in added:
            del self._places[name]
        if not self._places:
            raise NotExamined("no tensor can be told from others that are all alike")
        self.stored = Stored(self._subject, list(self._places))
        return f" (left out, being all alike: {', '.join(added)})" if added else ""

    def changes(self, rewrite: Write) -> dict[str, _Change]:
        """What the rewriting changes, by arithmetic.

        Raises:
            NotExamined: the logits are not finite, or what is written does not show in them.
        """
        rewrite(self._base)
        before = self._logits()
        rewrite(self._after)
        after = self._logits()
        changes = {name: self._change(name, before[name], after[name]) for name in before}
        changes = {name: c for name, c in changes.items() if not np.isnan(c.floors)}
        if not changes:
            raise NotExamined("its logits are not finite")
        if all(same_bits(before[name], after[name]) for name in before):
            rewrite(self._other)
            if all(same_bits(before[name], value) for name, value in self._logits().items()):
                raise NotExamined("what is written to its weights does not show in its logits")
        return changes

    def where(self, rewrite: Write, arithmetic: str) -> list[str]:
        """The places at which the rewriting alone changes the output.

        Raises:
            NotExamined: the logits change by themselves, or the port computes with copies.
        """
        rewrite(self._base)
        before, again = (self._logits()[arithmetic] for _ in range(2))
        if self._change(arithmetic, before, again).floors > LIMIT_FLOORS:
            raise NotExamined("its logits are not the same twice")
        for tensor in self._places:
            rewrite(self._other, [tensor])
            if same_bits(before, self._logits()[arithmetic]):
                raise NotExamined(
                    f"what is written to {tensor} does not show in its logits: it computes with "
                    "something else"
                )
            rewrite(self._base, [tensor])
        wrong = []
        for place in dict.fromkeys(self._places.values()):
            here = [tensor for tensor, where in self._places.items() if where == place]
            rewrite(self._after, here)
            if self._change(arithmetic, before, self._logits()[arithmetic]).floors > LIMIT_FLOORS:
                wrong.append(place)
            rewrite(self._base, here)
        return wrong

    def _base(self, tensor: str, original: Array) -> Array:
        return self._symmetry.steps[kind_of(tensor)].based(original)

    def _after(self, tensor: str, original: Array) -> Array:
        step = self._symmetry.steps[kind_of(tensor)]
        return step.after(step.based(original))

    def _other(self, tensor: str, original: Array) -> Array:
        """Quite another tensor, which must show."""
        signs = self._subject.rng(*b"other").choice([-1.0, 1.0], original.shape)
        return signs * (float(np.sqrt(np.mean(np.square(original, dtype=np.float64)))) or 1.0)

    def _logits(self) -> dict[str, Floats]:
        """By arithmetic, of the one sequence."""
        port = self._subject.port
        found: dict[str, Floats] = {port.dtype: port.logits(self._tokens)[0]}
        if self._twin is not False and port.float64 is not None and port.dtype != "float64":
            try:
                with port.float64() as twin:
                    if self._twin is None:
                        self._twin = throughout(twin, self._tokens)
                    if self._twin:
                        found["float64"] = twin.logits(self._tokens)[0]
            except Exception:  # the law of architecture says that it does not run in float64
                self._twin = False
        return found

    def _change(self, arithmetic: str, before_TV: Floats, after_TV: Floats) -> _Change:
        if not np.isfinite(before_TV).all():
            return _Change(float("nan"), "")
        if not np.isfinite(after_TV).all():
            # float16's range ends at 65504, which is no mistake of the port's.
            floors = float("nan") if arithmetic == "float16" else float("inf")
            return _Change(floors, "logits are not finite")
        difference_TV = after_TV.astype(np.float64) - before_TV
        # Before and after are noisy, both.
        floor_T = np.sqrt(2) * symmetry_floor(
            self._subject, self._symmetry, self._tokens[0], PRECISIONS[arithmetic]
        )
        squares_T = np.mean(difference_TV**2, axis=-1) / floor_T**2
        t, v = np.unravel_index(int(np.argmax(np.abs(difference_TV))), difference_TV.shape)
        floors = float(np.sqrt(np.mean(squares_T)))
        message = (
            f"logits[{t}, {v}] = {after_TV[t, v]:.9g}, should be {before_TV[t, v]:.9g} "
            f"± {floor_T[t]:.2g} ({floors:.3g} noise floors in {arithmetic})"
        )
        return _Change(floors, message)
