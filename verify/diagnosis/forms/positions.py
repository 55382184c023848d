"""Rows that were looked up: of which positions, or of which tokens.

Fitted is one row of a table for each position of the sequence: the nearest one to what the port
made, less the row of the other table, which must be correct (or be that of another position of the
same sequence). A row has as many elements as the model is wide, and must be met in all of them. Of
rows that were shortened, one length is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import FEWEST, Array, Evidence, Fitted, Form, listed, said
from gpt_verify.diagnosis.forms.terms import POSITION, TOKEN, summed, terms
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.sites import sites

Rows = NDArray[np.int64]

#: Stands for a row of zeros.
NO_ROW = -1
#: A row that was shortened by less than this part may be rounded.
SHORTER = 1e-6
#: Rows of a table that are compared at a time.
TILE = 4096


def positions(e: Evidence) -> Iterator[Fitted]:
    """Other rows of the table of positions; of tokens that are the input's, in any order."""
    yield from _within(e, POSITION, 1, "positions used")
    if len(e.site.weights) < 2 or not _plain(e):
        return
    wte, wpe = (e.call.w(name) for name in e.site.weights)
    ids = e.call.tokens_T
    used = _nearest(e.got - wte[ids], wpe)
    words = f"positions used: {_listed(used)}"
    fault, flat = "", e.row * len(ids) + np.arange(len(ids))
    there = flat < len(wpe)  # a port may begin anew beyond the table, or stay at its end
    if e.row and there.any() and (used == flat)[there].all():
        words, fault = f"{words}, in row {e.row} of the batch", "batch-positions-run-on"
    yield replace(_of(e, np.asarray(ids, np.int64), used, words), fault=fault)
    tokens_T, used = _both(e.got, wte[ids], wpe)
    words = f"positions used: {_listed(used)}; tokens used: those of {_listed(tokens_T)}"
    yield _of(e, np.asarray(ids, np.int64)[tokens_T], used, words)


def tokens(e: Evidence) -> Iterator[Fitted]:
    """Other rows of the table of tokens."""
    yield from _within(e, TOKEN, 0, "tokens used")
    if not e.site.looks_up or not _plain(e):
        return
    wte = e.call.w(e.site.weights[0])
    at = np.arange(len(e.call.tokens_T))
    rest = e.got - e.call.w(e.site.weights[1])[at] if len(e.site.weights) > 1 else e.got
    used = _nearest(rest, wte)
    words = _in_place_of(np.asarray(e.call.tokens_T), used, len(wte))
    yield _of(e, used, at, f"tokens used: {words}")


def _in_place_of(ids_T: Rows, used_T: Rows, n_vocab: int) -> str:
    """The tokens that were looked up: by the rule that gives them, or each with the one that it
    stands for."""
    most, changed = int(used_T.max()), np.flatnonzero(used_T != ids_T)
    apart_T = (used_T - ids_T + n_vocab // 2) % n_vocab - n_vocab // 2
    if changed.size > 1 and (apart_T == apart_T[0]).all():
        return f"ids {apart_T[0]:+d}"
    for bits in range(1, n_vocab.bit_length()):
        if (used_T == ids_T % (1 << bits)).all():
            return f"the last {bits} bits of each id"
    pairs = dict.fromkeys(zip(used_T[changed], ids_T[changed], strict=True))
    words = listed(f"{'none' if used == NO_ROW else used} for {own}," for used, own in pairs)
    clamped = changed.size and (used_T == np.minimum(ids_T, most)).all()
    return f"{words.strip(',')}{f': no id above {most}' if clamped else ''}"


def doubled(e: Evidence) -> Iterator[Fitted]:
    """A second row of the table of tokens is added at each position."""
    if not _plain(e) or not np.isfinite(e.got).all():
        return
    wte, ids = e.call.w(e.site.weights[0]), np.asarray(e.call.tokens_T, np.int64)
    more = _nearest(e.got - e.right, wte)
    words = f"beside each row of wte another one is added: that of token {_listed(more)}"
    if (apart := np.unique((more - ids) % len(wte))).size == 1:
        words = f"beside each row of wte another one is added: that of the id {apart[0]} further on"
    yield e.alone(lambda call: right(call) + _rows(call.w(call.site.weights[0]), more), words)


def shortened(e: Evidence) -> Iterator[Fitted]:
    """Rows of one table that are longer than some length are brought to it, as ``max_norm`` does:
    times L / (|row| + ε)."""
    if not _plain(e) or not np.isfinite(e.got).all():
        return
    for which, name in enumerate(e.site.weights):
        rows = [_looked_up(e.call, table) for table in range(len(e.site.weights))]
        own = rows[which]
        rest = e.got - sum(row for row in rows if row is not own)
        length_T = np.linalg.norm(own, axis=-1)
        factor_T = np.sum(rest * own, axis=-1) / np.where(length_T > 0, length_T, 1.0) ** 2
        changed = factor_T < 1 - SHORTER
        if np.unique(length_T[changed]).size < FEWEST:
            continue
        # L and ε of factor · |row| = L - factor · ε.
        columns = np.stack([np.ones(changed.sum()), -factor_T[changed]], axis=-1)
        made = (factor_T * length_T)[changed]
        most, above = (float(c) for c in np.linalg.lstsq(columns, made, rcond=None)[0])
        words = f"rows of {name} that are longer than {said(most)} are shortened to it"
        yield e.alone(partial(_held, which, most, above), words)


def _looked_up(call: Call, table: int) -> Array:
    """The rows of one of the two tables, [T, D]."""
    at = np.arange(len(call.tokens_T)) if table else call.tokens_T
    found: Array = call.w(call.site.weights[table])[at]
    return found


def _held(which: int, most: float, above: float, call: Call) -> Array:
    rows = [_looked_up(call, table) for table in range(len(call.site.weights))]
    length_T1 = np.linalg.norm(rows[which], axis=-1, keepdims=True)
    factor_T1 = np.where(length_T1 > most, most / (length_T1 + above), 1.0)
    rows[which] = rows[which] * factor_T1.astype(call.dtype)
    return np.asarray(sum(rows), call.dtype)


def _within(e: Evidence, which: str, table: int, words: str) -> Iterator[Fitted]:
    """Of an embedding that is hidden, in the first sum after it."""
    own = terms(e)
    term = next((term for term in own if term.words == which), None)
    if term is None:
        return
    rows = e.call.w(sites(e.config)["embed"].weights[table])
    used = _nearest(e.got - sum(other.value for other in own if other is not term), rows)

    def change(x: Array) -> Array:
        return _rows(rows, used).astype(x.dtype)

    parts = [(one, change if one is term else None) for one in own]
    yield summed(e, parts, f"{words}: {_listed(used)}")


def _plain(e: Evidence) -> bool:
    """It is one row plus another."""
    keys = e.config.keys
    return e.site.looks_up and not keys.table_offset and e.config.embed_scale is None


def _of(e: Evidence, tokens_T: Rows, places_T: Rows, words: str) -> Fitted:
    def act(call: Call) -> Array:
        value = _rows(call.w(call.site.weights[0]), tokens_T)
        if len(call.site.weights) > 1:
            value = value + _rows(call.w(call.site.weights[1]), places_T)
        return value

    return e.alone(act, words)


def _rows(table: Array, rows: Rows) -> Array:
    found: Array = np.where((rows == NO_ROW)[:, None], 0, table[np.maximum(rows, 0)])
    return found


def _nearest(x_TD: Array, table: Array) -> Rows:
    """The row that is nearest to each x; ``NO_ROW`` where zeros are nearer."""
    best_T = np.full(len(x_TD), NO_ROW)
    least_T = np.zeros(len(x_TD))  # |x - row|² - |x|²
    for first in range(0, len(table), TILE):
        part = table[first : first + TILE]
        apart = np.sum(part * part, axis=-1) - 2 * x_TD @ part.T
        row_T = np.argmin(apart, axis=-1)
        nearer = (value_T := apart[np.arange(len(x_TD)), row_T]) < least_T
        best_T = np.where(nearer, first + row_T, best_T)
        least_T = np.where(nearer, value_T, least_T)
    return best_T


def _both(got: Array, token_TD: Array, wpe: Array) -> tuple[Rows, Rows]:
    """For each position, the token of the sequence and the row of positions that are nearest."""
    squares_P = np.sum(wpe * wpe, axis=-1)
    tokens_T, used = np.empty(len(got), np.int64), np.empty(len(got), np.int64)
    for t, x_D in enumerate(got):
        rest = x_D - token_TD
        apart = np.sum(rest * rest, axis=-1)[:, None] + squares_P - 2 * rest @ wpe.T
        tokens_T[t], used[t] = np.unravel_index(np.argmin(apart), apart.shape)
    return tokens_T, used


def _listed(used: Rows) -> str:
    return listed("none" if row == NO_ROW else row for row in used)


POSITIONS = Form("positions-used", "looks up the rows of other positions", positions)
TOKENS = Form("tokens-used", "looks up the rows of other tokens", tokens)
DOUBLED = Form("row-added", "looks up a second row for each token, and adds it", doubled)
SHORTENED = Form("rows-shortened", "shortens the rows that it looks up", shortened)
