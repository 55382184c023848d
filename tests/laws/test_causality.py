"""What comes later changes nothing: from outside, in the patterns, and by gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import causality_faults as faults
import numpy as np
import pytest
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, message, port

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.model import Options
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.agreement import LIMIT_PAIR
from gpt_verify.laws.causality.boundaries import SHORT, cuts, edges
from gpt_verify.laws.causality.sight import Sight
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY, INPUT_GRADIENTS, NOT_SHOWN
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.openai_tf import openai_tf
from gpt_verify.reference import Config

BITS, PATTERN, GRADIENT = "causality.bits", "causality.pattern", "causality.gradient"
DTYPES = ["float64", "float32", "bfloat16", "float16"]
#: Long enough for a tile of 64.
LONG = Config(n_vocab=31, n_ctx=70, n_embd=12, n_head=3, n_layer=2)
NOTHING_MASKED = "position 0 sees position 1, and every position every later one that was tried"
ONE_AHEAD = "position 0 sees position 1, and every position 1 ahead, none further"
TILE = "and every position the rest of its tile of 4"
EDGE = "position 63 sees position 64, only across the boundary at 64, up to 1 ahead"

#: Fault → what the law that looks from outside says.
OUTSIDE = {
    "no_mask": NOTHING_MASKED,
    "mask_off_by_one": "position 0 sees position 1, and every position 3 ahead, none further, "
    "as with a mask off by 3, or by one in 3 layers (15 boundaries leak of 15",
    "mask_off_by_one_in_one_layer": ONE_AHEAD,
    "diagonal_tiles_whole": TILE,
    "last_token_is_seen": "position 0 sees position 15, which 15 positions see, and no other",
    "one_head_is_not_masked": NOTHING_MASKED,
    "mask_too_soft": NOTHING_MASKED,
    "mask_of_minus_10000_under_huge_scores": "pairs that were tried see",
    "mask_after_scaling_by_zero": NOTHING_MASKED,
    "softmax_over_targets": NOTHING_MASKED,
    "mask_after_the_softmax": NOTHING_MASKED,
    "norm_over_the_sequence": NOTHING_MASKED,
    "residual_of_the_next_position": ONE_AHEAD,
    "inputs_shifted": ONE_AHEAD,
}
#: Fault → what the law of the patterns says, and of how many of three layers.
INSIDE = {
    "no_mask": (f"in every head, {NOTHING_MASKED}", 3),
    "mask_off_by_one": (f"in every head, {ONE_AHEAD}", 3),
    "mask_off_by_one_in_one_layer": (f"in every head, {ONE_AHEAD}", 1),
    "diagonal_tiles_whole": (f"in every head, position 0 sees position 1, {TILE}", 3),
    "last_token_is_seen": ("position 0 sees position 18, which 18 positions see", 1),
    "one_head_is_not_masked": (f"in head 3 of 4, {NOTHING_MASKED}", 1),
    "mask_too_soft": (f"in every head, {NOTHING_MASKED}", 3),
    "mask_of_minus_10000_under_huge_scores": ("pairs that were tried see", 1),
    "mask_after_scaling_by_zero": (NOTHING_MASKED, 3),
    "softmax_over_targets": ("every column does: the softmax is taken over the targets", 3),
    "softmax_in_half_precision": ("should be 1 ± ", 1),
}
#: Fault → what the law by gradient says.
BACKWARDS = {
    "no_mask": NOTHING_MASKED,
    "mask_off_by_one": "position 0 sees position 1, and every position 3 ahead, none further",
    "diagonal_tiles_whole": TILE,
    "one_head_is_not_masked": NOTHING_MASKED,
    "norm_over_the_sequence": NOTHING_MASKED,
    "residual_of_the_next_position": ONE_AHEAD,
    "straight_through_mask": NOTHING_MASKED,
    "derivatives_averaged": NOTHING_MASKED,
    "gradient-averaged": NOTHING_MASKED,
    "gradient-mask-missing": NOTHING_MASKED,
    "gradient-mask-straight-through": NOTHING_MASKED,
}


def only(found: list[Finding], law: str) -> Finding:
    (finding,) = found
    assert finding.id == law
    return finding


def sdpa(**more: Any) -> Any:
    return port(attention="sdpa", **more)


def fused(**more: Any) -> Any:
    return plain(options=Options(fused=True), **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [port, sdpa, plain, fused])
def test_a_correct_port_keeps_its_bits(make: Any, dtype: str) -> None:
    finding = only(hold(BITS, make(dtype=dtype)), BITS)
    assert (finding.status, finding.score) == (Status.PASSED, 0.0)
    assert finding.message == (
        "logits before 15 boundaries in 16 tokens and 12 boundaries in 19 tokens, everything from "
        "there on replaced: same bits"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [port, plain])
def test_a_correct_pattern_passes(make: Any, dtype: str) -> None:
    found = hold(PATTERN, make(dtype=dtype))
    assert [f.site for f in found] == [f"h.{i}.attn.pattern" for i in range(3)]
    for finding in found:
        assert finding.status is Status.PASSED, finding.message
        assert finding.message.startswith("4 heads, 19 tokens: zero above the diagonal")
        assert finding.score is not None and finding.limit is not None
        assert finding.score < finding.limit / 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [port, sdpa, plain, fused])
def test_a_correct_gradient_passes(make: Any, dtype: str) -> None:
    finding = only(hold(GRADIENT, make(dtype=dtype)), GRADIENT)
    assert finding.status is Status.PASSED, finding.message
    assert finding.message == (
        "loss at 15 positions of 16 tokens and 6 positions of 19 tokens: derivatives at all later "
        "inputs are exactly zero"
    )


@pytest.mark.parametrize("make", [sdpa, fused])
def test_a_fused_attention_shows_no_pattern(make: Any) -> None:
    found = hold(PATTERN, make())
    assert {f.status for f in found} == {Status.NOT_EXAMINED}
    assert [f.site for f in found] == [f"h.{i}.attn.pattern" for i in range(3)]
    assert {f.message for f in found} == {NOT_SHOWN}


def test_a_port_that_shows_nothing_but_logits_is_examined_from_outside() -> None:
    function = CallablePort(port().logits, "function", None)
    assert only(hold(BITS, function), BITS).status is Status.PASSED
    for law, lacking in ((PATTERN, ACTIVATIONS), (GRADIENT, INPUT_GRADIENTS)):
        finding = only(hold(law, function), law)
        assert (finding.status, finding.message) == (Status.NOT_EXAMINED, lacking.lacking)
    altered = CallablePort(plain(faults.mask_off_by_one).logits, "function", None)
    assert only(hold(BITS, altered), BITS).status is Status.FAILED


@pytest.mark.parametrize(
    "config",
    [
        Config(n_vocab=1, n_ctx=1, n_embd=4, n_head=1, n_layer=2),
        Config(n_vocab=5, n_ctx=1, n_embd=4, n_head=2, n_layer=1),
        Config(n_vocab=1, n_ctx=7, n_embd=4, n_head=2, n_layer=1),
        Config(n_vocab=2, n_ctx=2, n_embd=3, n_head=1, n_layer=1),
        Config(n_vocab=2, n_ctx=17, n_embd=1, n_head=1, n_layer=2),
        Config(n_vocab=11, n_ctx=9, n_embd=6, n_head=1, n_layer=5),
        Config(n_vocab=101, n_ctx=120, n_embd=2, n_head=2, n_layer=1),
    ],
    ids=lambda c: f"V{c.n_vocab}-P{c.n_ctx}",
)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    for seed in range(2):
        source = checkpoint(config, seed, scale=1.5)
        made = port(dtype=dtype, source=source)
        lonely = config.n_ctx == 1 or config.n_vocab == 1
        flat = config.n_embd == 1  # one channel is normalised to zero, or to rounding
        for law, nothing in ((BITS, lonely), (PATTERN, False), (GRADIENT, lonely)):
            for finding in hold(law, made, source, seed):
                expected = {Status.NOT_EXAMINED if nothing else Status.PASSED}
                expected |= {Status.NOT_EXAMINED} if flat and law == GRADIENT else set()
                assert finding.status in expected, finding.message


def test_why_a_model_too_small_is_not_examined() -> None:
    for config, words in (
        (Config(5, 1, 4, 2, 1), "a context of one token has nothing that comes later"),
        (Config(1, 7, 4, 2, 1), "a vocabulary of one token"),
    ):
        source = checkpoint(config)
        for law in (BITS, GRADIENT):
            assert only(hold(law, port(source=source), source), law).message.startswith(words)


@pytest.mark.parametrize("name", OUTSIDE)
def test_each_leak_is_refuted_from_outside_and_named(name: str) -> None:
    finding = only(hold(BITS, plain(getattr(faults, name))), BITS)
    assert finding.status is Status.FAILED
    assert OUTSIDE[name] in finding.message
    assert finding.message.startswith("logits[") and "on replaced;" in finding.message
    assert finding.score is not None and finding.score > 50 * LIMIT_PAIR


@pytest.mark.parametrize("name", INSIDE)
def test_each_leak_is_refuted_in_the_pattern_and_named(name: str) -> None:
    found = hold(PATTERN, plain(getattr(faults, name)))
    words, layers = INSIDE[name]
    failed = [f for f in found if f.status is Status.FAILED]
    assert len(found) == 3 and len(failed) == layers
    for finding in failed:
        assert words in finding.message
        assert f"{finding.site}[0, " in finding.message and "should be" in finding.message


@pytest.mark.parametrize("name", BACKWARDS)
def test_each_leak_is_refuted_by_gradient_and_named(name: str) -> None:
    finding = only(
        hold(GRADIENT, faulty(name) if "-" in name else plain(getattr(faults, name))), GRADIENT
    )
    assert finding.status is Status.FAILED
    assert BACKWARDS[name] in finding.message


#: One head moves the logits of this model by some 14 noise floors of bfloat16, which is the limit.
IN_HALF = [
    (name, dtype, law)
    for name in ("no_mask", "mask_off_by_one", "one_head_is_not_masked")
    for dtype in ("bfloat16", "float16")
    for law in (BITS, PATTERN, GRADIENT)
    if (name, dtype, law) != ("one_head_is_not_masked", "bfloat16", BITS)
]


@pytest.mark.parametrize(("name", "dtype", "law"), IN_HALF)
def test_in_half_precision_too(name: str, dtype: Any, law: str) -> None:
    found = hold(law, plain(getattr(faults, name), dtype))
    assert Status.FAILED in {f.status for f in found}
    assert "sees position" in message(found, Status.FAILED)


@pytest.mark.parametrize("law", [BITS, PATTERN, GRADIENT])
@pytest.mark.parametrize("name", ["tile_edge_leaks", "token_64_is_seen"])
def test_what_leaks_only_at_64_is_found_there(name: str, law: str) -> None:
    source = checkpoint(LONG)
    found = hold(law, plain(getattr(faults, name), source=source), source)
    words = message(found, Status.FAILED)
    if law == GRADIENT or name == "tile_edge_leaks":  # whose positions are those before an edge
        assert f"{EDGE}, as by a tile" in words
    else:
        assert "position 32 sees position 64, which 32 positions see, and no other" in words
    short = checkpoint()
    found = hold(law, plain(getattr(faults, name), source=short), short)
    assert {f.status for f in found} == {Status.PASSED}


def test_weights_that_are_masked_too_late_do_not_sum_to_one() -> None:
    """A port that shows its pattern as it is used, after a mask that came after the softmax."""
    judged = plain(faults.no_mask)
    right = judged.activations

    def activations(tokens: Any, visit: Any) -> Any:
        def masked(site: str, value: Any, narrowest: Any = None) -> None:
            late = site.endswith(".attn.pattern")
            visit(site, np.tril(value) if late else value, narrowest)

        return right(tokens, masked)

    judged.activations = activations
    for finding in hold(PATTERN, judged):
        assert finding.status is Status.FAILED
        assert finding.message.startswith("row h.")
        assert "but the last: the mask is applied after the softmax" in finding.message


def test_a_pattern_that_is_no_number_or_no_pattern_is_refuted() -> None:
    judged = plain()
    right = judged.activations

    def altered(change: Any) -> Any:
        def activations(tokens: Any, visit: Any) -> Any:
            def changed(site: str, value: Any, narrowest: Any = None) -> None:
                visit(site, change(value) if site.endswith("1.attn.pattern") else value, narrowest)

            return right(tokens, changed)

        return activations

    def not_a_number(value: Any) -> Any:
        value = value.copy()
        value[0, 2, 5, 3] = np.nan
        return value

    for change, words in (
        (not_a_number, "row h.1.attn.pattern[0, 2, 5] sums to nan, should be 1"),
        (lambda value: value[:, :3], "has shape [1, 3, 19, 19], should be [1, 4, 19, 19]"),
    ):
        judged.activations = altered(change)
        statuses = {f.site: f.status for f in hold(PATTERN, judged)}
        assert statuses["h.1.attn.pattern"] is Status.FAILED
        assert statuses["h.0.attn.pattern"] is statuses["h.2.attn.pattern"] is Status.PASSED
        assert words in message(hold(PATTERN, judged), Status.FAILED)


def test_which_of_the_two_was_shown_is_said() -> None:
    """Rounding that depends on what comes later, and rounding that depends on nothing."""
    judged = plain(faults.straight_through_mask)  # masked to within rounding only
    finding = only(hold(BITS, judged), BITS)
    assert finding.status is Status.PASSED
    assert "(the bits depend on it): within rounding, at most " in finding.message
    assert finding.details["repeats"] is True

    rng = np.random.default_rng(0)
    right = plain().logits
    noisy = CallablePort(
        lambda tokens: (
            right(tokens) * (1 + 1e-7 * rng.standard_normal((1, 1, 101))).astype(np.float32)
        ),
        "noisy",
        None,
    )
    finding = only(hold(BITS, noisy), BITS)
    assert finding.status is Status.PASSED
    assert "(the port does not repeat its bits anyway): within rounding, at most" in finding.message
    assert finding.details["repeats"] is False


def test_chance_is_not_taken_for_a_leak() -> None:
    rng = np.random.default_rng(0)
    right = plain().logits
    random = CallablePort(
        lambda tokens: right(tokens) + rng.standard_normal((1, 1, 101)).astype(np.float32),
        "random",
        None,
    )
    finding = only(hold(BITS, random), BITS)
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "the same tokens have other logits each time"


def test_a_leak_is_named_where_bits_do_not_repeat() -> None:
    rng = np.random.default_rng(0)
    right = plain(faults.mask_off_by_one_in_one_layer).logits
    noisy = CallablePort(
        lambda tokens: (
            right(tokens) * (1 + 1e-7 * rng.standard_normal((1, 1, 101))).astype(np.float32)
        ),
        "noisy",
        None,
    )
    assert ONE_AHEAD in only(hold(BITS, noisy), BITS).message


def test_gradients_that_overflow_are_taken_in_float64() -> None:
    judged = plain(dtype="float16")
    right = judged.offers()[INPUT_GRADIENTS]

    def overflowing(tokens: Any, at: int) -> Any:
        return right(tokens, at) + (0 if judged._is_float64_copy else np.float32(np.inf))

    judged.offer(INPUT_GRADIENTS, overflowing)
    assert only(hold(GRADIENT, judged), GRADIENT).status is Status.PASSED
    judged.withdraw(FLOAT64_COPY)
    finding = only(hold(GRADIENT, judged), GRADIENT)
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "the derivatives of the loss at 0 are not finite"


def test_derivatives_that_are_zero_everywhere_prove_nothing() -> None:
    finding = only(hold(GRADIENT, plain(faults.input_detached)), GRADIENT)
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "the derivatives are zero at the earlier inputs as well"


def test_the_port_is_left_as_it_was() -> None:
    judged = port()
    tokens = np.arange(6)[None]
    before = judged.logits(tokens)
    for law in (BITS, PATTERN, GRADIENT):
        hold(law, judged)
    assert judged.logits(tokens).tobytes() == before.tobytes()
    assert judged.training() == []
    assert all(p.grad is None for p in judged.module.parameters())


def test_openai_tf() -> None:
    made = openai_tf(replace(checkpoint(), format="huggingface"))  # which has no files to restore
    try:
        for law in (BITS, PATTERN, GRADIENT):
            for finding in hold(law, made):
                assert finding.status is Status.PASSED, finding.message
    finally:
        made.close()


def sized(**sizes: int) -> Config:
    return Config(
        **{"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12} | sizes
    )


def test_every_boundary_that_is_known_to_leak_is_tried() -> None:
    assert cuts(Config(5, 1, 4, 2, 1)) == []
    assert edges(33) == (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32)
    short, whole = cuts(Config(n_vocab=2003, n_ctx=256, n_embd=128, n_head=4, n_layer=4))
    assert short.boundaries == tuple(range(1, SHORT))
    assert (whole.length, whole.boundaries) == (256, edges(256))
    assert {63, 64, 65, 127, 128, 129, 255} <= set(whole.boundaries)
    tried = cuts(sized())
    assert [cut.length for cut in tried] == [16, 72, 264, 1024]
    assert tried[1].boundaries == (16, 17, 31, 32, 33, 63, 64, 65)
    assert tried[2].boundaries == (128, 256)
    assert tried[3].boundaries == (512, 1023)
    for n_ctx in (17, 65, 72, 73, 74, 264, 265):
        for cut in cuts(sized(n_ctx=n_ctx)):
            assert all(0 < s < cut.length <= n_ctx for s in cut.boundaries) and cut.boundaries
        assert n_ctx - 1 in {s for cut in cuts(sized(n_ctx=n_ctx)) for s in cut.boundaries}


def test_only_what_was_tried_is_said() -> None:
    sees, tried = np.zeros((9, 9), np.bool_), np.zeros((9, 9), np.bool_)
    sees[2, 5] = tried[2, 5] = True
    assert Sight(sees, tried, 1).describe() == "position 2 sees position 5"
    tried[2, 6] = tried[3, 5] = True
    assert (
        Sight(sees, tried, 1).describe().startswith("position 2 sees position 5, at most 3 ahead")
    )
    assert Sight(np.tri(9, dtype=np.bool_), np.ones((9, 9), np.bool_), 1).describe() == ""


def test_sources_are_those_of_this_model() -> None:
    """The tests above stand for what they say: 19 positions, 3 layers, 4 heads."""
    assert (CONFIG.n_ctx, CONFIG.n_layer, CONFIG.n_head) == (19, 3, 4)
    assert isinstance(checkpoint(), Checkpoint)
