"""The forward pass of a sequence in pieces, with a cache of keys and values.

Each piece is a loop over the table of sites, in which attention reads the keys and values of the
pieces before it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_verify.graph.call import Array, Call, Override
from gpt_verify.graph.run import run
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites

Tokens = NDArray[np.integer]
#: Lengths of the pieces before this one.
Before = tuple[int, ...]
#: Rows of wpe for a piece of n tokens, int[n].
Positions = Callable[[Before, int], NDArray[np.integer]]
#: Which tokens each of them sees, bool[n, past + n].
Sources = Callable[[Before, int], NDArray[np.bool_]]
#: Keys and values, [H, n, K] each.
KeysValues = tuple[Array, Array]


def right_positions(before: Before, n: int) -> NDArray[np.integer]:
    return np.arange(n) + sum(before)


def right_sources(before: Before, n: int) -> NDArray[np.bool_]:
    """Every earlier token and itself: a triangle in the lower right corner."""
    past = sum(before)
    return np.tri(n, past + n, past, dtype=np.bool_)


def joined(past: KeysValues, own: KeysValues) -> KeysValues:
    """One after the other."""
    return np.concatenate([past[0], own[0]], axis=1), np.concatenate([past[1], own[1]], axis=1)


class HowDecoded(Protocol):
    """What may be done otherwise from piece to piece.

    Attributes:
        positions: where the tokens of a piece are taken to be.
        sources: what they see.
        layer: the layer whose cached keys and values a layer reads.
        kept: what becomes of keys and values, those of all tokens so far, when a call ends.
        normalise: a layer norm without gain and bias, [n, D]; None is the reference's.
        empty: how many slots that nobody has filled are seen besides, as zeros.
        embedded: by what the embedding of each token of a piece is multiplied; None leaves them.
        scaled: what the scores are multiplied with, broadcast to [H, n, past + n]; None is nothing.
        added: what is added to the scores, broadcast to [H, n, past + n]; None is nothing.
        in_layer: whether ``sources`` and ``kept`` are those of a layer; the others are right.
        elsewhere: what they see in the other layers.
        unbiased: of keys (0) and values (1), those that are cached without their bias.
        joined: the cached keys and values, and those of a call, as one.
        softmax: of scores, -∞ where nothing is seen, [H, n, past + n].
        skipped: whether a block is passed over.
    """

    @property
    def positions(self) -> Positions: ...
    @property
    def sources(self) -> Sources: ...
    @property
    def layer(self) -> Callable[[int], int]: ...
    @property
    def kept(self) -> Callable[[KeysValues], KeysValues]: ...
    @property
    def normalise(self) -> Callable[[Array], Array] | None: ...
    @property
    def empty(self) -> Callable[[Before, int], int]: ...
    @property
    def embedded(self) -> Callable[[Before, int], Array] | None: ...
    @property
    def scaled(self) -> Callable[[Before, int], Array] | None: ...
    @property
    def added(self) -> Callable[[Before, int], Array] | None: ...
    @property
    def in_layer(self) -> Callable[[int], bool]: ...
    @property
    def elsewhere(self) -> Sources: ...
    @property
    def unbiased(self) -> Sequence[int]: ...
    @property
    def softmax(self) -> Callable[[Before, Array], Array]: ...
    @property
    def joined(self) -> Callable[[KeysValues, KeysValues], KeysValues]: ...
    @property
    def skipped(self) -> Callable[[int], bool]: ...


def decode(
    weights: Mapping[str, Array], config: Config, pieces: Sequence[Tokens], how: HowDecoded
) -> Array | None:
    """The logits of all pieces, float64[T, V]; None where a position does not exist.

    Args:
        weights: checkpoint name → tensor.
        config: sizes, of a GPT-2 or a GPT.
        pieces: the tokens of each call, int[n].
        how: where they are, what they see, and what is kept.
    """
    past: list[KeysValues] = []
    before: Before = ()
    logits = []
    for tokens_n in pieces:
        positions = how.positions(before, len(tokens_n))
        if positions.min() < 0 or positions.max() >= config.n_ctx:
            return None
        piece = _Piece(positions, how.sources(before, len(tokens_n)), past, how, before)
        overrides = piece.overrides(config)
        *_, (_, made) = run(weights.__getitem__, config, tokens_n, overrides)
        logits.append(made)
        past, before = [piece.kept(layer) for layer in range(config.n_layer)], (*before, len(made))
    return np.concatenate(logits)


@dataclass
class _Piece:
    """One call: the operations that see where it is and what came before it.

    Attributes:
        positions: of its tokens, int[n].
        seen: which tokens each of them sees, bool[n, past + n].
        past: keys and values of the tokens before it, by layer; empty for the first piece.
        how: what is done otherwise.
        before: lengths of the pieces before it.
        own: its own keys and values, by layer.
        bias: theirs, [H, 1, K] each, where they are asked for.
    """

    positions: NDArray[np.integer]
    seen: NDArray[np.bool_]
    past: Sequence[KeysValues]
    how: HowDecoded
    before: Before
    own: dict[int, KeysValues] = field(default_factory=dict)
    bias: dict[int, KeysValues] = field(default_factory=dict)

    def overrides(self, config: Config) -> dict[str, Override]:
        operations: dict[str, Override] = {
            "embed": self._embed,
            "attn.scores": self._scores,
            "attn.pattern": self._pattern,
            "attn.mix": self._mix,
        }
        if self.how.normalise is not None:
            norm = partial(_norm, self.how.normalise)
            operations |= dict.fromkeys(("ln_1", "ln_2", "ln_f"), norm)
        overrides = {
            site.name: operations[site.kind]
            for site in sites(config).values()
            if site.kind in operations
        }
        skipped = [layer for layer in range(config.n_layer) if self.how.skipped(layer)]
        return overrides | {f"h.{layer}.resid_post": Call.stream for layer in skipped}

    def kept(self, layer: int) -> KeysValues:
        """What the next piece finds in the cache."""
        own = self.own[layer]
        if self.how.unbiased:
            k, v = (
                x - self.bias[layer][part] if part in self.how.unbiased else x
                for part, x in enumerate(own)
            )
            own = k, v
        every = self.how.joined(self.past[layer], own) if self.past else own
        return self.how.kept(every) if self.how.in_layer(layer) else every

    def _embed(self, call: Call) -> Array:
        wte_VD, wpe_PD = (call.lookup(name) for name in call.site.weights)
        tokens_nD, positions_nD = wte_VD[call.tokens_T], wpe_PD[self.positions]
        value: Array = tokens_nD.astype(call.dtype) + positions_nD.astype(call.dtype)
        if self.how.embedded is None:
            return value
        return value * self.how.embedded(self.before, len(value)).astype(call.dtype)[:, None]

    def _scores(self, call: Call) -> Array:
        q_HnK, k_HnK, v_HnK = call.heads()
        self.own[call.layer] = k_HnK, v_HnK
        if self.how.unbiased:
            bias = call.w(sites(call.config)[f"h.{call.layer}.attn.qkv"].weights[1])
            _, k_H1K, v_H1K = ops.split_heads(bias[None], call.config.n_head)
            self.bias[call.layer] = k_H1K, v_H1K
        scores = ops.attention_scores(q_HnK, self._read(call.layer)[0])
        n = len(self.positions)
        if self.how.scaled is not None:
            scores = scores * self.how.scaled(self.before, n)
        if self.how.added is not None:
            scores = scores + self.how.added(self.before, n)
        return scores

    def _pattern(self, call: Call) -> Array:
        n = len(self.positions)
        seen = self.seen
        if not self.how.in_layer(call.layer):
            seen = self.how.elsewhere(self.before, n)
        x = np.where(seen, call.x, -np.inf)
        if not (empty := self.how.empty(self.before, n)):
            return self.how.softmax(self.before, x)
        return ops.softmax(np.concatenate([x, np.zeros_like(x[..., :1]).repeat(empty, -1)], -1))[
            ..., :-empty
        ]

    def _mix(self, call: Call) -> Array:
        return ops.attention_mix(call.x, self._read(call.layer)[1])

    def _read(self, layer: int) -> KeysValues:
        """The keys and values that a layer attends to."""
        own = self.own[layer]
        return self.how.joined(self.past[self.how.layer(layer)], own) if self.past else own


def _norm(normalise: Callable[[Array], Array], call: Call) -> Array:
    made: Array = call.own(0) * normalise(call.x) + call.own(1)
    return made
