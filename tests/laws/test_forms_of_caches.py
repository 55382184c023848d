"""What is wrong with a cache or with padding, and is in no catalogue, is said from the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from plain_ports import faulty, plain
from subjects import hold

from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.diagnosis.port import Diagnosis
from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.cache.forms import NAMES as OF_CACHES
from gpt_verify.laws.padding.forms import NAMES as OF_PADDING
from gpt_verify.port import PADDED_AT

ALL = (0, 1, 2)


def attending(method: str, function: Callable[..., Any], layers: Sequence[int] = ALL) -> Any:
    def alter(model: Any) -> None:
        for block in model.blocks([layer for layer in layers if layer < len(model.h)]):
            wrap(block.attn, method, function)

    return alter


def cached(change: Callable[[Any, Any], tuple[Any, Any]], layers: Sequence[int] = ALL) -> Any:
    """``change`` of the keys and values [B, H, S, K] that a call finds in the cache."""

    def extend(attn: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
        return right(None if past is None else change(*past), k, v)

    return attending("extend", extend, layers)


def _values_zeroed(k: Any, v: Any) -> Any:
    v = v.clone()
    v[:, :, :2] = 0
    return k, v


def _newest_key_zeroed(k: Any, v: Any) -> Any:
    k = k.clone()
    k[:, :, -1] = 0
    return k, v


def _in_4_bits(x: Any) -> Any:
    step = x.abs().amax(1, keepdim=True).amax(3, keepdim=True) / 7
    return (x / step).round() * step


def _unfilled(count: Callable[[int], int]) -> Any:
    """Slots of zeros in the softmax, ``count(S)`` of them, where there is a cache."""

    def softmax(attn: Any, right: Any, scores: Any) -> Any:
        n, length = scores.shape[-2:]
        more = count(length) if length > n else 0
        if not more:
            return right(scores)
        zeros = torch.zeros_like(scores[..., :1]).expand(*scores.shape[:-1], more)
        return right(torch.cat([scores, zeros], -1))[..., :-more]

    return attending("softmax", softmax)


def _previous_hidden(attn: Any, right: Any, targets: Any, sources: Any) -> Any:
    """With a cache, a token does not see the one before it."""
    seen = right(targets, sources)
    if len(sources) == len(targets):
        return seen
    return seen & (sources[None, :] != targets[:, None] - 1)


def _own_alone(attn: Any, right: Any, targets: Any, sources: Any) -> Any:
    seen = right(targets, sources)
    return seen & (sources[None, :] >= len(sources) - len(targets))


def _of_the_last_row(k: Any, v: Any) -> Any:
    return k[-1:].expand_as(k), v[-1:].expand_as(v)


def _from_seven(model: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
    return right(ids, 7 if past else 0, real)


def _twice_the_past(model: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
    return right(ids, min(2 * past, model.config.n_ctx - ids.shape[1]), real)


def _page_from_the_first(size: int, page: int) -> Any:
    def change(k: Any, v: Any) -> Any:
        at = torch.arange(k.shape[2])
        at = torch.where(at // size == page, at % size, at)
        return k[:, :, at], v[:, :, at]

    return change


def _averaged_tiles(size: int) -> Any:
    def softmax(attn: Any, right: Any, scores: Any) -> Any:
        n, length = scores.shape[-2:]
        if n == length or length <= size:
            return right(scores)
        tiles = scores.split(size, -1)
        each = [tile.softmax(-1) * (tile.amax(-1, keepdim=True) > -1e3) for tile in tiles]
        return torch.cat(each, -1) / len(tiles)

    return softmax


def _written_too_early(attn: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
    """A token that begins a page of 4 lies in the last slot of the page before."""
    found = right(past, k, v)
    if past is None:
        return found
    both = [x.clone() for x in found]
    for x in both:
        for at in range(4, x.shape[2], 4):
            if at >= past[0].shape[2]:
                x[:, :, at - 1] = x[:, :, at]
                x[:, :, at] = 0
    return tuple(both)


def _values_re_read(attn: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
    """The values of a cache lie as [H, K, S], and are read as [H, S, K]."""
    if past is not None:
        past = past[0], past[1].transpose(-1, -2).reshape(past[1].shape)
    return right(past, k, v)


def _held(*which: bool) -> Any:
    """Keys, values: no larger than what the cache has in each channel."""

    def extend(attn: Any, right: Any, past: Any, k: Any, v: Any) -> Any:
        if past is None:
            return right(past, k, v)
        tops = [x.abs().amax(2, keepdim=True) for x in past]
        made = [
            x.clamp(-top, top) if held else x
            for held, top, x in zip(which, tops, (k, v), strict=True)
        ]
        return right(past, *made)

    return extend


def _without_bias(*parts: int) -> Any:
    """What a call adds to the cache has no bias: of keys (0) or values (1)."""

    def forward(attn: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        y, kept = right(x, past, real)
        kept = [each.clone() for each in kept]
        for part in parts:
            bias = attn.c_attn.bias.chunk(3)[1 + part].view(kept[part].shape[1], 1, -1)
            kept[part][:, :, -x.shape[1] :] -= bias
        return y, tuple(kept)

    return attending("forward", forward)


CACHES: dict[str, tuple[Any, str, str]] = {
    "values-zeroed": (cached(_values_zeroed), "cache-slots", "slots 0 … 1 hold zeros for values"),
    "newest-key-zeroed": (
        cached(_newest_key_zeroed),
        "cache-slots",
        "the newest slot of every call holds zeros for keys",
    ),
    "three-unfilled": (
        _unfilled(lambda length: 3),
        "cache-slots",
        "3 slots that nobody has filled are seen, as zeros",
    ),
    "multiples-of-16": (
        _unfilled(lambda length: -length % 16),
        "cache-slots",
        "a cache of a multiple of 16 slots is seen as a whole",
    ),
    "previous-hidden": (
        attending("allowed", _previous_hidden),
        "cache-sight",
        "with a cache, a token does not see the token 1 before it",
    ),
    "one-block-blind": (
        attending("allowed", _own_alone, [1]),
        "cache-sight",
        "in block 1 alone, the cache is not read",
    ),
    "values-without-bias": (
        _without_bias(1),
        "cache-without-bias",
        "values are cached without their bias",
    ),
    "keys-without-bias": (
        _without_bias(0),
        "cache-without-bias",
        "keys are cached without their bias",
    ),
    "both-without-bias": (
        _without_bias(0, 1),
        "cache-without-bias",
        "keys and values are cached without their bias",
    ),
    "tiles-averaged": (
        attending("softmax", _averaged_tiles(4)),
        "cache-tiles",
        "with a cache, tiles of 4 sources are averaged",
    ),
    "token-over-the-one-before": (
        attending("extend", _written_too_early),
        "cache-slots",
        "a token that begins a page of 4 is written over the one before it, and leaves zeros",
    ),
    "values-re-read": (
        attending("extend", _values_re_read),
        "cache-layout",
        "values are kept as [heads, channels, tokens], read as [heads, tokens, channels]",
    ),
    "keys-held": (
        attending("extend", _held(True, False)),
        "cache-clipped",
        "keys of a call are cut off at the largest that each channel of a head had before",
    ),
    "both-held": (
        attending("extend", _held(True, True)),
        "cache-clipped",
        "keys and values of a call are cut off at the largest that each channel of a head had",
    ),
    "second-page-is-first": (
        cached(_page_from_the_first(4, 1)),
        "cache-slots",
        "slots 4 … 7 are read from those of page 0 (pages of 4)",
    ),
    "second-page-of-16-is-first": (
        cached(_page_from_the_first(16, 1)),
        "cache-slots",
        "read from those of page 0",
    ),
    "values-in-4-bits": (
        cached(lambda k, v: (k, _in_4_bits(v))),
        "cache-rounded",
        "values are kept in 4 bits, one scale for each token",
    ),
    "keys-in-bfloat16": (
        cached(lambda k, v: (k.bfloat16().to(k.dtype), v)),
        "cache-rounded",
        "keys are kept in bfloat16",
    ),
    "positions-of-the-width": (
        lambda model: wrap(model, "positions", _from_seven),
        "cache-positions-used",
        "positions used, call by call: 0 7 7 7 7 7 7 7",
    ),
    "prompt-counted-twice": (
        lambda model: wrap(model, "positions", _twice_the_past),
        "cache-positions-used",
        "positions used, call by call: 0 2 4 6 8 10 12 14",
    ),
    "cache-of-the-last-row": (
        cached(_of_the_last_row),
        "cache-rows",
        "row 0 reads the cache of row 1",
    ),
}


def failed(law: str, port: Any) -> Finding:
    (finding,) = hold(law, port)
    assert finding.status is Status.FAILED
    return finding


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_does_is_said(name: str) -> None:
    alter, form, words = CACHES[name]
    finding = failed("cache", plain(alter))
    assert finding.fault == form, finding.message
    assert words in finding.message


def test_every_form_of_a_cache_was_planted() -> None:
    assert {form for _, form, _ in CACHES.values()} == set(OF_CACHES)


def test_its_words_stand_in_the_cause() -> None:
    finding = failed("cache", plain(CACHES["three-unfilled"][0]))
    (cause,) = Diagnosis(findings=[finding]).causes
    assert cause.fault in FORMS
    assert cause.note == CACHES["three-unfilled"][2]
    assert cause.laws == ("cache",)


def test_what_is_random_has_no_form() -> None:
    """Every slot of the values is moved by a little, differently for each."""

    def noisy(k: Any, v: Any) -> Any:
        rng = torch.Generator().manual_seed(0)
        return k, v + 0.1 * torch.randn(v.shape, generator=rng, dtype=v.dtype)

    finding = failed("cache", plain(cached(noisy)))
    assert finding.fault is None, finding.message
    assert "unexplained" in finding.message


@pytest.mark.parametrize("name", ["cache-no-mask", "cache-of-first-block", "cache-float16"])
def test_what_the_catalogue_knows_keeps_its_name(name: str) -> None:
    assert failed("cache", faulty(name)).fault == name


# Padding


def masked(change: Callable[[Any, Any], Any]) -> Any:
    """``change(scores, real)`` with what is real of the sources, and causality alone besides."""

    def mask(attn: Any, right: Any, scores: Any, allowed: Any) -> Any:
        if allowed.ndim == 2:
            return right(scores, allowed)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        # What the last target sees is what is real.
        return right(change(scores, allowed[..., -1:, :]), causal)

    return attending("mask", mask)


def _rows_before(attn: Any, right: Any, scores: Any, allowed: Any) -> Any:
    """Each row has the mask of the row before it."""
    if allowed.ndim == 2:
        return right(scores, allowed)
    itself = torch.eye(scores.shape[-1], dtype=torch.bool)
    return right(scores, allowed.roll(1, 0) | itself)


def _in_any_row(attn: Any, right: Any, scores: Any, allowed: Any) -> Any:
    if allowed.ndim == 2:
        return right(scores, allowed)
    itself = torch.eye(scores.shape[-1], dtype=torch.bool)
    return right(scores, allowed.all(0, keepdim=True) | itself)


def positioned(change: Callable[[Any, Any], Any]) -> Any:
    """``change(positions, real)`` where there is a mask."""

    def positions(model: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        found = right(ids, past, real)
        return found if real is None else change(found, real)

    return lambda model: wrap(model, "positions", positions)


def _seen(attn: Any, right: Any, scores: Any, allowed: Any) -> Any:
    """Padding is seen."""
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return right(scores, allowed if allowed.ndim == 2 else causal)


def _nothing_seen(attn: Any, right: Any, scores: Any, allowed: Any) -> Any:
    """Padding does not see itself, and the softmax of nothing is not a number."""
    if allowed.ndim == 2:
        return right(scores, allowed)
    return scores.masked_fill(~(allowed & allowed[..., -1:, :]), float("-inf"))


def _own_positions(model: Any) -> None:
    """Positions follow the mask, whatever is given."""

    def forward(self: Any, right: Any, ids: Any, *args: Any, **more: Any) -> Any:
        return right(ids, *args, **{**more, "position_ids": None})

    wrap(model, "forward", forward)


PADDING: dict[str, tuple[Any, str, str]] = {
    # Not by 1: that is the mask of zeros and ones, added to the scores, which is a fault by name.
    "hidden-too-little": (
        masked(lambda scores, real: scores - 10.0 * ~real),
        "padding-counts",
        "-10 is added to the scores of padding, which does not hide it",
    ),
    **{
        f"hidden-by-{number}": (
            masked(lambda scores, real, number=number: scores - number * ~real),
            "padding-counts",
            f"-{number} is added to the scores of padding, which does not hide it",
        )
        for number in (0.25, 3.7, 8, 15)
    },
    "scores-times-mask": (
        masked(lambda scores, real: scores * real),
        "padding-counts",
        "the scores are multiplied by the mask, and padding is seen with a score of 0",
    ),
    "hidden-in-the-first-block": (
        attending("mask", _seen, [1, 2]),
        "padding-counts",
        "padding is hidden in the first block alone, and seen in the others",
    ),
    "seen-in-the-last-block": (
        attending("mask", _seen, [2]),
        "padding-counts",
        "padding is hidden in all blocks but the last, and seen in the others",
    ),
    "padding-sees-nothing": (
        attending("mask", _nothing_seen),
        "padding-not-finite",
        "not a finite number",
    ),
    "positions-ignored": (
        _own_positions,
        "padding-positions-ignored",
        "other positions are given, and the logits stay as they were: they are ignored",
    ),
    "rows-before": (
        attending("mask", _rows_before),
        "padding-rows",
        "each row has the mask of the row before it",
    ),
    "in-any-row": (
        attending("mask", _in_any_row),
        "padding-rows",
        "what is padding in any row is hidden in all",
    ),
    "positions-all-0": (
        positioned(lambda at, real: at * 0),
        "padding-positions",
        "every real token has position 0",
    ),
    "positions-of-the-row-before": (
        positioned(lambda at, real: at.roll(1, 0)),
        "padding-positions",
        "positions are those of the row before",
    ),
}


@pytest.mark.parametrize("name", PADDING)
def test_what_padding_does_is_said(name: str) -> None:
    alter, form, words = PADDING[name]
    port = plain(alter)
    if form == "padding-positions":
        port.withdraw(PADDED_AT)  # a port that is handed positions finds none itself
    finding = failed("positions.padding", port)
    assert finding.fault == form, finding.message
    assert words in finding.message


def test_every_form_of_padding_was_planted() -> None:
    assert {form for _, form, _ in PADDING.values()} == set(OF_PADDING)
