"""What no catalogue lists is named by its form, in the right words; nothing else is."""

from __future__ import annotations

from typing import Any

import formed
import formed_values
import numpy as np
import pytest
import torch
from fault_ports import SHARED, SOURCE, injected
from models import CONFIG, INPUTS, TESTS, batch

from gpt_verify.diagnosis import layers
from gpt_verify.diagnosis.depends import NAME
from gpt_verify.diagnosis.forms import experts, hidden, scaled, turned
from gpt_verify.diagnosis.forms.table import FORMS
from gpt_verify.diagnosis.forms.tensors import NAMES
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.model import build
from gpt_verify.findings import PortReport, Verdict
from gpt_verify.inputs import Input, default_inputs
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.cache.forms import NAMES as OF_CACHES
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.determinism.check import NAMES as OF_STATE
from gpt_verify.laws.generation.hypotheses import NAMES as OF_GENERATION
from gpt_verify.laws.gradient.hypotheses import NAMES as OF_GRADIENTS
from gpt_verify.laws.loss.forms import NAMES as OF_LOSSES
from gpt_verify.laws.padding.forms import NAMES as OF_PADDING
from gpt_verify.laws.resizing.forms import NAMES as OF_RESIZING
from gpt_verify.laws.training.check import NAMES as OF_TRAINING
from gpt_verify.ports.callable import CallablePort
from gpt_verify.ports.torch.module import TorchModule

FORMED = {**formed.FORMED, **formed_values.FORMED}


def judged(name: str) -> PortReport:
    planted = FORMED[name]
    model = build(SOURCE, planted.options)
    planted.inject(model)
    return judge(
        name,
        SOURCE,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: TorchModule(model, SOURCE, name),
        laws=(),
        shared=SHARED,
    )


@pytest.mark.parametrize("name", FORMED)
def test_it_is_named_in_words(name: str) -> None:
    report = judged(name)
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == (FORMED[name].form,), report.causes
    (cause,) = report.causes
    assert FORMED[name].words in cause.note


def test_no_form_has_the_name_of_a_fault() -> None:
    assert not FORMS.keys() & CATALOGUE.keys()


def test_every_form_was_planted() -> None:
    of_laws = {*OF_RESIZING, *OF_CACHES, *OF_GRADIENTS, *OF_LOSSES, *OF_PADDING}
    of_laws |= {*OF_GENERATION, *OF_STATE, *OF_TRAINING}
    # Of operations that GPT-2 has not: test_forms_of_families.py.
    of_families = {turned.FORM.name, experts.FORM.name}
    of_families |= {form.name for form in (hidden.VALUES, hidden.GAINS, hidden.SUMS, hidden.SINKS)}
    elsewhere = {*NAMES, NAME, *of_laws, *of_families, "block-left-out", layers.NAME} - {
        "weight-rearranged",
        "part-equal",
    }
    assert {planted.form for planted in FORMED.values()} == FORMS.keys() - elsewhere


def _of(model: Any, name: str, laws: tuple[str, ...] = ()) -> PortReport:
    return judge(
        name,
        SOURCE,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: TorchModule(model, SOURCE, name),
        laws=laws,
        shared=SHARED,
    )


def test_branches_side_by_side_are_one_mistake_wherever_their_sums_are_seen() -> None:
    """What attention adds is multiplied by one, after which nobody knows the first sum for one."""
    model = build(SOURCE)
    formed.wired(lambda block, x, attend, mlp: x + attend(x) * 1.0 + mlp(x))(model)
    assert _of(model, "parallel").explained_by == ("residual-parallel",)


def test_rows_that_are_taken_for_tokens_are_no_form_of_one_row() -> None:
    """``nn.MultiheadAttention`` takes [T, B, D] where nobody says otherwise: in a batch each row
    sees those before it, and the first row itself alone, which one row would explain."""

    def across_rows(attn: Any, right: Any, q: Any, k: Any, v: Any, allowed: Any) -> Any:
        if len(q) == 1:
            return right(q, k, v, allowed)
        q, k, v = (x.transpose(0, 2) for x in (q, k, v))
        rows = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        return right(q, k, v, rows).transpose(0, 2)

    model = build(SOURCE, formed.FUSED)
    formed.attending("attend", across_rows)(model)
    tokens = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (3, 16))
    report = judge(
        "rows",
        SOURCE,
        [Input("three rows", tokens)],
        None,
        "cpu",
        Silent(),
        build=lambda: TorchModule(model, SOURCE, "rows"),
        laws=("batch",),
        shared=SHARED,
    )
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == ("depends-on",), report.causes
    assert "other rows of the batch" in report.causes[0].note


def test_a_block_that_is_never_run_is_missed_in_the_logits() -> None:
    model = build(SOURCE)
    wrap(model.h[1], "wire", lambda block, right, x, attend: attend(x) * 0 + x)
    report = judge(
        "skipping",
        SOURCE,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: CallablePort(TorchModule(model, SOURCE, "skipping").logits, "skipping", None),
        laws=(),
        shared=SHARED,
    )
    assert report.explained_by == ("block-left-out",)
    assert report.causes[0].note == "layer 1"


def test_what_depends_on_other_rows_says_so() -> None:
    """A row that sees a thousandth of its neighbour's embedding is no fault of the catalogue."""
    model = build(SOURCE)

    def embed(own: Any, right: Any, ids: Any, positions: Any) -> Any:
        x = right(ids, positions)
        return x + 0.001 * x.roll(1, 0) if len(x) > 1 else x

    wrap(model, "embed", embed)
    report = judge(
        "rows",
        SOURCE,
        [batch(CONFIG, 1, 11)],
        None,
        "cpu",
        Silent(),
        build=lambda: TorchModule(model, SOURCE, "rows"),
        laws=("batch",),
        shared=SHARED,
    )
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == ("depends-on",)
    assert report.causes[0].note.startswith("other rows of the batch, by ")


def test_what_one_input_alone_shows_is_looked_for_there() -> None:
    """The last id stands in the batch of the default inputs, in one row, and nowhere else; the
    architecture is judged on fewer of the inputs than the rest."""
    model, last = build(SOURCE), CONFIG.n_vocab - 1
    inputs = default_inputs(CONFIG, 0)
    has = [bool((item.tokens == last).any()) for item in inputs]
    assert [item.in_float64 for item in inputs].count(False)
    assert has[-1]
    for item in inputs[:-1]:
        item.tokens[item.tokens == last] = 0
    formed.looked_up(lambda model, ids, at: (ids.clamp(max=last - 1), at))(model)
    report = judge(
        "last",
        SOURCE,
        inputs,
        None,
        "cpu",
        Silent(),
        build=lambda: TorchModule(model, SOURCE, "last"),
        laws=(),
        shared=SHARED,
    )
    assert report.explained_by == ("tokens-used",)
    assert report.causes[0].note == f"tokens used: {last - 1} for {last}: no id above {last - 1}"


def test_layers_in_another_order_are_said() -> None:
    for order in ([2, 1, 0], [1, 0, 2]):
        model = build(SOURCE)
        model.h = torch.nn.ModuleList(model.h[i] for i in order)
        report = judge(
            "layers",
            SOURCE,
            INPUTS,
            None,
            "cpu",
            Silent(),
            build=lambda model=model: TorchModule(model, SOURCE, "layers"),  # type: ignore[misc]
            laws=(),
            shared=SHARED,
        )
        assert report.explained_by == (layers.NAME,), report.causes
        assert report.causes[0].note == f"layers in the order {' '.join(map(str, order))}"


def test_the_names_of_the_catalogue_stand() -> None:
    """What a fault of the catalogue explains has no other name, and nothing is read off beside."""
    for name in ("attention-mask-reversed", "residual-scaled", "embeddings-positions-late"):
        report = judge(
            name,
            SOURCE,
            INPUTS,
            None,
            "cpu",
            Silent(),
            build=lambda name=name: injected(SOURCE, (name, range(3))),  # type: ignore[misc]
            laws=(),
            shared=SHARED,
        )
        assert report.explained_by == (name,)


def test_slopes_of_a_model_that_has_some_are_said_beside_what_they_should_be() -> None:
    factors, found = np.ones(3), np.array([0.25, 0.0, -0.0625])
    assert scaled._words(factors, found, None) == (
        "head 0: less 0.25 for each step back; head 2: plus 0.0625 for each step back"
    )
    assert scaled._words(factors, found, np.array([0.25, 0.125, 0.0625])) == (
        "head 0: a slope of 0.5, should be 0.25; head 2: a slope of 0, should be 0.0625"
    )


def test_every_form_is_documented() -> None:
    page = (TESTS.parent / "docs" / "report.md").read_text(encoding="utf-8")
    assert [name for name in FORMS if f"`{name}`" not in page] == []
