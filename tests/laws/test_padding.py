"""Padding on the left: with positions, and with a mask alone."""

from __future__ import annotations

from typing import Any

import altered_ports
import numpy as np
import pytest
import torch
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from strategies import Model
from subjects import hold, port, subject

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.padding.check import padded_batches
from gpt_verify.laws.padding.hypotheses import ways
from gpt_verify.port import PADDED, PADDED_AT
from gpt_verify.ports.callable import CallablePort
from gpt_verify.reference import Config

LAW = "positions.padding"
DTYPES = ["float64", "float32", "bfloat16", "float16"]
#: Fault → what the finding says.
NAMED = {
    "attended": "the mask is ignored: padding is attended to",
    "mask-of-first-row": "the mask of the first row is used for all",
    "mask-inverted": "the mask is taken the wrong way round",
    "mask-mirrored": "the mask is taken for one of padding on the right",
    "mask-early": "the mask is one token early",
    "mask-late": "the mask is one token late",
    "no-causal-mask": "no causal mask where there is a mask of padding",
    "positions-from-1": "positions begin at 1 after padding",
    "positions-of-first-row": "the positions of the first row are used for all",
    "mask-added": "the mask of zeros and ones is added to the scores as it is",
}


def mask_too_soft(model: Any) -> None:
    """Seven is subtracted from the scores of padding, and that is not enough. It has no name."""

    def mask(self: Any, right: Any, scores: Any, allowed: Any) -> Any:
        if allowed.ndim == 2:
            return right(scores, allowed)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return right(torch.where(allowed, scores, scores - 7), causal)

    for block in model.h:
        wrap(block.attn, "mask", mask)


def test_every_fault_of_the_catalogue_is_here() -> None:
    family = {n for n, f in CATALOGUE.items() if f.law == LAW}
    assert family == {f"padding-{name}" for name in NAMED}


def padding(judged: Any, *source: Any) -> Finding:
    (finding,) = hold(LAW, judged, *source)
    assert finding.id == LAW
    return finding


def only_a_mask(fault: str = "", dtype: Any = None) -> Any:
    """A port that takes no positions."""
    judged = faulty(f"padding-{fault}", dtype) if fault else plain(dtype=dtype)
    judged.withdraw(PADDED_AT)
    return judged


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_port_that_derives_positions_passes_both_ways(dtype: Any) -> None:
    finding = padding(plain(dtype=dtype))
    assert finding.status is Status.PASSED
    assert finding.message.startswith(
        "sequences of 8, 17, 1, 14 tokens padded on the left in two ways, "
        "mask and positions given and a mask alone: "
    )
    assert finding.details["derives_positions"] is True
    finding = padding(only_a_mask(dtype=dtype))
    assert finding.status is Status.PASSED
    assert "in two ways, a mask alone: " in finding.message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_known_trap_is_reported_as_what_it_is(attention: str, dtype: Any) -> None:
    """transformers' GPT-2 does not derive positions from the mask."""
    finding = padding(port(attention=attention, dtype=dtype))
    assert finding.status is Status.PASSED
    assert "mask and positions given: " in finding.message
    assert "without position_ids positions count the padding: logits are off by" in finding.message
    assert finding.message.endswith("noise floors; pass position_ids")
    assert finding.details["derives_positions"] is False
    assert finding.details["without_positions"] > 2 * LIMIT_PAIR
    assert finding.score is not None and finding.score < 3


@pytest.mark.parametrize(
    "fault",
    [
        altered_ports.exact_gelu,
        altered_ports.epsilon_1e6,
        altered_ports.unscaled_scores,
        altered_ports.layers_exchanged,
        altered_ports.soft_cap,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_port_that_is_wrong_elsewhere_is_not_blamed_for_the_trap(fault: Any) -> None:
    """It is compared with itself: what it does without positions, it says itself."""
    finding = padding(port(fault))
    assert finding.status is Status.PASSED, finding.message
    assert finding.details["derives_positions"] is False


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_whoever_takes_no_positions_must_derive_them(dtype: Any) -> None:
    finding = padding(only_a_mask("positions-counted", dtype))
    assert finding.status is Status.FAILED
    assert finding.message.endswith(
        "the port does not derive positions from the mask, and takes none: "
        "positions count the padding"
    )
    assert finding.details["derives_positions"] is False


def test_a_port_that_takes_nothing_but_positions_too_is_examined() -> None:
    judged = plain()
    judged.withdraw(PADDED)
    finding = padding(judged)
    assert finding.status is Status.PASSED
    assert finding.details["derives_positions"] is None


def test_without_a_mask_it_is_not_examined() -> None:
    finding = padding(CallablePort(port().logits, "function", None))
    assert (finding.status, finding.message) == (Status.NOT_EXAMINED, "no attention mask")


@pytest.mark.parametrize("name", NAMED)
def test_each_mistake_is_refuted_and_named(name: str) -> None:
    finding = padding(faulty(f"padding-{name}"))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message
    assert finding.fault == f"padding-{name}"
    assert finding.message.startswith("logits[")
    assert finding.score is not None and finding.score > 100 * LIMIT_PAIR


def test_a_mistake_that_has_no_name_is_described() -> None:
    finding = padding(plain(mask_too_soft))
    assert finding.status is Status.FAILED
    assert "the tokens of the padding matter: it is attended to" in finding.message
    assert finding.fault is None


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(name: str, dtype: Any) -> None:
    finding = padding(faulty(f"padding-{name}", dtype))
    assert finding.status is Status.FAILED
    assert NAMED[name] in finding.message


@pytest.mark.parametrize("name", [n for n in NAMED if "mask" in n])
def test_and_with_a_mask_alone(name: str) -> None:
    finding = padding(only_a_mask(name))
    assert finding.status is Status.FAILED
    assert f"with a mask alone, {NAMED[name]}" in finding.message


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
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    # transformers' eager attention is not right in float16 where scores are large: see below.
    attention = "sdpa" if dtype == "float16" else "eager"
    for seed in range(3):
        source = checkpoint(config, seed, scale=1.5)
        transformers = port(attention=attention, dtype=dtype, source=source)
        for made in (transformers, plain(dtype=dtype, source=source)):
            finding = padding(made, source, seed)
            assert finding.status is Status.PASSED, finding.message


def test_padding_whose_scores_overflow_is_refuted() -> None:
    """transformers' eager attention adds float16's lowest number, -65504, to a masked score. Where
    all scores of a padding are below -16, the sum is minus infinity in the whole row, its softmax
    is not a number, and 0 × NaN is not a number at the tokens that do not attend to it."""
    source = checkpoint(Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5), 2, scale=1.5)
    for attention, dtype in (("eager", "float32"), ("sdpa", "float16")):
        made = port(attention=attention, dtype=dtype, source=source)
        assert padding(made, source, 2).status is Status.PASSED
    finding = padding(port(dtype="float16", source=source), source, 2)
    assert finding.status is Status.FAILED
    assert finding.message == (
        "logits[0, 4, 0] = nan padded with other tokens, and finite without padding: "
        "not a finite number"
    )


def test_the_trap_is_not_taken_for_a_mistake_that_looks_the_same() -> None:
    """Two channels are normalised to plus and minus one, whatever is attended to."""
    source = checkpoint(Config(n_vocab=101, n_ctx=40, n_embd=2, n_head=2, n_layer=1), 2, scale=1.5)
    finding = padding(port(source=source), source, 2)
    assert finding.status is Status.PASSED
    assert "without position_ids positions count the padding" in finding.message


def test_the_trap_is_known_where_counted_positions_hang_on_the_last_bit() -> None:
    """The noise of the mistaken run counts: once a false alarm, found by random trials."""
    source = Model((101, 17, 14, 2, 2), "huge_scores", 5642).checkpoint()
    (finding,) = hold("positions.padding", port(attention="sdpa", source=source), source)
    assert finding.status is Status.PASSED, finding.message
    assert finding.details["derives_positions"] is False


def test_one_token_leaves_no_room() -> None:
    source = checkpoint(Config(n_vocab=5, n_ctx=1, n_embd=4, n_head=2, n_layer=1))
    finding = padding(port(source=source), source)
    assert finding.status is Status.NOT_EXAMINED


def test_what_is_returned_at_padding_is_not_looked_at() -> None:
    judged = plain()
    right = judged.offers()[PADDED_AT]
    assert right is not None

    def nan_at_padding(tokens: Any, mask: Any, positions: Any) -> Any:
        return np.where(mask[..., None] > 0, right(tokens, mask, positions), np.nan)

    judged.offer(PADDED_AT, nan_at_padding)
    assert padding(judged).status is Status.PASSED


def test_every_mistake_is_another_one() -> None:
    """No two ways of going wrong have the same positions, the same mask, and the same scores."""
    batch = padded_batches(subject(port()))[0]
    n = batch.tokens.size
    found = {
        (
            way.positions((), n).tobytes(),
            way.sources((), n).tobytes(),
            b"" if way.added is None else way.added((), n).tobytes(),
        )
        for way in [batch.right, *ways(batch)]
    }
    assert len(found) == 1 + len(ways(batch))


def test_the_batch_is_padded_on_the_left() -> None:
    zeros, other = padded_batches(subject(port()))
    assert [len(tokens) for tokens in zeros.sequences] == [8, 17, 1, 14]
    for a, b in zip(zeros.sequences, other.sequences, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (zeros.mask[:, -1] == 1).all() and (np.diff(zeros.mask) >= 0).all()
    assert zeros.positions[2].tolist() == [0] * 17
    assert zeros.positions[0].tolist() == [0] * 9 + list(range(8))
    assert not (zeros.tokens == other.tokens)[~zeros.real].all()
    assert zeros.tokens.shape[1] <= CONFIG.n_ctx
