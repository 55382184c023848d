"""Operations that a port does not show, done otherwise: seen by what is made of their results.

Fitted are choices: what is done to values before they are mixed, which gains the norms of queries
and keys have, where in a sum a norm stands. Of sinks it is one number for each head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form, listed, said, snapped
from gpt_verify.diagnosis.forms.queries import NORMS, Change
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference import ops
from gpt_verify.reference.architecture import Rope
from gpt_verify.reference.positions import rotate, turns
from gpt_verify.sites import Site, sites

#: A weight of a pattern that is smaller than this tells nothing of the sink beside it.
LEAST = 1e-3
#: Operations with a gain.
NORMED = ("rms_norm", "layer_norm")


def values(e: Evidence) -> Iterator[Fitted]:
    """Values that were changed before they were mixed, best first."""
    if e.site.kind != "attn.mix" or not np.isfinite(e.got).all():
        return
    changes = {words: change for words, change in NORMS.items() if words}
    if (rope := e.config.rope(e.call.layer)) is not None:
        own = "turned by their positions, as queries and keys are,"
        changes[own] = partial(_turned, rope)
        other = replace(rope, pairs=not rope.pairs)
        changes[f"{own} but with other pairs of channels,"] = partial(_turned, other)
    acts: dict[str, Override] = {of: partial(_mixed, change) for of, change in changes.items()}
    words = min(acts, key=lambda of: e.distance(acts[of](e.call)))
    yield e.alone(acts[words], f"values are {words} before they are mixed")


def _turned(rope: Rope, x_HTK: Array) -> Array:
    dtype = np.float64 if x_HTK.dtype == np.float64 else np.float32
    return rotate(x_HTK, *turns(rope, np.arange(x_HTK.shape[1]), dtype), rope)


def _mixed(change: Change, call: Call) -> Array:
    return ops.attention_mix(call.x, change(call.part("v")))


def gains(e: Evidence) -> Iterator[Fitted]:
    """Norms between this site and what the port has shown, with each other's gain or none."""
    norms = [s for s in _between(e) if s.operation in NORMED and s.weights]
    if not 1 <= len(norms) <= 2:
        return
    names = [norm.weights[0] for norm in norms]
    for some in product([*names, None], repeat=len(norms)):
        changed = [(n, gain) for n, gain in zip(norms, some, strict=True) if n.weights[0] != gain]
        if changed:
            words = [f"{norm.name} has {gain or 'no gain'}" for norm, gain in changed]
            acts = {norm.name: partial(_with_gain, gain) for norm, gain in changed}
            yield Fitted(acts, " and ".join(words))


def sinks(e: Evidence) -> Iterator[Fitted]:
    """Other sinks: off what the weights of each target lack of 1, where they lack most."""
    if e.site.kind != "attn.pattern" or not e.config.keys.sinks or not e.site.weights:
        return
    name, scores = e.site.weights[0], e.call.x
    own_H, at = e.call.w(name), np.arange(e.got.shape[-1])
    itself_HT = e.got[:, at, at]
    lacks_HT = np.where(itself_HT > LEAST, 1.0 - e.got.sum(axis=-1), 0.0)
    target_H = np.argmax(lacks_HT, axis=-1)
    each = np.arange(len(own_H))
    if (lacks_HT[each, target_H] <= LEAST).any():
        return
    ratio_H = lacks_HT[each, target_H] / itself_HT[each, target_H]
    read_H = np.log(ratio_H) + scores[each, target_H, target_H]
    factor = snapped(float(own_H @ read_H / (own_H @ own_H))) if own_H.any() else 0.0
    for value_H, words in (
        (factor * own_H, f"sinks × {said(factor)}"),
        (read_H, f"sinks {listed(map(said, read_H), 4)}, should be {listed(map(said, own_H), 4)}"),
    ):
        yield e.alone(e.with_tensors({name: value_H}), words)


def _between(e: Evidence) -> Iterator[Site]:
    """Hidden sites that this one is made of, the nearest first."""
    every, waiting, seen = sites(e.config), list(e.site.inputs), set()
    while waiting:
        name = waiting.pop(0)
        if name not in e.shown and name not in seen:
            seen.add(name)
            yield every[name]
            waiting += every[name].inputs


def _with_gain(gain: str | None, call: Call) -> Array:
    name = call.site.weights[0]

    def lookup(asked: str) -> Array:
        if asked != name:
            return call.lookup(asked)
        return np.ones_like(call.lookup(name)) if gain is None else call.lookup(gain)

    return right(replace(call, lookup=lookup))


def norms_of_sums(e: Evidence) -> Iterator[Fitted]:
    """The norm of a term that stands elsewhere: around the sum, around each term, or nowhere."""
    if not e.site.is_sum or len(e.site.inputs) != 2:
        return
    stream, made = e.site.inputs
    norm = sites(e.config).get(made)
    if norm is None or norm.operation not in NORMED or made in e.shown:
        return
    term = norm.inputs[0]
    acts: dict[str, Override] = {
        f"norm({stream} + {term})": partial(_norm_around, stream, norm),
        f"norm({stream}) + norm({term})": partial(_norm_of_both, stream, norm),
        f"norm({stream}) + {term}": partial(_norm_of_stream, stream, norm),
    }
    words = min(acts, key=lambda of: e.distance(acts[of](e.call)))
    yield e.alone(acts[words], f"{words}, not {stream} + norm({term})")


def _normed(call: Call, norm: Site, x_TD: Array) -> Array:
    return right(replace(call, site=norm, values={norm.inputs[0]: x_TD}))


def _norm_around(stream: str, norm: Site, call: Call) -> Array:
    return _normed(call, norm, call.values[stream] + call.values[norm.inputs[0]])


def _norm_of_both(stream: str, norm: Site, call: Call) -> Array:
    return _normed(call, norm, call.values[stream]) + call.values[norm.name]


def _norm_of_stream(stream: str, norm: Site, call: Call) -> Array:
    return _normed(call, norm, call.values[stream]) + call.values[norm.inputs[0]]


VALUES = Form("values-changed", "changes the values before it mixes them", values)
GAINS = Form("gain-elsewhere", "norms queries or keys with another gain", gains)
SINKS = Form("sinks-used", "has other sinks in its softmax", sinks)
SUMS = Form("norm-elsewhere", "norms another part of a sum", norms_of_sums)
