"""Tying by gradient: both ends train the one matrix, each as much as the reference says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import altered_ports
import mixed_precision
import numpy as np
import pytest
import tying_faults as faults
from gradients import Gradients, answering
from models import CONFIG, checkpoint
from plain_ports import plain
from subjects import hold, port

from gpt_verify.faults.fault import Fault
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, GradientSink, NotExamined, Port, Tokens
from gpt_verify.reference import Config

Alter = Callable[[Any], None]
LAW = "tying.gradient"
GRADIENT = [fault for fault in CATALOGUE.values() if fault.family == "gradient"]


def found(made: Port, source: Any = None) -> Finding:
    (finding,) = hold(LAW, made, source)
    return finding


def without_float64_copy(made: Port) -> Port:
    made.withdraw(FLOAT64_COPY)
    return made


def lost(finding: Finding, dtype: str, float64_copy: bool) -> bool:
    """bfloat16's own gradient may be too coarse to show the smaller part, which is then said."""
    if finding.status is not Status.NOT_EXAMINED or dtype != "bfloat16" or float64_copy:
        return False
    return "lost in the noise" in finding.message


class TestCorrectPorts:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
    def test_in_float64(self, attention: str, dtype: Any) -> None:
        finding = found(port(attention=attention, dtype=dtype))
        assert finding.status is Status.PASSED, finding.message
        assert finding.site == "logits"
        assert finding.message.startswith("input part, output part and sum along 3 random")
        assert finding.message.endswith("(in float64)") == (dtype != "float64")
        assert finding.score is not None and finding.limit is not None
        assert finding.score < finding.limit

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_in_the_declared_precision(self, attention: str, dtype: Any) -> None:
        finding = found(without_float64_copy(port(attention=attention, dtype=dtype)))
        if not lost(finding, dtype, float64_copy=False):
            assert finding.status is Status.PASSED, finding.message
            assert "float64" not in finding.message

    @pytest.mark.parametrize(
        "config",
        [
            Config(2, 2, 2, 1, 1),
            Config(2, 3, 1, 1, 1),
            Config(3, 2, 8, 2, 1),
            Config(6, 4, 6, 2, 1),
            Config(501, 9, 16, 2, 1),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("float64_copy", [True, False])
    def test_odd_sizes_and_weights(
        self, config: Config, dtype: Any, scale: float, float64_copy: bool
    ) -> None:
        source = checkpoint(config, scale=scale)
        made = port(dtype=dtype, source=source)
        finding = found(made if float64_copy else without_float64_copy(made), source)
        assert finding.status is not Status.FAILED, finding.message

    def test_a_port_that_knows_the_sum_alone(self) -> None:
        made = answering(port(), lambda g: replace(g, wte_input=None, wte_output=None))
        finding = found(made)
        assert finding.status is Status.PASSED, finding.message
        assert "the sum of both parts, which the port does not tell apart" in finding.message

    def test_a_float64_copy_that_is_not_all_float64(self) -> None:
        finding = found(port(mixed_precision.softmax_in_float32))
        assert finding.status is Status.PASSED, finding.message
        assert "float64" not in finding.message

    def test_frozen_parameters_stay_frozen(self) -> None:
        made = port(lambda model: model.requires_grad_(False))
        assert found(made).status is Status.PASSED
        assert not any(p.requires_grad for p in made.module.parameters())  # type: ignore[attr-defined]


class TestNotExamined:
    @pytest.mark.parametrize(
        ("config", "why"),
        [
            (Config(5, 1, 6, 1, 1), "nothing is predicted: the context is one token"),
            (Config(1, 5, 6, 1, 1), "nothing is learnt: the vocabulary is one token"),
        ],
        ids=str,
    )
    def test_no_loss(self, config: Config, why: str) -> None:
        source = checkpoint(config)
        finding = found(port(source=source), source)
        assert (finding.status, finding.message) == (Status.NOT_EXAMINED, why)

    def test_no_gradients(self) -> None:
        made = port()
        made.withdraw(GRADIENTS)
        assert found(made).message == "no gradients"

    def test_not_differentiable(self) -> None:
        made = port()

        def gradients(tokens: Tokens, sink: GradientSink) -> bool:
            raise NotExamined("its kernels have no backward pass")

        made.offer(GRADIENTS, gradients)
        finding = found(made)
        assert finding.status is Status.NOT_EXAMINED
        assert finding.message == "its kernels have no backward pass"

    @pytest.mark.parametrize("name", ["exact_gelu", "epsilon_10001e9", "unscaled_scores"])
    def test_another_function_has_other_derivatives(self, name: str) -> None:
        """That is no matter of tying."""
        finding = found(port(altered_ports.ALTERATIONS[name]))
        assert finding.status is Status.NOT_EXAMINED
        assert "its logits are wrong" in finding.message

    def test_an_end_below_the_noise(self) -> None:
        """Layer norm of one channel is its bias: nothing depends on what is looked up."""
        source = checkpoint(Config(2, 3, 1, 1, 1))
        finding = found(port(source=source), source)
        assert finding.status is Status.NOT_EXAMINED
        assert "lost in the noise: the input part" in finding.message


@pytest.mark.parametrize("float64_copy", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
class TestRefuted:
    @pytest.mark.parametrize(
        ("alter", "says"),
        [
            (faults.head_detached, "nothing comes through the last product"),
            (faults.head_through_data, "nothing comes through the last product"),
            (faults.head_in_a_buffer, "nothing comes through the last product"),
            (faults.head_kept_by_a_closure, "nothing comes through the last product"),
            (faults.lookup_detached, "nothing comes through the lookup"),
            (faults.lookup_copied, "nothing comes through the lookup"),
            (faults.head_copied, "does not add up in transformer.wte.weight"),
            (faults.head_drawn_anew, "the rest goes to lm_head.weight"),
        ],
    )
    def test_a_blocked_end(self, alter: Alter, says: str, dtype: Any, float64_copy: bool) -> None:
        made = port(alter, dtype=dtype)
        finding = found(made if float64_copy else without_float64_copy(made))
        if lost(finding, dtype, float64_copy):
            return
        assert finding.status is Status.FAILED
        assert says in finding.message
        assert "should be" in finding.message
        assert finding.score is not None and finding.limit is not None
        assert finding.score > finding.limit

    @pytest.mark.parametrize(
        ("alter", "end"),
        [(faults.head_detached, "head"), (faults.lookup_detached, "lookup")],
    )
    def test_by_the_sum_alone(self, alter: Alter, end: str, dtype: Any, float64_copy: bool) -> None:
        made = port(alter, dtype=dtype)
        made = answering(made, lambda g: replace(g, wte_input=None, wte_output=None))
        finding = found(made if float64_copy else without_float64_copy(made))
        if lost(finding, dtype, float64_copy):
            return
        assert finding.status is Status.FAILED
        assert f"part alone: the {end} is detached" in finding.message


class TestRefutedInFloat64:
    """Finer mistakes, which bfloat16's own gradient is too coarse to show for certain."""

    @pytest.mark.parametrize("float64_copy", [True, False])
    def test_half_of_what_comes_through_the_head(self, float64_copy: bool) -> None:
        made = port(faults.head_gradient_halved)
        finding = found(made if float64_copy else without_float64_copy(made))
        assert finding.status is Status.FAILED
        assert finding.message.startswith("output part along direction ")
        assert finding.fault == "tying-head-scaled"

    def test_frequent_tokens_count_less(self) -> None:
        finding = found(port(faults.lookup_scaled_by_frequency))
        assert finding.status is Status.FAILED
        assert finding.message.startswith("input part along direction ")
        assert finding.fault == "tying-by-frequency"

    def test_a_token_that_the_lookup_does_not_train(self) -> None:
        finding = found(port(faults.lookup_takes_the_last_token_for_padding))
        assert finding.status is Status.FAILED
        assert finding.message.startswith("input part along direction ")
        assert finding.fault == "tying-padding-row"

    @pytest.mark.parametrize("fault", GRADIENT, ids=lambda fault: fault.name)
    def test_a_mistake_in_the_backward_pass_to_the_lookup_is_not_its_own(
        self, fault: Fault
    ) -> None:
        made = plain()
        fault.put_into(made.module, range(CONFIG.n_layer))
        assert found(made).fault is None

    def test_one_row_is_all_rows(self) -> None:
        """Of two positions one predicts: that its token is padding, or the lookup detached."""
        source = checkpoint(Config(101, 2, 4, 1, 2))
        for alter in (faults.lookup_takes_the_last_token_for_padding, faults.lookup_detached):
            finding = found(port(alter, source=source), source)
            assert finding.status is Status.FAILED
            assert finding.fault is None

    def test_a_lookup_that_is_wrong_in_no_known_way(self) -> None:
        def change(gradients: Gradients) -> Gradients:
            assert gradients.wte_input is not None
            part = np.array(gradients.wte_input)
            part[:, 3] *= 1.5
            return replace(gradients, wte_input=part)

        finding = found(answering(port(), change))
        assert finding.status is Status.FAILED
        assert finding.fault is None

    def test_wte_is_left_out_of_what_is_trained(self) -> None:
        def change(gradients: Gradients) -> Gradients:
            names = ("lm_head.weight", "transformer.wte.weight")
            rest = {n: g for n, g in gradients.parameters.items() if n not in names}
            return replace(gradients, parameters=rest)

        finding = found(answering(port(), change))
        assert finding.status is Status.FAILED
        assert "sum along direction" in finding.message
        assert " = 0, should be " in finding.message

    def test_what_is_not_finite(self) -> None:
        def change(gradients: Gradients) -> Gradients:
            assert gradients.wte_input is not None
            part = np.array(gradients.wte_input)
            part[0, 0] = np.nan
            return replace(gradients, wte_input=part)

        finding = found(answering(port(), change))
        assert finding.status is Status.FAILED
        assert "= nan, should be " in finding.message
