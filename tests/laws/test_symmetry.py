"""The law of symmetry: what rewrites the weights and not the function changes no output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mixed_precision
import numpy as np
import pytest
import symmetry_faults as faults
import torch
import torch_styles
from gradients import Gradients, answering
from models import checkpoint
from subjects import hold, port, subject

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import ToolError
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.subject import NotExamined
from gpt_verify.laws.table import CHECKS
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, PARAMETERS, Parameter, Port, Tokens
from gpt_verify.ports.openai_tf import openai_tf
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import Config

Alter = Callable[[Any], None]
OUTPUT = ("heads", "neurons", "scale", "rotate", "shift")
NAMES = (*OUTPUT, "gradient")


def held(made: Port, source: Checkpoint | None = None) -> dict[str, Finding]:
    """The findings of all six, by name; of one subject, as in a run."""
    judged, found = subject(made, source), {}
    for law in CHECKS:
        if law.id.startswith("symmetry."):
            try:
                (finding,) = law.check(judged)
            except NotExamined as reason:
                finding = Finding(law.id, Status.NOT_EXAMINED, str(reason))
            assert (finding.id, finding.site) == (law.id, None)
            found[law.id.removeprefix("symmetry.")] = finding
    assert tuple(found) == NAMES
    return found


def statuses(found: dict[str, Finding]) -> dict[str, Status]:
    return {name: finding.status for name, finding in found.items()}


def failed(found: dict[str, Finding]) -> set[str]:
    return {name for name, f in found.items() if f.status is Status.FAILED}


def without_float64_copy(made: Port) -> Port:
    made.withdraw(FLOAT64_COPY)
    return made


def bits(made: Port) -> list[bytes]:
    return [p.read().tobytes() for p in made.parameters()]


class TestCorrectPorts:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
    def test_pass_and_are_left_as_they_were(self, attention: str, dtype: Any) -> None:
        made = port(attention=attention, dtype=dtype)
        before, logits = bits(made), made.logits(np.arange(9)[None])
        found = held(made)
        assert set(statuses(found).values()) == {Status.PASSED}, found
        for f in found.values():
            assert f.score is not None and f.limit is not None and f.score < f.limit / 2
            assert "noise floors in float64" in f.message
        assert all(f"noise floors in {dtype}" in found[name].message for name in OUTPUT)
        assert bits(made) == before
        assert made.logits(np.arange(9)[None]).tobytes() == logits.tobytes()

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_without_float64(self, dtype: Any) -> None:
        found = held(without_float64_copy(port(dtype=dtype)))
        assert set(statuses(found).values()) == {Status.PASSED}, found
        assert all("float64" not in f.message for f in found.values())

    @pytest.mark.parametrize(
        "config",
        [
            Config(2, 2, 2, 1, 1),
            Config(2, 3, 1, 1, 1),
            Config(3, 2, 8, 2, 1),
            Config(7, 5, 6, 6, 1),
            Config(1, 4, 6, 2, 1),
            Config(5, 1, 6, 2, 1),
            Config(50, 9, 12, 1, 4),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 3.0, 30.0])
    def test_odd_sizes_and_weights(self, config: Config, dtype: Any, scale: float) -> None:
        source = checkpoint(config, scale=scale)
        found = held(port(dtype=dtype, source=source), source)
        assert failed(found) == set(), found
        found = held(without_float64_copy(port(dtype=dtype, source=source)), source)
        assert failed(found) == set(), found

    def test_a_float64_copy_that_is_not_all_float64(self) -> None:
        found = held(port(mixed_precision.softmax_in_float32))
        assert set(statuses(found).values()) == {Status.PASSED}, found
        assert all("float64" not in f.message for f in found.values())

    @pytest.mark.parametrize("style", [torch_styles.split_linears, torch_styles.hand_written])
    def test_other_layouts(self, style: Any) -> None:
        """Queries, keys and values of their own, and matrices that lie [out, in]."""
        source = checkpoint()
        found = held(TorchModule(style(source), source, "styled"), source)
        assert set(statuses(found).values()) == {Status.PASSED}, found

    def test_openai_tf(self) -> None:
        source = replace(checkpoint(), format="huggingface")  # which has no files to restore
        made = openai_tf(source)
        try:
            found = held(made, source)
        finally:
            made.close()
        assert set(statuses(found).values()) == {Status.PASSED}, found


OF = {
    "heads": (
        faults.heads_scaled_by_index,
        faults.distance_penalty,
        faults.one_local_head,
        faults.keys_shared_by_two_heads,
        faults.last_head_dropped,
    ),
    "neurons": (
        faults.last_neurons_dropped,
        faults.two_activations,
        faults.gated_by_the_other_half,
    ),
    "scale": (
        faults.query_clipped,
        faults.query_and_key_normalised,
        faults.query_in_bfloat16,
        faults.key_cache_in_int8,
    ),
    "rotate": (
        faults.value_clipped,
        faults.value_cache_in_int8,
        faults.mix_through_an_activation,
        faults.value_channels_scaled,
    ),
    "shift": (
        faults.norm_without_centring,
        faults.norm_centred_too_late,
        faults.stream_clipped,
        faults.stream_in_bfloat16,
    ),
}
WORDS = {
    "heads": "heads are not treated alike in layer 1",
    "neurons": "neurons are not treated alike in layer 1",
    "scale": "queries and keys do not enter by their products alone in layer 1",
    "rotate": "between values and c_proj something is not linear, or not the same for all channels "
    "in layer 1",
    "shift": "something reads the mean of the residual stream, which layer norm takes away; it "
    "shows when the constant is added in wpe",
}
#: What is not the same for two things at once.
ALSO = {
    faults.keys_shared_by_two_heads: {"scale"},
    faults.stream_in_bfloat16: {"neurons", "heads", "scale", "rotate"},
}


class TestRefuted:
    def test_attention_that_is_written_out_is_none(self) -> None:
        assert set(statuses(held(port(faults.written_out))).values()) == {Status.PASSED}

    @pytest.mark.parametrize(
        ("name", "fault"), [(name, fault) for name, some in OF.items() for fault in some]
    )
    def test_by_the_law_that_it_breaks(self, name: str, fault: Alter) -> None:
        made = port(fault)
        before = bits(made)
        found = held(made)
        assert failed(found) - ALSO.get(fault, set()) == {name}
        one = found[name]
        assert one.message.startswith("logits[") and ", should be " in one.message
        assert WORDS[name] in one.message
        assert one.score is not None and one.limit is not None and one.score > one.limit
        assert found["gradient"].message.startswith("the logits change already")
        assert bits(made) == before

    @pytest.mark.parametrize("name", OUTPUT)
    def test_in_half_precision(self, name: str) -> None:
        """One of each in bfloat16."""
        fault = {"heads": faults.distance_penalty, "neurons": faults.last_neurons_dropped}
        made = port(fault.get(name, OF[name][0]), dtype="bfloat16")
        assert failed(held(made)) == {name}

    @pytest.mark.parametrize(
        ("fault", "first"),
        [
            (faults.one_head_learns_half, "h1/attn/c_attn/b"),
            (faults.last_neurons_learn_nothing, "h1/mlp/c_fc/b"),
            (faults.query_gradient_in_int8, "h1/attn/c_attn/b"),
            (faults.value_gradient_clipped, "h1/attn/c_attn/b"),
        ],
    )
    @pytest.mark.parametrize("float64_copy", [True, False])
    def test_by_the_gradient(self, fault: Alter, first: str, float64_copy: bool) -> None:
        made = port(fault)
        found = held(made if float64_copy else without_float64_copy(made))
        assert failed(found) == {"gradient"}
        message = found["gradient"].message
        assert "⟨gradient, v⟩ = " in message
        assert message.endswith(f"in the backward pass from the loss, {first} is the first")

    def test_a_gradient_that_is_not_finite_afterwards(self) -> None:
        calls = []

        def change(found: Gradients) -> Gradients:
            calls.append(found)
            if len(calls) < 2:
                return found
            return replace(found, wte_input=np.full_like(found.wte_input, np.nan))

        made = answering(port(), change)
        one = held(without_float64_copy(made))["gradient"]
        assert one.status is Status.FAILED
        assert "wte (lookup): ⟨gradient, v⟩ = nan" in one.message


class TestNotExamined:
    def test_without_parameters(self) -> None:
        made = port()
        made.withdraw(PARAMETERS)
        for name in NAMES:
            (one,) = hold(f"symmetry.{name}", made)
            assert (one.status, one.message) == (Status.NOT_EXAMINED, "no parameters shown")

    def test_without_gradients(self) -> None:
        made = port()
        made.withdraw(GRADIENTS)
        (one,) = hold("symmetry.gradient", made)
        assert one.message == "no gradients"

    def test_what_cannot_be_written_to(self) -> None:
        found = held(changed(port(), lambda p: replace(p, write=None)))
        assert {f.message for name, f in found.items() if name != "gradient"} == {
            "its weights cannot be written to"
        }
        assert set(statuses(found).values()) == {Status.NOT_EXAMINED}

    def test_a_tensor_that_is_not_shown(self) -> None:
        made = changed(port(), lambda p: None if p.name.endswith("1.mlp.c_fc.bias") else p)
        found = held(made)
        assert found["neurons"].message == "no parameter was matched to all of h1/mlp/c_fc/b"
        assert statuses(found)["heads"] is Status.PASSED

    def test_what_a_model_of_this_size_does_not_have(self) -> None:
        source = checkpoint(Config(5, 1, 6, 1, 1))
        found = held(port(source=source), source)
        assert found["heads"].message == "one head has no other order"
        assert found["scale"].message.startswith("one position attends to itself")
        assert found["gradient"].message.startswith("nothing is predicted")
        assert found["neurons"].status is Status.PASSED

    def test_a_port_that_computes_with_copies(self) -> None:
        """Nothing that is written shows, so that nothing can change."""
        made = changed(port(), lambda p: replace(p, write=lambda value: None, read=p.read))
        found = held(made)
        assert set(statuses(found).values()) == {Status.NOT_EXAMINED}
        assert "does not hold what was written to it" in found["heads"].message

    def test_copies_of_one_kind(self) -> None:
        def copied(model: Any) -> None:
            for block in model.transformer.h:
                for linear in (block.mlp.c_fc, block.mlp.c_proj):
                    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
                    linear.forward = lambda x, w=weight, b=bias: x @ w.to(x.dtype) + b.to(x.dtype)

        found = held(port(copied))
        assert failed(found) == set()
        assert found["neurons"].message == (
            "what is written to its weights does not show in its logits"
        )

    def test_a_copy_of_one_tensor(self) -> None:
        """Neurons of one matrix are in another order than those of the other: no mistake of how
        they are treated."""

        def copied(model: Any) -> None:
            linear = model.transformer.h[1].mlp.c_fc
            weight = linear.weight.detach().clone()
            linear.forward = lambda x: x @ weight.to(x.dtype) + linear.bias

        found = held(port(copied))
        assert failed(found) == set()
        assert found["neurons"].message == (
            "what is written to h1/mlp/c_fc/w does not show in its logits: it computes with "
            "something else"
        )

    def test_chance(self) -> None:
        def noisy(model: Any) -> None:
            model.lm_head.register_forward_hook(
                lambda module, args, y: y + 0.01 * torch.randn_like(y)
            )

        found = held(port(noisy))
        assert {found[name].message for name in OUTPUT} == {"its logits are not the same twice"}

    def test_what_is_not_finite(self) -> None:
        def spoilt(model: Any) -> None:
            model.lm_head.register_forward_hook(lambda module, args, y: y * float("nan"))

        found = held(port(spoilt))
        assert {found[name].message for name in OUTPUT} == {"its logits are not finite"}


class TestDoubt:
    def test_a_bias_of_zeros_may_be_any(self) -> None:
        """It is left out of what is added to, and stays what it is otherwise."""
        source = checkpoint()
        for name in ("h0/attn/c_proj/b", "h1/attn/c_proj/b", "h1/mlp/c_fc/b", "h0/ln_1/b"):
            source.tensors[name][:] = 0  # type: ignore[index]
        found = held(port(source=source), source)
        assert set(statuses(found).values()) == {Status.PASSED}, found
        assert found["shift"].message.endswith(
            "(left out, being all alike: h0/attn/c_proj/b, h1/attn/c_proj/b)"
        )

    def test_a_matrix_that_equals_itself_transposed(self) -> None:
        source = checkpoint()
        value = source.tensors["h1/attn/c_proj/w"]
        value[:] = value + value.T  # type: ignore[index]
        found = held(port(source=source), source)
        for name in ("heads", "rotate"):
            assert found[name].message == (
                "h1/attn/c_proj/w looks like another tensor, or like itself transposed"
            )
        assert found["scale"].status is found["gradient"].status is Status.PASSED

    def test_a_port_with_weights_of_its_own(self) -> None:
        """The law asks of it no more than to be a GPT-2."""

        def alter(model: Any) -> None:
            with torch.no_grad():
                model.transformer.h[1].attn.c_attn.weight.mul_(1.5)

        found = held(port(alter))
        assert {statuses(found)[name] for name in OUTPUT} == {Status.PASSED}


class TestPuttingBack:
    def test_after_an_exception(self) -> None:
        made, calls = port(), []
        before, original = bits(made), made.logits

        def logits(tokens: Tokens) -> Any:
            calls.append(tokens)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return original(tokens)

        made.logits = logits  # type: ignore[method-assign]
        (one,) = hold("symmetry.heads", without_float64_copy(made))
        assert one.message == "the port raised RuntimeError: out of memory"
        assert bits(made) == before

    def test_what_cannot_be_put_back(self) -> None:
        made = port()
        state = {"writes": 0}

        def once(p: Parameter) -> Parameter:
            original = p.write
            assert original is not None

            def write(value: Any) -> None:
                state["writes"] += p.name.endswith("wpe.weight")
                # For the base, for what it is moved to, and to be put back.
                original(value if state["writes"] < 3 else value + 1)

            return replace(p, write=write) if p.name.endswith("wpe.weight") else p

        judged = subject(changed(made, once))
        (law,) = (law for law in CHECKS if law.id == "symmetry.shift")
        with pytest.raises(ToolError, match=r"wpe\.weight does not hold what it held"):
            list(law.check(judged))


def changed(made: Port, change: Callable[[Parameter], Parameter | None]) -> Port:
    """A port that shows other parameters."""
    original = made.parameters
    assert original is not None

    def parameters() -> Iterator[Parameter]:
        for parameter in original():
            if (other := change(parameter)) is not None:
                yield other

    made.parameters = parameters
    return made
