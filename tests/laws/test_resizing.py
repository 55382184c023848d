"""The law of resizing: a correct copy, and what may become of the rows, the tie and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint
from plain_ports import faulty
from subjects import hold, port, subject

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.resizing.check import FEWER, LENGTH
from gpt_verify.port import Port
from gpt_verify.reference import Config

FAULTS = [name for name, fault in CATALOGUE.items() if fault.family == "resizing"]


def held(made: Port, *source: Any) -> Finding:
    (finding,) = hold("resizing", made, *source)
    return finding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_resizes(dtype: Any) -> None:
    made = port(attention="sdpa", dtype=dtype)
    before, drawn = made.logits(np.arange(6)[None]), torch.get_rng_state()
    finding = held(made)
    assert finding.status is Status.PASSED, finding.message
    assert "106 and 98 rows" in finding.message
    assert made.logits(np.arange(6)[None]).tobytes() == before.tobytes()
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refuted_and_named(name: str) -> None:
    finding = held(faulty(name))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name, finding.message


def test_a_lookup_that_was_left_as_it_was_is_told_in_a_sentence() -> None:
    finding = held(faulty("tying-lookup-hidden"))
    assert finding.status is Status.FAILED
    assert "it raises IndexError on token 105, the last that it has" in finding.message


def resized_then(change: Any) -> Port:
    """transformers' model, changed after it was resized."""

    def resize(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        made = right(*args, **kwargs)
        with torch.no_grad():
            change(self)
        return made

    return port(lambda model: wrap(model, "resize_token_embeddings", resize))


def untied(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())


def one_row(model: Any) -> None:
    model.transformer.wte.weight[3, 5] += 1


def size_left(model: Any) -> None:
    model.config.vocab_size = 101


def a_table_of_another(model: Any) -> None:
    model.transformer.wte = torch.nn.Embedding(1, model.config.n_embd)


def loss_of_old_labels(model: Any) -> None:
    """Its loss knows the labels that there were before."""

    def loss_function(logits: Any, labels: Any, **more: Any) -> Any:
        if int(labels.max()) > 100:
            raise ValueError("no such label")
        return right(logits=logits, labels=labels, **more)

    right, model.loss_function = model.loss_function, loss_function


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (a_table_of_another, "resized to 106, it raises IndexError on tokens that it had before"),
        (loss_of_old_labels, "its loss raises ValueError where the last id is a label"),
        (untied, "which were one matrix, are two"),
        (one_row, "wte.weight[3, 5] = "),
        (size_left, "its configuration says that it has 101 rows"),
    ],
)
def test_what_else_may_be_wrong(change: Any, says: str) -> None:
    finding = held(resized_then(change))
    assert finding.status is Status.FAILED
    assert says in finding.message


@pytest.mark.parametrize("n_vocab", [1, 2, 7])
def test_small_vocabularies(n_vocab: int) -> None:
    source = checkpoint(Config(n_vocab=n_vocab, n_ctx=2, n_embd=4, n_head=2, n_layer=1))
    finding = held(port(source=source), source)
    assert finding.status is Status.PASSED, finding.message


def test_an_answer_that_is_remembered_is_not_named_as_a_head_that_was_left() -> None:
    """A port that keeps its answers has them from before it was resized."""

    made = port(attention="sdpa")
    model = made.module  # type: ignore[attr-defined]
    model.kept = {}  # what is copied with the model

    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        asked = next((v for v in (*args, kwargs.get("input_ids")) if v is not None), None)
        key = () if asked is None else tuple(asked.flatten().tolist())
        if key not in self.kept:
            self.kept[key] = right(*args, **kwargs)
        return self.kept[key]

    wrap(model, "forward", forward)
    # What the law will ask of the copies.
    vocabulary, asked = made.config.n_vocab, subject(made).tokens(1, LENGTH, 18)
    for size in (vocabulary, vocabulary - FEWER):
        made.logits(asked % size)
    finding = held(made)
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "of tokens that it had answered before" in finding.message
