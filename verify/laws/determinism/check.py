"""The laws of determinism: the same bits twice, nothing left in training mode, and the process
left as it was found.

A port that drops at random, or that sets a global switch, may be right once: in this run, in this
process, before its neighbour changes the switch back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Named, Status, naming
from gpt_verify.laws.agreement import Agreement
from gpt_verify.laws.explain import agreed
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.port import (
    ACTIVATIONS,
    DRAWS,
    DROPOUT,
    GRADIENTS,
    LOSS,
    PADDED,
    PADDED_AT,
    PLAIN_CALL,
    STEP,
    TRAINING,
)
from gpt_verify.process.state import RANDOM_STATES, Change, changed_by, changes, seeded_by, snapshot
from gpt_verify.text import listing

if TYPE_CHECKING:
    from gpt_verify.port import Port

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]

MODE, STATE = "determinism.mode", "determinism.state"
_EVEN_SO = "the bits of two calls are the same even so"
#: Tokens of a run that looks for random numbers: dropout leaves none of so many values alone.
LENGTH = 33
#: Calls that have the bits of the second one, where those of the first differ.
SETTLED = 3
#: Names in one line, at most.
NAMED = 4
_NOTHING_MOVES = (
    "no random state of the process moves: something is kept from call to call, read before it "
    "is written, summed in no fixed order, or drawn from a generator of the port's own"
)

#: Any of them may be what is on: which one, the sites that it makes wrong tell.
DROPOUTS = ("embeddings-dropout", "attention-dropout", "residual-dropout")
#: In the name of a part that is a dropout, or of torch's operations for one.
_DROPS = ("dropout", "bernoulli")
#: What a call draws that is added, by torch's names for it, and not dropped.
_NOISE = ("normal", "randn")
#: Random states that torch neither seeds nor draws from.
_FOREIGN = {"NumPy's random state", "Python's random state"}
#: Lengths of rows that differ by no more than this part are one.
_ALIKE = 1e-3
#: A form: what no catalogue lists, and what happens shows.
WRITES = "weights-written"
#: Name → sentence that completes "the port …".
NAMES = {WRITES: "writes to its weights when it is called"}
#: What is changed → the fault of the catalogue that changes it.
_SETS = {
    "torch's default dtype": "determinism-default-dtype",
    "torch's grad mode": "determinism-grad-mode",
    "torch's threads": "determinism-threads",
    "NumPy's error handling": "determinism-numpy-errors",
    "torch's deterministic algorithms": "determinism-algorithms",
    "torch's deterministic algorithms, warnings only": "determinism-algorithms",
    "torch's float32 matmul precision": "determinism-float32-products",
    "TF32 in CUDA matmuls": "determinism-float32-products",
    "float32 precision": "determinism-float32-products",
    "float32 precision of CUDA matmuls": "determinism-float32-products",
    "float32 precision of mkldnn matmuls": "determinism-float32-products",
}


class Determinism:
    """Every call is made twice; the bits must be the same.

    Engines that keep keys and values of what they were asked last compute less the second time, and
    may round otherwise. That is no other result where it is within the noise of rounding, and where
    the bits stay the same from then on, which those of no random number do.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._calls = self._settled = 0
        self._difference: str | None = None
        self._agreement = Agreement(subject)

    def add(
        self,
        name: str,
        tokens_BT: Tokens,
        first: Floats,
        second: Floats,
        again: Callable[[], Floats],
    ) -> bool:
        """Whether the bits of two calls on one input are the same.

        Args:
            name: of the input.
            tokens_BT: the input.
            first, second: the logits of the two calls, of all positions or of the last ones.
            again: calls once more.
        """
        self._calls += 1
        words = _difference(first, second)
        if words is None:
            return True
        if self._difference is None:
            if self._settles(name, tokens_BT, first, second, again):
                self._settled += 1
            else:
                self._difference = f"{name}: {words}"
        return False

    def _settles(
        self,
        name: str,
        tokens_BT: Tokens,
        first: Floats,
        second: Floats,
        again: Callable[[], Floats],
    ) -> bool:
        """Whether only the first call had other bits, which are as close as rounding is."""
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        try:
            for row, tokens_T in enumerate(tokens_BT):
                begins = len(tokens_T) - first.shape[1]
                self._agreement.compare(name, second[row], first[row], tokens_T, begins)
        except NotExamined:
            return False
        last = np.array(second)
        same = all(same_bits(np.array(again()), last) for _ in range(SETTLED))
        return same and self._agreement.holds()

    def findings(self, port: Port, tokens: Tokens) -> list[Finding]:
        """``tokens``: of one more run of the port, made only where the bits differ, to say why."""
        law = "determinism"
        if self._difference:
            moved = changed_by(lambda: port.logits(tokens))
            message = f"{self._difference}; {_why(moved) or _NOTHING_MOVES}"
            named = naming(_fault_of_bits(port, tokens, moved))
            return [Finding(law, Status.FAILED, message, named=named)]
        if not self._calls:
            return [Finding(law, Status.NOT_EXAMINED, "the port was not run twice")]
        said = f"{self._calls} inputs run twice, same bits"
        if self._settled:
            said += (
                f" but for {self._settled}, whose first call is within rounding of all later ones, "
                f"at most {self._agreement.floors:.2g} noise floors apart: something is kept from "
                "call to call"
            )
        return [Finding(law, Status.PASSED, said)]


def _difference(first: Floats, second: Floats) -> str | None:
    """How two calls on the same tokens differ; None where they have the same bits."""
    if first.shape != second.shape:
        return f"shape {list(first.shape)}, then {list(second.shape)}"
    if first.dtype != second.dtype:
        return f"dtype {first.dtype}, then {second.dtype}"
    if same_bits(first, second):
        return None
    a, b = (np.ascontiguousarray(x).view(np.uint8).reshape(x.size, -1) for x in (first, second))
    count = int((a != b).any(axis=-1).sum())
    return f"{count} of {first.size} logits differ between two calls"


def _why(moved: Sequence[Change]) -> str | None:
    """What random state a call moves, where it moves one."""
    drawn = [change.name for change in moved if change.is_random]
    if not drawn:
        return None
    return f"a call draws from {listing(drawn, NAMED)}: dropout or another random operation is on"


def _fault_of_bits(port: Port, tokens: Tokens, moved: Sequence[Change]) -> str | None:
    """The fault of the catalogue that makes two calls differ, where it can be no other one.

    None as well where something is dropped whatever the mode is: which dropout that is, the sites
    tell (``gpt_verify.diagnosis.dropout``).
    """
    drawn = _draws(port, tokens) or []
    states = {change.name for change in moved if change.is_random}
    if inner := _left_on(port):
        if DROPOUT not in port.offers():  # of what has no mode it is not known that it drops
            return None
        places = [words.rpartition(" (")[0] for words in drawn]
        inside = all(any(_within(place, part) for part in inner) for place in places)
        return "determinism-training-mode" if places and inside else None
    if drawn:
        operations = [words.rpartition(" (")[2] for words in drawn]
        noise = all(any(word in operation for word in _NOISE) for operation in operations)
        return "determinism-noise" if noise else None
    if not states:  # of this process; a port that does not show what it draws may be in another
        return "determinism-own-state" if DRAWS in port.offers() else None
    return "determinism-foreign-draws" if states <= _FOREIGN else None


def check_mode(subject: Subject) -> list[Finding]:
    """No part is in training mode with a dropout that acts or would act, and nothing drops
    whatever the mode is."""
    port, tokens = subject.port, subject.tokens(1, min(LENGTH, subject.config.n_ctx), 41)
    first = np.array(port.logits(tokens))
    words = _difference(first, port.logits(tokens))
    parts, dropout = subject.offers[TRAINING](), _dropout(port)
    details: dict[str, Any] = {"training": parts, "dropout": dropout}
    if inner := _left_on(port):
        named = naming("determinism-training-mode")
        if dropout is None:
            named = _dropouts_of(inner)
        message = f"{_acting(inner, dropout)}; {words or _EVEN_SO}"
        return [Finding(MODE, Status.FAILED, message, named=named, details=details)]
    if words:
        moved = changed_by(lambda: port.logits(tokens))
        if not (drawing := _drawing(port, tokens, moved)):
            raise NotExamined("two calls differ, and nothing is seen to draw random numbers")
        named = naming(_fault_of_bits(port, tokens, moved)) or _dropouts(port, tokens)
        message = f"{words}, although {_modes(parts)}; {drawing}"
        return [Finding(MODE, Status.FAILED, message, named=named, details=details)]
    drop = f"; {len(dropout)} dropouts are off" if dropout and not parts else ""
    message = f"{_modes(parts)}{drop}; two calls on {tokens.size} tokens, same bits"
    return [Finding(MODE, Status.PASSED, message, details=details)]


def _left_on(port: Port) -> list[str]:
    """The parts that are in training mode and would drop."""
    training, dropout = port.offers().get(TRAINING), _dropout(port)
    parts = training() if training else []
    if dropout is None:  # the port names what is random, and has no mode
        return parts
    inner = [part for part in parts if part in dropout]
    return inner or [part for part in parts if _held(part, dropout) > 0]


def _dropout(port: Port) -> Mapping[str, float] | None:
    """Each part that drops with its probability; None where the port does not show them."""
    dropout = port.offers().get(DROPOUT)
    return dropout() if dropout else None


def _draws(port: Port, tokens: Tokens) -> list[str] | None:
    """What one run draws; None where the port does not show that."""
    draws = port.offers().get(DRAWS)
    return draws(tokens) if draws else None


def _held(part: str, dropout: Mapping[str, float]) -> float:
    """The largest probability in it: a part may apply the dropout that it holds by hand, and ask
    its own mode."""
    return max((p for name, p in dropout.items() if _within(name, part)), default=0.0)


def _acting(inner: Sequence[str], dropout: Mapping[str, float] | None) -> str:
    if dropout is None:
        return f"left on from training: {listing(inner, NAMED)}"
    is_are = "is" if len(inner) == 1 else "are"
    largest = max(_held(part, dropout) for part in inner)
    return f"{listing(inner, NAMED)} {is_are} in training mode, dropout p = {largest:g} would act"


def _within(name: str, part: str) -> bool:
    return part == "the model" or name == part or name.startswith(f"{part}.")


def _modes(parts: Sequence[str]) -> str:
    if not parts:
        return "nothing is in training mode"
    return f"{listing(parts, NAMED)} in training mode without any dropout"


def _dropouts(port: Port, tokens: Tokens) -> Named | None:
    """The dropouts, where one of them may be what draws. A port that does not show what it draws
    may drop."""
    drawn = _draws(port, tokens) or []
    return _dropouts_of(drawn) if drawn else naming(*DROPOUTS)


def _dropouts_of(parts: Sequence[str]) -> Named | None:
    """The dropouts, where one of these parts or operations is called after one."""
    return naming(*DROPOUTS) if any(word in part for part in parts for word in _DROPS) else None


def _drawing(port: Port, tokens: Tokens, moved: Sequence[Change]) -> str | None:
    if found := _draws(port, tokens):
        return f"drawn at random, whatever the mode: {listing(found, NAMED)}"
    return _why(moved)


def check_state(subject: Subject) -> list[Finding]:
    """Loading the port and each of its calls leave the process as it was. Loading may draw first
    weights."""
    now = snapshot()
    calls = dict(_calls(subject))
    found: list[tuple[str, list[Change]]] = []
    if subject.loading is not None:
        before, after = subject.loading.before, subject.loading.after
        found.append(("loading it", _lasting(changes(before, after))))
        found.append(("running it", _lasting(changes(after, now))))
    done = []
    for name, call in calls.items():
        try:
            moved = changed_by(call)
        except NotExamined:
            continue
        done.append(name)
        found.append((f"{name}()", moved))
    # What the first call changed is not changed again; what every call changes is said once.
    changer: dict[str, str] = {}
    told = []
    for what, moved in found:
        new = [change for change in moved if change.name not in changer]
        changer |= {change.name: what for change in new}
        if new:
            told.append(f"{what} changes {listing(new, NAMED)}")
    details: dict[str, Any] = {"calls": done, "changed": sorted(changer)}
    if told:
        named = _fault_of_state(changer, calls)
    if subject.written:
        words = _written(subject)
        told.append(f"its calls write to its weights: {words}")
        named = naming(WRITES, words=words) if len(told) == 1 else None
    if told:
        return [Finding(STATE, Status.FAILED, "; ".join(told), named=named, details=details)]
    loaded = "loading it and its" if subject.loading is not None else "its"
    message = f"{loaded} calls of {', '.join(done)} leave the settings as they were"
    return [Finding(STATE, Status.PASSED, message, details=details)]


def _written(subject: Subject) -> str:
    """What the port's calls have written to, and what they have done there, if that is plain."""
    words, places = listing(subject.written, NAMED), subject.matching
    written = [p for p in subject.parameters if p.name in subject.written]
    if len({p.storage for p in written}) > 1 or places is None:
        return words
    read, names = written[0].read, {p.name for p in written}
    placement = next((p for p in places.placements if p.parameter in names), None)
    if placement is None or placement.part is not None:
        return words
    should = placement.of(subject.weights[placement.tensor])
    got = placement.layout.to_checkpoint_layout(read())
    if got.shape != should.shape or got.ndim != 2:
        return words
    length_V = np.linalg.norm(got[(got != should).any(axis=-1)], axis=-1)
    if not length_V.size or np.ptp(length_V) > _ALIKE * length_V.max():
        return words
    return f"{words}: rows that are longer than {length_V.max():.3g} are shortened to it (max_norm)"


def _fault_of_state(
    changer: Mapping[str, str], calls: Mapping[str, Callable[[], object]]
) -> Named | None:
    """The fault of the catalogue that changes all that is changed.

    Args:
        changer: what is changed → what changes it.
        calls: every call of the port.
    """
    if not changer.keys() <= RANDOM_STATES:
        return agreed(_SETS.get(name) for name in changer)
    seeded = [seeded_by(calls[what.removesuffix("()")]) for what in set(changer.values())]
    if changer.keys() <= set().union(*seeded):
        return naming("determinism-seeds")
    # What another call draws may be of use to it, and a seed says nothing of what is drawn after.
    if set(changer.values()) != {"logits()"} or any(changer.keys() & names for names in seeded):
        return None
    one, other = (np.array(calls["logits"]()) for _ in range(2))
    return naming("determinism-draws") if same_bits(one, other) else None


def _lasting(moved: Sequence[Change]) -> list[Change]:
    """Without the random states: whoever makes a module, the port or a law that copies it, draws
    its first weights."""
    return [change for change in moved if not change.is_random]


def _calls(subject: Subject) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that a port computes with, once, on a few tokens."""
    tokens, offers = subject.tokens(1, min(5, subject.config.n_ctx), 42), subject.offers
    mask, places = np.ones_like(tokens), np.arange(tokens.size)[None]
    yield "logits", lambda: subject.port.logits(tokens)
    if plain_call := offers.get(PLAIN_CALL):
        yield "forward", lambda: plain_call(tokens)
    if activations := offers.get(ACTIVATIONS):
        yield "activations", lambda: activations(tokens, lambda site, value, narrowest=None: None)
    if step := offers.get(STEP):
        yield "step", lambda: step(tokens, None)
    if padded := offers.get(PADDED):
        yield "padded", lambda: padded(tokens, mask)
    if padded_at := offers.get(PADDED_AT):
        yield "padded_at", lambda: padded_at(tokens, mask, places)
    if tokens.size < 2:  # which predicts nothing
        return
    if loss := offers.get(LOSS):
        yield "loss", lambda: loss(tokens, tokens)
    if gradients := offers.get(GRADIENTS):
        yield "gradients", lambda: gradients(tokens, _Dropped())


class _Dropped:
    """A sink of derivatives that nobody looks at."""

    def add(self, where: object, value: object) -> None: ...

    def restart(self) -> None: ...
