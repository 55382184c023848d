"""Masks of every shape and type; and masks beside a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port, subject

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.padding.cached import padded_batch, splits
from gpt_verify.laws.padding.masks import shapes
from gpt_verify.laws.padding.steps import ways_of_steps
from gpt_verify.port import MASKED, PADDED, PADDED_AT, STEP_PADDED, STEP_PADDED_AT
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import Config

MASKS, CACHED = "positions.masks", "cache.padded"
DTYPES = ["float64", "float32", "bfloat16", "float16"]
FAULTS = [name for name, fault in CATALOGUE.items() if fault.law in (MASKS, CACHED)]


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def sdpa(**more: Any) -> Any:
    return port(attention="sdpa", **more)


def a_mask_alone(made: Any) -> Any:
    made.withdraw(PADDED_AT, STEP_PADDED_AT)
    return made


@pytest.mark.parametrize("law", [MASKS, CACHED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [port, sdpa, plain, lambda **k: a_mask_alone(plain(**k))])
def test_a_correct_port_passes(make: Any, dtype: str, law: str) -> None:
    finding = only(hold(law, make(dtype=dtype)))
    assert finding.status is Status.PASSED, finding.message


def test_what_is_said_of_a_port_that_derives_positions_and_of_one_that_does_not() -> None:
    assert (
        "a mask alone positions count the tokens that are not" in only(hold(MASKS, plain())).message
    )
    assert "a mask alone positions count all tokens" in only(hold(MASKS, port())).message
    assert "as integers, truth values, floating-point numbers" in only(hold(MASKS, port())).message
    message = only(hold(CACHED, plain())).message
    assert message.startswith("rows of 7, 8, 5 tokens, padded on the left, in 16 splits, positions")
    assert "positions given and a mask alone: " in message
    assert "a mask alone" not in only(hold(CACHED, port())).message


@pytest.mark.parametrize("law", [MASKS, CACHED])
def test_a_port_without_a_mask_is_not_examined(law: str) -> None:
    finding = only(hold(law, CallablePort(plain().logits, "function", None)))
    assert finding.status is Status.NOT_EXAMINED


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_each_fault_is_named(name: str, dtype: Any) -> None:
    law = CATALOGUE[name].law
    assert law is not None
    finding = only(hold(law, faulty(name, dtype)))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name


@pytest.mark.parametrize("name", [n for n in FAULTS if n != "padding-mask-type"])
def test_and_where_no_positions_are_taken(name: str) -> None:
    law = CATALOGUE[name].law
    assert law is not None
    finding = only(hold(law, a_mask_alone(faulty(name))))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name


@pytest.mark.parametrize("name", FAULTS)
def test_padding_on_the_left_does_not_show_it(name: str) -> None:
    finding = only(hold("positions.padding", faulty(name)))
    assert finding.status is Status.PASSED, finding.message


def from_first(model: Any) -> None:
    """Positions count from the first real token, masked ones in between included."""

    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        if real is None:
            return right(ids, past, real)
        first = real.long().argmax(-1, keepdim=True)
        at = torch.arange(real.shape[1])[None] - first
        return at.clamp(min=0)[:, -ids.shape[1] :]

    wrap(model, "positions", positions)


@pytest.mark.parametrize("make", [plain, lambda alter: a_mask_alone(plain(alter))])
def test_either_way_to_count_is_right(make: Any) -> None:
    finding = only(hold(MASKS, make(from_first)))
    assert finding.status is Status.PASSED, finding.message
    assert "count from the first token that is not masked" in finding.message


def now_this_way_now_that(model: Any) -> None:
    """Positions count the tokens that are not masked where the last is one of them, and all
    otherwise."""

    def positions(self: Any, right: Any, ids: Any, past: int, real: Any) -> Any:
        if real is not None and not real[:, 0].bool().all() and not real[:, -1].bool().all():
            return torch.arange(ids.shape[1])[None].expand_as(ids)
        return right(ids, past, real)

    wrap(model, "positions", positions)


def test_but_the_same_way_in_every_mask() -> None:
    finding = only(hold(MASKS, plain(now_this_way_now_that)))
    assert finding.status is Status.FAILED
    assert "masked in between, with a mask alone: positions count the tokens" in finding.message
    assert "and in other masks positions count all tokens" in finding.message
    assert finding.fault is None


def test_a_cache_whose_positions_no_mask_changes_is_no_fault_where_none_does() -> None:
    """As transformers': positions count the padding with a cache and without."""

    def counted(model: Any) -> None:
        wrap(model, "positions", lambda self, right, ids, past, real: right(ids, past, None))

    for law in (MASKS, CACHED):
        finding = only(hold(law, plain(counted)))
        assert finding.status is Status.PASSED, finding.message


def dropped_with_the_first_row(model: Any) -> None:
    """The mask is ignored where the first row has no padding."""

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        return right(x, past, None if real is None or real[0].all() else real)

    for block in model.h:
        wrap(block.attn, "forward", forward)


def test_a_first_row_without_padding_is_tried() -> None:
    made = plain(dropped_with_the_first_row)
    assert only(hold("positions.padding", made)).status is Status.PASSED
    finding = only(hold(MASKS, made))
    assert finding.status is Status.FAILED
    assert "padding on both sides" in finding.message


class Typed(torch.nn.Module):
    """A module whose mask is of one type.

    Args:
        changed: the mask that it takes → zeros and ones; it raises on other types.
    """

    def __init__(self, changed: Any, source: Checkpoint) -> None:
        super().__init__()
        self.inner, self.changed = plain(source=source).module, changed

    def forward(self, ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:
        mask = None if attention_mask is None else self.changed(attention_mask)
        return self.inner(ids, attention_mask=mask, position_ids=position_ids)


def truth(mask: Any) -> Any:
    if mask.dtype is not torch.bool:
        raise TypeError("a mask of truth values")
    return mask.long()


def numbers(mask: Any) -> Any:
    return (1 - (1 - mask)).long()  # raises on truth values


def added(mask: Any) -> Any:
    """Integers are zeros and ones; floating-point numbers are added to the scores."""
    return (mask == 0).long() if mask.is_floating_point() else mask.long()


def whole_numbers(mask: Any) -> Any:
    """Takes the lowest number, and 1, for one and the same."""
    return (mask != 0).long() if mask.is_floating_point() else mask.long()


@pytest.mark.parametrize("changed", [truth, numbers, added, whole_numbers])
def test_types_of_masks(changed: Any) -> None:
    source = checkpoint()
    made = TorchModule(Typed(changed, source), source, "typed")
    for law in ("positions.padding", MASKS):
        finding = only(hold(law, made))
        assert finding.status is Status.PASSED, finding.message


@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=3, n_embd=4, n_head=1, n_layer=2),
        Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
        Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
        Config(n_vocab=101, n_ctx=40, n_embd=2, n_head=2, n_layer=1),
    ],
    ids=lambda c: f"P{c.n_ctx}",
)
@pytest.mark.parametrize("law", [MASKS, CACHED])
def test_odd_sizes(config: Config, law: str) -> None:
    source = checkpoint(config, 1, scale=1.5)
    for made in (sdpa(source=source), plain(source=source), a_mask_alone(plain(source=source))):
        finding = only(hold(law, made, source, 1))
        assert finding.status is not Status.FAILED, finding.message


def test_the_masks_are_what_they_are_called() -> None:
    found = shapes(subject(plain()))
    assert list(found) == [
        "a mask of ones",
        "padding on the right",
        "padding on both sides",
        "masked in between",
    ]
    assert found["a mask of ones"].mask.all()
    assert found["padding on the right"].mask[0].tolist() == [1] * 8 + [0] * 9
    assert found["padding on both sides"].mask[2].tolist() == [0] * 4 + [1] * 8 + [0] * 5
    between = found["masked in between"].mask[0].tolist()
    assert between == [0] + [1] * 4 + [0] * 4 + [1] * 3 + [0] * 4 + [1]
    lengths = [[len(row) for row in batch.sequences] for batch in found.values()]
    assert lengths[1:] == [[8, 17, 1, 14], [17, 14, 8, 1], [8, 17, 1, 14]]


def test_every_split_leaves_no_row_of_its_first_call_empty() -> None:
    batch = padded_batch(subject(plain()))
    assert batch.mask.sum(axis=1).tolist() == [7, 8, 5]
    every = splits(batch)
    assert len(every) == len(set(every)) == 16
    assert {sum(lengths) for lengths in every} == {8}
    assert min(lengths[0] for lengths in every) == 4
    assert (8,) in every and (4, 1, 1, 1, 1) in every


def test_every_mistake_of_steps_is_another_one() -> None:
    batch = padded_batch(subject(plain()))
    lengths = (5, 2, 1)
    found = set()
    for way in ways_of_steps(batch):
        parts: list[bytes] = []
        before: tuple[int, ...] = ()
        for length in lengths:
            n = length * len(batch.tokens)
            parts += [way.positions(before, n).tobytes(), way.sources(before, n).tobytes()]
            before = (*before, n)
        found.add(b"".join(parts))
    assert len(found) == len(list(ways_of_steps(batch)))


def test_what_the_adapter_offers() -> None:
    offers = port().offers()
    assert all(c in offers for c in (PADDED, PADDED_AT, MASKED, STEP_PADDED, STEP_PADDED_AT))


def test_a_context_of_one_token_leaves_no_room() -> None:
    source = checkpoint(Config(n_vocab=5, n_ctx=1, n_embd=4, n_head=2, n_layer=1))
    for law in (MASKS, CACHED):
        assert only(hold(law, plain(source=source), source)).status is Status.NOT_EXAMINED
    assert np.isfinite(CONFIG.n_ctx)
