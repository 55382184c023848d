"""The laws that look inside, for models of the families: symmetries, patterns, lenses.

Each holds of transformers' model, and is broken by a change to that model that nothing else about
it shows: the faults are put into one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from families import Sources
from subjects import hold, subject

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.subject import NotExamined
from gpt_verify.laws.table import CHECKS
from gpt_verify.port import ACTIVATIONS
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.ports.torch.module import TorchModule

SYMMETRIES = ("heads", "neurons", "scale", "rotate", "shift")
Alter = Callable[[Any], None]


def port(source: Checkpoint, alter: Alter = lambda module: None) -> TorchModule:
    """transformers' model, altered after it was built."""
    made = huggingface(source, "eager")
    alter(made.module)
    return made


@pytest.fixture(scope="module")
def held(sources: Sources) -> Callable[[str, str], list[Finding]]:
    """A law of a correct model."""
    return cache(lambda law, name: hold(law, port(sources(name)), sources(name)))


@pytest.fixture(scope="module")
def rewritten(sources: Sources) -> Callable[[str], dict[str, Finding | str]]:
    """All symmetries of a correct model, which are tried at once; in the place of one, why not."""

    @cache
    def every(name: str) -> dict[str, Finding | str]:
        tried = subject(port(sources(name)), sources(name))
        found: dict[str, Finding | str] = {}
        for law in SYMMETRIES:
            (part,) = (part for part in CHECKS if part.id == f"symmetry.{law}")
            try:
                found[law] = only(part.hold(tried))
            except NotExamined as why:
                found[law] = str(why)
        return found

    return every


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


#: Family → the rewritings that it has no use for, and why.
NONE: dict[str, dict[str, str]] = {
    "llama": {"shift": "an RMS norm does not take a constant away"},
    "gemma3_text": {"shift": "an RMS norm does not take a constant away"},
    "olmo2": {"shift": "an RMS norm does not take a constant away"},
    "gpt_oss": {"shift": "an RMS norm does not take a constant away"},
    "bloom": {"heads": "each head has a slope of its own"},
    "opt": {},
}


@pytest.mark.parametrize("name", NONE)
def test_rewritten_weights_that_mean_the_same(rewritten: Any, name: str) -> None:
    for law, found in rewritten(name).items():
        if (why := NONE[name].get(law)) is not None:
            assert found == why
        else:
            assert found.status is Status.PASSED, found.message
            assert found.score > 0  # something was computed anew


def _before(part: Callable[[Any], Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Alter:
    """What a part of the second layer reads is changed first."""

    def alter(module: Any) -> None:
        part(module).register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))

    return alter


def _after(part: Callable[[Any], Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Alter:
    """What it has made is changed."""

    def alter(module: Any) -> None:
        part(module).register_forward_hook(lambda _, given, made: change(made))

    return alter


def _one_part(first: int, last: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Some channels are not treated as the others are."""

    def change(x: torch.Tensor) -> torch.Tensor:
        factor = torch.ones_like(x)
        factor[..., first:last] = 1.01
        return x * factor

    return change


def _clipped(x: torch.Tensor) -> torch.Tensor:
    return x.clip(-1, 1)


def _layer(module: Any) -> Any:
    return module.model.layers[1]


def _norm_of_opt(module: Any) -> Any:
    return module.model.decoder.layers[1].self_attn_layer_norm


def _reads_the_mean(_: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
    mean: torch.Tensor = given[0].mean(-1, keepdim=True)
    return made + 0.01 * mean


#: Law → a family, and what breaks it there.
BROKEN: dict[str, tuple[str, Alter]] = {
    "heads": ("llama", _before(lambda m: _layer(m).self_attn.o_proj, _one_part(0, 10))),
    "neurons": ("llama", _before(lambda m: _layer(m).mlp.down_proj, _one_part(3, 4))),
    "scale": ("llama", _after(lambda m: _layer(m).self_attn.q_proj, _clipped)),
    "rotate": ("llama", _after(lambda m: _layer(m).self_attn.v_proj, _clipped)),
    "shift": ("opt", lambda module: _norm_of_opt(module).register_forward_hook(_reads_the_mean)),
}


@pytest.mark.parametrize("law", BROKEN)
def test_what_is_treated_unlike_is_refuted(sources: Sources, law: str) -> None:
    name, alter = BROKEN[law]
    found = only(hold(f"symmetry.{law}", port(sources(name), alter), sources(name)))
    assert found.status is Status.FAILED, found.message
    # The constant of the positions is the first that layer 1 reads.
    assert ("wpe" if law == "shift" else "layer 1") in found.message


@pytest.mark.parametrize("name", ["mistral", "gpt_oss", "bloom"])
def test_patterns_of_correct_models(held: Any, name: str) -> None:
    found = held("causality.pattern", name)
    assert {finding.status for finding in found} == {Status.PASSED}
    said = {finding.message.partition(": ")[2] for finding in found}
    windowed = ("mistral", "gpt_oss")
    assert any("before a window of 5" in words for words in said) == (name in windowed)
    assert all("no more than 1" in words for words in said) == (name == "gpt_oss")


def _shown(name: str, sources: Sources, change: Callable[[Any], Any]) -> list[Finding]:
    """The patterns of a model that shows others than it has."""
    made = port(sources(name))
    run = made.activations

    def activations(tokens: Any, visit: Any) -> Any:
        def other(site: str, value: Any, narrowest: Any = None) -> None:
            visit(site, change(value) if site == "h.0.attn.pattern" else value, narrowest)

        return run(tokens, other)

    made.offer(ACTIVATIONS, activations)
    return hold("causality.pattern", made, sources(name))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mistral", lambda p: p * 1.01, "sums to 1.01"),
        ("gpt_oss", lambda p: p / p.sum(-1, keepdims=True) * 1.01, "should be between 0 and 1 ±"),
        ("gpt_oss", lambda p: -p, "should be between 0 and 1 ±"),
        ("mistral", lambda p: p + 1e-9 * (p == 0), "weights lie before a window of 5"),
    ],
    ids=["too large", "too large beside a sink", "negative", "not zero"],
)
def test_patterns_that_are_none(
    sources: Sources, name: str, change: Callable[[Any], Any], words: str
) -> None:
    first, *others = _shown(name, sources, change)
    assert first.status is Status.FAILED
    assert words in first.message
    assert {finding.status for finding in others} == {Status.PASSED}


def test_a_window_that_is_too_wide_is_refuted_in_the_pattern(sources: Sources) -> None:
    def wider(module: Any) -> None:
        module.config.sliding_window = 6

    found = hold("causality.pattern", port(sources("mistral"), wider), sources("mistral"))
    assert {finding.status for finding in found} == {Status.FAILED}
    assert "before a window of 5" in found[0].message


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
def test_lenses_of_correct_models(held: Any, name: str) -> None:
    found = held("lens", name)
    assert {finding.status for finding in found} == {Status.PASSED}
    lenses = {lens for finding in found for lens in finding.details["lenses"]}
    # transformers' hidden states and head are what a lens is made of, but for a cap behind them.
    own = {"the port's own lens"} if name != "gemma2" else set()
    assert lenses == {"the port's states"} | own


def test_a_lens_with_another_norm_is_refuted(sources: Sources) -> None:
    def other(module: Any) -> None:
        module.model.norm.variance_epsilon = 0.1

    found = hold("lens", port(sources("llama"), other), sources("llama"))
    wrong = {finding.site: finding.message for finding in found if finding.status is Status.FAILED}
    assert set(wrong) == {"embed", *(f"h.{layer}.resid_post" for layer in range(3))}
    assert all("own lens" in message for message in wrong.values())


def test_the_lens_of_a_stream_that_begins_elsewhere_is_not_read(sources: Sources) -> None:
    (lens,) = (part for part in CHECKS if part.id == "lens")
    why = lens.free(sources("bloom").config)
    assert why == "the stream of bloom begins behind a norm of the embedding"
    assert lens.free(sources("llama").config) is None
