"""The laws of outputs: what correct ports hand out, and each fault by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import Sources
from models import checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.faults.inject import wrap
from gpt_verify.faults.model import Options
from gpt_verify.findings import Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.port import STATES
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.reference import Config

FAULTS = [name for name, fault in CATALOGUE.items() if fault.family == "outputs"]


@pytest.mark.parametrize(
    ("attention", "dtype"), [("eager", "float32"), ("eager", "bfloat16"), ("sdpa", "float16")]
)
def test_transformers_hands_out_what_it_says(attention: str, dtype: Any) -> None:
    made = port(attention=attention, dtype=dtype)
    (states,), (patterns,) = hold("outputs.states", made), hold("outputs.patterns", made)
    assert states.status is Status.PASSED, states.message
    if attention == "sdpa":
        assert patterns.status is Status.NOT_EXAMINED
        assert patterns.message == "output_attentions=True hands out nothing"
    else:
        assert patterns.status is Status.PASSED, patterns.message


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refuted_and_named(name: str) -> None:
    (finding,) = hold(str(CATALOGUE[name].law), faulty(name))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name, finding.message


def test_the_last_state_may_be_either_where_nobody_says() -> None:
    made = plain(lambda model: wrap(model, "states", lambda self, right, streams, normed: streams))
    (finding,) = hold("outputs.states", made)
    assert finding.status is Status.PASSED, finding.message


def test_what_may_be_a_site_that_was_not_seen_is_not_judged() -> None:
    """Of a head that reads a hidden copy nobody sees ``ln_f``, which the last state is."""
    (finding,) = hold("outputs.states", faulty("tying-head-hidden"))
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith("hidden_states[0] to hidden_states[2], ")


def test_too_few_states() -> None:
    def fewer(self: Any, right: Any, streams: Any, normed: Any) -> Any:
        return right(streams, normed)[1:]

    (finding,) = hold("outputs.states", plain(lambda model: wrap(model, "states", fewer)))
    assert finding.status is Status.FAILED
    assert finding.message == "3 hidden states are handed out, should be 4"


def test_too_few_patterns() -> None:
    def fewer(self: Any, right: Any, scores: Any, patterns: Any) -> Any:
        return right(scores, patterns)[1:]

    (finding,) = hold("outputs.patterns", plain(lambda model: wrap(model, "patterns", fewer)))
    assert finding.status is Status.FAILED
    assert finding.message == "2 attentions are handed out, should be 3"


def test_states_of_another_precision_are_within_rounding() -> None:
    """Handed out in half precision, they are rounded once more than they were inside."""

    def rounded(self: Any, right: Any, streams: Any, normed: Any) -> Any:
        return [x.to(torch.bfloat16).float() for x in right(streams, normed)]

    made = plain(lambda model: wrap(model, "states", rounded), "bfloat16")
    (finding,) = hold("outputs.states", made)
    assert finding.status is Status.PASSED, finding.message
    made = plain(lambda model: wrap(model, "states", rounded))
    (finding,) = hold("outputs.states", made)
    assert finding.status is Status.FAILED


def test_a_fused_kernel_shows_no_patterns() -> None:
    (finding,) = hold("outputs.patterns", plain(options=Options(fused=True)))
    assert finding.status is Status.NOT_EXAMINED


def test_nobody_is_warned_of_what_is_only_asked(
    sources: Sources, capfd: pytest.CaptureFixture[str]
) -> None:
    source = sources("llama")
    hold("outputs.patterns", huggingface(source, "sdpa"), source)
    assert capfd.readouterr().err == ""


def test_the_smallest_model() -> None:
    source = checkpoint(Config(n_vocab=2, n_ctx=1, n_embd=1, n_head=1, n_layer=1))
    made = port(source=source)
    for law in ("outputs.states", "outputs.patterns"):
        (finding,) = hold(law, made, source)
        assert finding.status is Status.PASSED, finding.message


def test_a_module_without_such_arguments_offers_none() -> None:
    class Bare(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> Any:
            return self.inner(ids)["logits"]

    assert STATES not in plain().like(Bare(plain().module)).offers()
