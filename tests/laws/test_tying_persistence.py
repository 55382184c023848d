"""Tying through copies: what is one matrix stays one in every way in which a port is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tying_faults as faults
from models import checkpoint
from strategies import Model
from subjects import hold, port

from gpt_verify.findings import Finding, Status
from gpt_verify.laws import table_rows, worst
from gpt_verify.port import COPIES, Parameter, Port
from gpt_verify.ports.torch.copies import Copies
from gpt_verify.process import memory
from gpt_verify.reference import Config

Alter = Callable[[Any], None]
LAW = "tying.persistence"
#: Ways in which every module of transformers can be copied.
WAYS = (
    "deepcopy",
    "state_dict",
    "torch.save of the state_dict",
    "torch.save of the module",
    "safetensors",
    "save_pretrained",
    "one optimiser step",
)
#: How the catalogue calls it; of what only transformers can do it has no name.
NAMES = {
    faults.parted_by_load_state_dict: "tying-parted-by-loading",
    faults.parted_by_casting: "tying-parted-by-casting",
    faults.parted_by_pickling: "tying-parted-by-copying",
}


@pytest.fixture(
    autouse=True, params=["tables alone, in small tiles", "every tensor"], ids=lambda way: way[:6]
)
def extent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As large models are copied and read; and as what cannot be copied so is."""
    if request.param == "every tensor":
        skeletons = Copies._skeletons
        monkeypatch.setattr(Copies, "_skeletons", lambda self: skeletons(self)[-1:])
    else:
        monkeypatch.setattr(table_rows, "TILE", 1000)
        monkeypatch.setattr(worst, "TILE", 100)
    return str(request.param)


def found(made: Port, source: Any = None) -> Finding:
    (one,) = hold(LAW, made, source)
    return one


class TestCorrectPorts:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_one_matrix_after_every_way(self, attention: str, dtype: Any) -> None:
        made = port(attention=attention, dtype=dtype)
        before = [np.array(p.read()) for p in made.parameters()]
        one = found(made)
        assert (one.status, one.site) == (Status.PASSED, "logits"), one.message
        assert one.message.startswith("one matrix at both ends after deepcopy, ")
        for way in (*WAYS, "to(float64)"):
            assert way in one.message
        assert "not examined" not in one.message
        after = [p.read() for p in made.parameters()]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))

    @pytest.mark.parametrize(
        "config", [Config(1, 1, 2, 1, 1), Config(1, 5, 6, 1, 1), Config(2, 3, 4, 2, 1)], ids=str
    )
    def test_odd_sizes(self, config: Config) -> None:
        source = checkpoint(config)
        one = found(port(source=source), source)
        assert one.status is not Status.FAILED, one.message


class TestNotExamined:
    def test_no_copies(self) -> None:
        made = port()
        made.withdraw(COPIES)
        assert found(made).message == "no copies"

    def test_the_ways_that_a_port_does_not_offer_are_named(self) -> None:
        made = port()
        made.copies = lambda: iter([("pickle", "a local class"), ("Saver", "no session")])
        one = found(made)
        assert one.status is Status.NOT_EXAMINED
        assert one.message == "pickle (a local class), Saver (no session)"

    def test_beside_those_that_it_offers(self) -> None:
        made = port()

        def copies() -> Iterator[tuple[str, Port | str]]:
            yield "pickle", "a local class"
            yield "itself", made

        made.copies = copies
        one = found(made)
        assert one.status is Status.PASSED
        assert one.message == (
            "one matrix at both ends after itself; not examined: pickle (a local class)"
        )

    def test_too_little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda: 0)
        one = found(port())
        assert one.status is Status.NOT_EXAMINED
        assert one.message.startswith("deepcopy (needs 0.1 GB, 0 are free), to(float64) (needs ")

    def test_nothing_to_keep(self) -> None:
        one = found(port(faults.head_drawn_anew))
        assert one.status is Status.NOT_EXAMINED
        assert one.message == "the head is not wte to begin with"

    def test_a_copy_without_the_name(self) -> None:
        made, other = port(), port()
        original = other.parameters
        assert original is not None

        def parameters() -> Iterator[Parameter]:
            for parameter in original():
                yield replace(parameter, name=parameter.name.removeprefix("transformer."))

        other.parameters = parameters
        made.copies = lambda: iter([("renaming", other)])
        one = found(made)
        assert one.status is Status.NOT_EXAMINED
        assert one.message == "renaming (it has no transformer.wte.weight)"

    def test_a_copy_without_a_part_of_the_model(self) -> None:
        """Its class, built anew, knows nothing of a layer that was put in later."""

        def wrapped(model: Any) -> None:
            model.transformer.ln_f = torch.nn.Sequential(model.transformer.ln_f)

        one = found(port(wrapped))
        assert one.status is Status.PASSED, one.message
        assert "not examined: " in one.message
        assert "save_pretrained (ValueError: it has no transformer.ln_f.0.weight)" in one.message


class TestRefuted:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_two_parameters_in_one_memory(self, dtype: Any) -> None:
        made = port(faults.tied_by_data, dtype=dtype)
        (storage,) = hold("tying.storage", made)
        assert storage.status is Status.PASSED, storage.message
        one = found(made)
        assert one.status is Status.FAILED
        assert "after deepcopy: lm_head.weight is a copy of transformer.wte.weight" in one.message
        assert "after to(float64): lm_head.weight is a copy of" in one.message
        assert one.fault == "tying-by-data"
        # Either parameter's step goes into the one memory: training does not part them.
        assert "after one optimiser step" not in one.message

    @pytest.mark.parametrize(
        ("alter", "ways"),
        [
            (
                faults.parted_by_load_state_dict,
                {"state_dict", "torch.save of the state_dict", "safetensors"},
            ),
            (faults.parted_by_casting, {"to(float64)", "to(bfloat16)"}),
            (faults.parted_by_pickling, {"deepcopy", "torch.save of the module"}),
            (faults.saved_untied, {"save_pretrained"}),
        ],
    )
    def test_parted_by(self, alter: Alter, ways: set[str]) -> None:
        one = found(port(alter))
        assert one.status is Status.FAILED
        assert ways <= {part.split(":")[0] for part in one.message.split("after ")}
        assert one.fault == NAMES.get(alter)
        assert "after one optimiser step" not in one.message or alter is faults.parted_by_pickling

    def test_an_equal_head_parts_after_one_optimiser_step(self) -> None:
        one = found(port(faults.head_copied))
        assert one.status is Status.FAILED
        assert one.message.startswith("after one optimiser step: lm_head.weight[")
        assert one.message.count("after ") == 1
        assert one.fault is None

    def test_a_buffer_shows_in_every_copy(self) -> None:
        """No name stands for it, so that only a write finds it."""
        one = found(port(faults.head_in_a_buffer))
        assert one.status is Status.FAILED
        assert "after deepcopy: " in one.message
        assert "the head reads other memory" in one.message


def test_after_a_step_the_reference_has_the_trained_weights() -> None:
    """Two channels and tiny embeddings, which the step swamps: once a false alarm."""
    source = Model((101, 3, 2, 2, 2), "tiny_variance", 146).checkpoint()
    (finding,) = hold("tying.persistence", port(attention="sdpa", source=source), source)
    assert finding.status is not Status.FAILED, finding.message
