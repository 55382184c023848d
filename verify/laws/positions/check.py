"""The laws of the position table's end: n_ctx tokens are taken, one more is refused."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import described
from gpt_verify.findings import Finding, Named, Status, naming
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.decode import Before, Positions, decode, right_sources
from gpt_verify.graph.floor import least_floor
from gpt_verify.graph.operations.unembed import Head
from gpt_verify.graph.tiles import vocabulary_tiles
from gpt_verify.laws.agreement import (
    BEGINNING,
    Agreement,
    Malformed,
    mean_squares,
    refuting,
    whole_context,
)
from gpt_verify.laws.cache.check import full_cache
from gpt_verify.laws.decoding import Way
from gpt_verify.laws.subject import NotExamined, Subject, same_bits
from gpt_verify.numerics.two_tables import last_state
from gpt_verify.numerics.weights import Widened
from gpt_verify.port import ELSEWHERE, LAST, STEP, Port
from gpt_verify.reference.model import logits as reference_logits
from gpt_verify.reference.ops import unembed

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating]

LIMIT, BEYOND = "positions.limit", "positions.beyond"


@refuting(LIMIT)
def check_limit(subject: Subject) -> Iterator[Finding]:
    """A whole context is taken, and its last position is what the reference says."""
    n_ctx = subject.config.n_ctx
    tokens = subject.tokens(1, n_ctx)
    first_TV, got_V = _of_a_whole_context(subject, tokens)
    got_V = got_V.astype(np.float64)
    exact_V, floors = _from_the_reference(subject, tokens[0], got_V)
    if floors > LIMIT_FLOORS:
        before = _floors_at_the_beginning(subject, tokens[0], first_TV)
        # What is as wrong at the beginning, as far as noise can tell, is no matter of the end.
        if before > LIMIT_FLOORS or floors <= LIMIT_FLOORS * before:
            raise NotExamined("the logits are wrong from the beginning on, not only at the end")
    token = int(np.argmax(np.abs(got_V - exact_V)))
    message = (
        f"{n_ctx} tokens: logits[{n_ctx - 1}, {token}] = {got_V[token]:.9g}, should be "
        f"{exact_V[token]:.9g}; {floors:.3g} noise floors from the reference"
    )
    status = Status.PASSED if floors <= LIMIT_FLOORS else Status.FAILED
    yield Finding(LIMIT, status, message, None, floors, LIMIT_FLOORS)


def _from_the_reference(subject: Subject, tokens_T: Tokens, got_V: Floats) -> tuple[Floats, float]:
    """The reference's logits at the last position, and how many floors the port's are from them:
    of a large model at most that, where its floor need not be measured."""
    n_ctx = subject.config.n_ctx
    if subject.large:
        exact_V = _last_logits(subject, tokens_T)
        squares_T = np.mean(exact_V**2, keepdims=True)
        least = float(least_floor(subject.config, subject.precision, squares_T)[0])
        if least and (floors := _floors(got_V - exact_V, least)) <= LIMIT_FLOORS:
            return exact_V, floors
    # The floors that the law of the cache asks for as well.
    last = subject.measured(tokens_T, max(0, n_ctx - 2))
    return last.last_V, _floors(got_V - last.last_V, last.rms_T[-1])


def _last_logits(subject: Subject, tokens_T: Tokens) -> Floats:
    """The reference's at the last position, float64[V]."""
    config = subject.config
    state_D = last_state(Widened(subject.weights), config, tokens_T)[-1:]
    head = Head(config, subject.weights.__getitem__)
    tiles = vocabulary_tiles(1, config.n_vocab, config.n_embd)
    return np.concatenate([head.logits(state_D, rows)[0] for rows in tiles])


def _of_a_whole_context(subject: Subject, tokens: Tokens) -> tuple[Floats, Floats]:
    """The logits of some positions at its beginning, and of the last one; each of its own call
    where a call returns those of the last one only."""
    last = subject.offers.get(LAST)
    if last is None or not subject.port.by_prefixes:
        first_TV, last_TV = whole_context(subject)
        return first_TV, last_TV[-1]
    got_V: Floats = last(tokens)[0]
    if got_V.shape != (subject.config.n_vocab,):
        raise Malformed(f"logits of {tokens.shape[1]} tokens have shape {list(got_V.shape)}")
    lengths = range(1, _beginning(tokens) + 1)
    rows = [last(tokens[:, :n])[0] for n in lengths]
    return np.stack(rows) if rows else got_V[None], got_V


def _beginning(tokens: Tokens) -> int:
    """By how many of these tokens it is seen whether only the end is wrong."""
    return min(BEGINNING, int(tokens.shape[-1]) // 2)


def _floors(difference_V: Floats, floor: float) -> float:
    return float(np.sqrt(np.mean(difference_V**2)) / floor)


def _floors_at_the_beginning(subject: Subject, tokens_T: Tokens, logits_TV: Floats) -> float:
    """How wrong the first tokens are. A context of one token has no end that is not its beginning:
    what is wrong there, the law of the logits says."""
    count = _beginning(tokens_T)
    if not count:
        return float("inf")
    first_T = tokens_T[:count]
    exact_TV = reference_logits(Widened(subject.weights), subject.config, first_T)
    squares_T = mean_squares(logits_TV[:count], exact_TV)
    return float(subject.position_floors(squares_T, first_T).max())


def check_beyond(subject: Subject) -> Iterator[Finding]:
    """One token more is refused, in one call and by the cache, and the port survives that."""
    n_ctx = subject.config.n_ctx
    tokens = subject.tokens(1, n_ctx + 1)
    where = "" if subject.port.device == "cpu" else " (on the CPU)"
    with _on_cpu(subject.port) as port:
        probe = _Probe(subject, port, tokens[:, : min(2, n_ctx)])
        step = port.offers().get(STEP)
        # What any call with a cache does is no matter of a refusal.
        moved = step is not None and bool(probe.harm(partial(_two_steps, step, tokens)))
        run = port.offers()[LAST] if port.by_prefixes else port.logits
        taken = _refused(lambda: run(tokens))
        if not isinstance(taken, Refusal):
            what, fault = _what_it_does(subject, port, tokens, np.array(taken))
            words = f"{n_ctx + 1} tokens are not refused{where}, n_ctx is {n_ctx}: {what}"
            yield Finding(BEYOND, Status.FAILED, words, named=naming(fault))
            return
        said, harm = taken.description, probe.harm()
        if step and not harm:
            own = port is subject.port
            cached = subject.tokens(1, n_ctx) if own else tokens[:, :n_ctx]
            cache = full_cache(subject) if own else step(cached, None)[1]
            after = _refused(lambda: step(tokens[:, n_ctx:], cache))
            if not isinstance(after, Refusal):
                words = f"with a cache of {n_ctx} tokens, one more is not refused{where}"
                what, named = _what_a_cache_does(subject, cached[0], tokens[0, n_ctx:], after)
                yield Finding(BEYOND, Status.FAILED, f"{words}: {what}", named=named)
                return
            said, harm = f"{said}; with a cache: {after.description}", probe.harm()
        status = Status.FAILED if harm else Status.PASSED
        said += f"; afterwards {harm}" if harm else ""
        said += ", as after any call with a cache" if harm and moved else ""
        words = f"{n_ctx + 1} tokens are refused{where}: {said}"
        named = naming("positions-refusal-breaks" if harm and not moved else None)
        yield Finding(BEYOND, status, words, named=named)


@dataclass(frozen=True)
class Refusal:
    """What a port raised."""

    description: str


def _refused(call: Callable[[], object]) -> object:
    """A ``Refusal``, or what the call returned."""
    try:
        return call()
    except NotExamined:
        raise
    except Exception as error:
        return Refusal(_one_line(error))


class _Probe:
    """A port that refuses must be usable afterwards."""

    def __init__(self, subject: Subject, port: Port, tokens: Tokens) -> None:
        self._subject, self._port, self._tokens = subject, port, tokens
        self._before = np.array(port.logits(tokens))
        self._repeats = same_bits(np.array(port.logits(tokens)), self._before)

    def harm(self, after: Callable[[], object] = lambda: None) -> str:
        """What is no longer as it was, or nothing; after a call, where one is given."""
        _refused(after)
        again = _refused(lambda: self._port.logits(self._tokens))
        if isinstance(again, Refusal):
            return f"the port cannot be used any more: {again.description}"
        if self._repeats and self._moved(np.array(again)):
            return "the same tokens no longer have the logits that they had before"
        return ""

    def _moved(self, again: Floats) -> bool:
        """Farther than rounding moves what is computed in another way, as with keys and values
        that were kept."""
        if same_bits(again, self._before):
            return False
        if again.shape != self._before.shape:
            return True
        agreement = Agreement(self._subject)
        agreement.compare("afterwards", again[0], self._before[0], self._tokens[0])
        return not agreement.holds()


def _two_steps(step: Callable[..., tuple[Floats, object]], tokens: Tokens) -> None:
    """The second of which finds a cache."""
    _, cache = step(tokens[:, :1], None)
    step(tokens[:, 1:2], cache)


def _on_cpu(port: Port) -> AbstractContextManager[Port]:
    """Where a lookup beyond a table's end is an exception. On a GPU it is an assertion of the
    device, after which the process cannot use it any more."""
    if port.device == "cpu":
        return nullcontext(port)
    elsewhere = port.offers().get(ELSEWHERE)
    if elsewhere is None:
        raise NotExamined(f"on {port.device} it could end the process, and there is no CPU copy")
    return elsewhere("cpu")


def _what_it_does(subject: Subject, port: Port, tokens: Tokens, taken: Floats) -> tuple[str, str]:
    """What a port makes of the token that it should have refused; the fault, where it is known."""
    n_ctx, n_vocab = subject.config.n_ctx, subject.config.n_vocab
    if taken.shape == (1, n_ctx, n_vocab):
        for kept, words, fault in (
            (tokens[:, 1:], "first", "positions-beyond-oldest-dropped"),
            (tokens[:, :-1], "last", "positions-beyond-newest-dropped"),
        ):
            squares_T = mean_squares(port.logits(kept)[0], taken[0])
            if subject.position_floors(squares_T, kept[0]).max() <= LIMIT_FLOORS:
                return f"the {words} one is dropped without a word", fault
    if taken.shape != (1, n_ctx + 1, n_vocab):
        return f"logits of shape {list(taken.shape)} are returned", ""
    if not np.isfinite(taken).all():
        return "logits that are not finite are returned", ""
    floor = float(subject.floor(tokens[0, :n_ctx], n_ctx - 1)[-1])
    for words, fault, row_D in _rows(subject):
        if _floors(taken[0, -1] - _beyond(subject, tokens[0], row_D), floor) <= LIMIT_FLOORS:
            return f"position {n_ctx} is given {words}", fault
    return f"position {n_ctx} is given no row of wpe that could be recognised", ""


def _what_a_cache_does(
    subject: Subject, cached_T: Tokens, more_T: Tokens, made: object
) -> tuple[str, Named | None]:
    """What a port with a full cache makes of one token more; the faults that would do that."""
    n_ctx, unknown = subject.config.n_ctx, "what it makes of it was not recognised"
    logits = np.asarray(made[0]) if isinstance(made, tuple) else None
    shape = (1, 1, subject.config.n_vocab)
    if subject.config.own is not None or logits is None or logits.shape != shape:
        return unknown, None
    floor = float(subject.floor(cached_T, n_ctx - 1)[-1])
    pieces = [cached_T, more_T]
    for words, way, named in _ways_on(n_ctx):
        found = decode(Widened(subject.weights), subject.config, pieces, way)
        if found is not None and _floors(logits[0, 0] - found[-1], floor) <= LIMIT_FLOORS:
            return words, named
    return unknown, None


def _ways_on(n_ctx: int) -> Iterator[tuple[str, Way, Named | None]]:
    """How one token more may be decoded: where it is, and whom it sees."""

    def without_oldest(before: Before, n: int) -> NDArray[np.bool_]:
        seen = right_sources(before, n)
        seen[:, : len(before)] = False
        return seen

    def at(row: int) -> Positions:
        return lambda before, n: np.full(n, row) if before else np.arange(n)

    last = f"it is decoded at position {n_ctx - 1}"
    rolled = Way("", at(n_ctx - 1), without_oldest)
    yield f"{last}, and the oldest is forgotten", rolled, naming("positions-cache-rolls-on")
    # Which of the two it is, a cache that is not full tells.
    clipped = naming("positions-beyond-clipped", "cache-positions-behind")
    yield f"{last}, as the token before it", Way("", at(n_ctx - 1)), clipped
    yield "it is decoded at position 0", Way("", at(0)), naming("positions-beyond-wrapped")


def _rows(subject: Subject) -> Iterator[tuple[str, str, Floats]]:
    """What a lookup beyond the end of wpe may find."""
    wpe_PD = subject.weights["wpe"]
    last = len(wpe_PD) - 1
    clipped = f"row {last} of wpe, the last, once more (clipped)"
    yield clipped, "positions-beyond-clipped", wpe_PD[-1]
    yield "row 0 of wpe (wrapped round)", "positions-beyond-wrapped", wpe_PD[0]
    zeros = "zeros (what a GPU's gather returns beyond the end)"
    yield zeros, "positions-beyond-zero", np.zeros_like(wpe_PD[0])


def _beyond(subject: Subject, tokens_T: Tokens, row_D: Floats) -> Floats:
    """The oracle's last logits, with one row more in its table."""
    wpe_PD = np.concatenate([subject.weights["wpe"], row_D[None]])
    weights = ChainMap({"wpe": wpe_PD}, Widened(subject.weights))  # type: ignore[arg-type]  # only read
    config = replace(subject.config, n_ctx=len(wpe_PD) - subject.config.keys.table_offset)
    state_D = last_state(weights, config, tokens_T)[-1:]
    return np.asarray(unembed(state_D, subject.weights[subject.config.head])[0])


def _one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    return described(error)
