"""The law of the gradient: wrong derivatives of correct logits are refuted, correct ports pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradient_faults as faults
import mixed_precision
import numpy as np
import pytest
import torch
from gradients import Gradients, answering
from models import CONFIG, checkpoint
from plain_ports import plain
from subjects import hold, message, port, subject
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.judging.prepare import prepare
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.gradient.check import at_the_weights, check_gradient
from gpt_verify.laws.gradient.hypotheses import MISTAKES
from gpt_verify.laws.reference_gradient import ReferenceGradient, reference_gradient
from gpt_verify.laws.subject import NotExamined
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, Port
from gpt_verify.reference import Config

ALL = [site for site in at_the_weights(CONFIG) if site is not None]


def held(made: Port, source: Checkpoint | None = None) -> list[Finding]:
    return list(check_gradient(subject(made, source)))


def failed(findings: list[Finding]) -> list[str | None]:
    return [f.site for f in findings if f.status is Status.FAILED]


def named(findings: list[Finding]) -> list[str]:
    return [f.fault for f in findings if f.fault]


def without_float64_copy(made: Port) -> Port:
    made.withdraw(FLOAT64_COPY)
    return made


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_correct_ports_pass_everywhere(attention: str, dtype: Any) -> None:
    findings = held(port(attention=attention, dtype=dtype))
    assert [f.site for f in findings] == ALL
    assert {f.status for f in findings} == {Status.PASSED}
    for f in findings:
        assert f.score is not None and f.limit is not None and f.score < f.limit / 2
        assert ("in float64" in f.message) and (f"in {dtype}" in f.message)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_port_without_float64_is_judged_as_it_is(dtype: Any) -> None:
    findings = held(without_float64_copy(port(dtype=dtype)))
    assert failed(findings) == []
    assert all("float64" not in f.message for f in findings)
    # In half precision a derivative that happens to be small can drown; few do.
    lost = [f.message for f in findings if f.status is Status.NOT_EXAMINED]
    assert all("lost in the noise" in message for message in lost)
    assert len(lost) <= {"float32": 0, "bfloat16": 6, "float16": 1}[dtype]


def test_a_float64_copy_that_is_not_all_float64_is_not_judged_as_that() -> None:
    findings = held(port(mixed_precision.softmax_in_float32))
    assert {f.status for f in findings} == {Status.PASSED}, message(findings, Status.NOT_EXAMINED)
    assert all("in float32" in f.message and "float64" not in f.message for f in findings)


@pytest.mark.parametrize(
    "config",
    [Config(2, 2, 2, 1, 1), Config(3, 2, 8, 2, 1), Config(7, 5, 6, 6, 1), Config(50, 9, 12, 1, 4)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
def test_odd_sizes_and_weights_are_never_refuted(config: Config, dtype: Any, scale: float) -> None:
    source = checkpoint(config, scale=scale)
    for attention in ("eager", "sdpa"):
        findings = held(port(attention=attention, dtype=dtype, source=source), source)
        assert failed(findings) == [], message(findings, Status.FAILED)


@pytest.mark.parametrize(
    ("config", "why"),
    [(Config(5, 1, 6, 2, 1), "context is one token"), (Config(1, 4, 6, 2, 1), "vocabulary is one")],
    ids=["context", "vocabulary"],
)
def test_without_a_loss_nothing_is_examined(config: Config, why: str) -> None:
    source = checkpoint(config)
    with pytest.raises(NotExamined, match=why):
        held(port(source=source), source)


# Which sites are wrong, and which are not, follows from where the derivative is cut.
BEFORE_MLP_1 = ALL[: ALL.index("h.1.mlp.out") + 1]
CASES = [
    (
        faults.residual_branch_detached,
        BEFORE_MLP_1,
        "no gradient reaches h1/mlp/c_proj/w: frozen or detached",
    ),
    (
        faults.norm_statistics_detached,
        ALL[: ALL.index("h.1.attn.out") + 1],
        "right from h.1.ln_2 on",
    ),
    (
        faults.straight_through_activation,
        ALL[: ALL.index("h.2.mlp.pre") + 1],
        "right from h.2.mlp.out on",
    ),
    (
        faults.derivative_of_another_activation,
        ALL[: ALL.index("h.2.mlp.pre") + 1],
        "right from h.2.mlp.out on",
    ),
    (
        faults.frozen_matrix,
        ["h.1.mlp.pre"],
        "no gradient reaches h1/mlp/c_fc/w: frozen or detached",
    ),
    (faults.gradient_scaled, BEFORE_MLP_1, "1/2 of what it should be"),
    (faults.sum_of_losses, ALL, "16 of what it should be"),
    (
        faults.pattern_detached,
        ALL[: ALL.index("h.1.attn.qkv") + 1],
        "none reaches query and key: the attention pattern is detached",
    ),
    (faults.key_detached, ALL[: ALL.index("h.1.attn.qkv") + 1], "none reaches its key: detached"),
    (faults.counted_twice, ["h.1.attn.out"], "twice what it should be, as if counted twice"),
    (
        faults.double_backward_of_a_block,
        [site for site in ALL if site.startswith("h.1.")],
        "twice what it should be, as if counted twice",
    ),
]
#: Under which name of the catalogue each goes.
NAMES = {
    faults.residual_branch_detached: "gradient-mlp-detached",
    faults.norm_statistics_detached: "gradient-norm-statistics",
    faults.straight_through_activation: "gradient-gelu-straight-through",
    faults.derivative_of_another_activation: "gradient-gelu-erf",
    faults.frozen_matrix: "gradient-frozen",
    faults.gradient_scaled: "gradient-scaled",
    faults.sum_of_losses: "gradient-scaled",
    faults.pattern_detached: "gradient-pattern-detached",
    faults.key_detached: "gradient-key-detached",
    faults.counted_twice: "gradient-counted-twice",
    faults.double_backward_of_a_block: "gradient-counted-twice",
}


@pytest.mark.parametrize(("fault", "sites", "words"), CASES, ids=[c[0].__name__ for c in CASES])
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
def test_a_wrong_derivative_is_refuted_where_it_is_wrong(
    fault: Callable[[Any], None], sites: list[str], words: str, float64_copy: bool
) -> None:
    made = port(fault)
    findings = held(made if float64_copy else without_float64_copy(made))
    if float64_copy or fault is not faults.derivative_of_another_activation:
        assert failed(findings) == sites
    assert words in message(findings, Status.FAILED)
    assert named(findings) == [NAMES[fault]]


def test_the_first_wrong_one_in_the_backward_pass_is_named_by_all() -> None:
    findings = {f.site: f for f in held(port(faults.straight_through_activation))}
    for site, finding in findings.items():
        if finding.status is Status.FAILED and site != "h.2.mlp.pre":
            assert finding.message.endswith("h.2.mlp.pre is the first that is wrong")


def test_of_another_function_nothing_is_said() -> None:
    def exact_gelu(model: Any) -> None:
        from torch import nn

        model.transformer.h[1].mlp.act = nn.GELU()

    with pytest.raises(NotExamined, match="its logits are wrong"):
        held(port(exact_gelu))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
@pytest.mark.parametrize("fault", NAMES, ids=lambda fault: fault.__name__)
def test_no_precision_gets_a_wrong_name(
    fault: Callable[[Any], None], dtype: Any, float64_copy: bool
) -> None:
    """Where noise hides what happened, there may be none."""
    made = port(fault, dtype=dtype)
    try:
        findings = held(made if float64_copy else without_float64_copy(made))
    except NotExamined:
        return
    right = [NAMES[fault]]
    assert named(findings) == right if float64_copy else named(findings) in ([], right)


#: Of the catalogue: in all layers, and in one in which nothing else hides it.
INJECTED = [n for n, f in CATALOGUE.items() if f.family == "gradient"]


@pytest.mark.parametrize("layers", [range(CONFIG.n_layer), [1]], ids=["everywhere", "layer 1"])
@pytest.mark.parametrize("name", INJECTED)
def test_every_fault_of_the_catalogue_is_named(name: str, layers: Sequence[int]) -> None:
    made, fault = plain(), CATALOGUE[name]
    fault.put_into(made.module, layers)
    findings = held(made)
    assert named(findings) == [name]
    # Every value is correct: nothing else of a plain pass knows of it.
    tokens = np.arange(2 * 9).reshape(2, 9)
    assert made.logits(tokens).tobytes() == plain().logits(tokens).tobytes()


@pytest.mark.parametrize("most", [1e-3, 2e-2])
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
def test_clipped_gradients_are_known_by_their_largest_elements(
    most: float, float64_copy: bool
) -> None:
    made = plain()
    for parameter in made.module.parameters():
        parameter.register_hook(lambda d: d.clamp(-most, most))
    made = made if float64_copy else without_float64_copy(made)
    assert named(held(made)) == ["gradient-clipped"]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("tables", [("wte",), ("wpe",), ("wte", "wpe")], ids="+".join)
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
def test_gradients_of_one_row_that_overwrite_each_other_are_said(
    float64_copy: bool, tables: tuple[str, ...], last: bool
) -> None:
    def embed(model: Any, right: Any, ids: Any, positions: Any) -> Any:
        rows = {
            "wte": F.embedding(ids, model.wte),
            "wpe": F.embedding(positions.expand_as(ids), model.wpe),
        }
        for name in tables:
            at = {"wte": ids, "wpe": positions.expand_as(ids)}[name]
            again = at.flatten()[:, None] == at.flatten()
            seen = (again.triu(1) if last else again.tril(-1)).any(1)
            if rows[name].requires_grad:
                rows[name].register_hook(partial(torch.mul, ~seen.view(*at.shape, 1)))
        return rows["wte"] + rows["wpe"]

    made = plain()
    wrap(made.module, "embed", embed)
    findings = held(made if float64_copy else without_float64_copy(made))
    assert failed(findings) == ["embed"]
    assert named(findings) == ["gradient-lookup-overwrites"]


@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
def test_what_gets_nothing_back_to_the_tokens_is_said(float64_copy: bool) -> None:
    made = plain()
    wrap(made.module, "embed", lambda model, right, *args: right(*args).detach())
    findings = held(made if float64_copy else without_float64_copy(made))
    assert failed(findings) == ["embed"]
    assert named(findings) == ["gradient-cut"]


def test_a_rule_for_every_fault_that_is_not_read_off() -> None:
    read_off = {"gradient-frozen", "gradient-counted-twice", "gradient-scaled"}
    assert {f"gradient-{name}" for name in MISTAKES} | read_off == set(INJECTED)


def test_what_changes_too_little_to_be_known_by_has_the_name_of_what_it_does() -> None:
    """Where the first block begins, two tensors lie behind, which get nothing at all."""
    made, fault = plain(), CATALOGUE["gradient-blocks-apart"]
    fault.put_into(made.module, [0])
    findings = held(made)
    assert failed(findings) == ["embed"]
    assert named(findings) == ["gradient-cut"]


@pytest.mark.parametrize("name", ["skips-detached", "mlp-detached", "attention-detached"])
@pytest.mark.parametrize(
    "config", [Config(3, 19, 2, 1, 3), Config(2, 5, 2, 2, 1), Config(101, 5, 2, 2, 4)], ids=str
)
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
def test_what_looks_like_another_mistake_as_well_has_no_name(
    name: str, config: Config, float64_copy: bool
) -> None:
    """A layer norm of two channels lets next to nothing back, and hides what lies behind it."""
    source, fault = checkpoint(config), CATALOGUE[f"gradient-{name}"]
    made = plain(source=source)
    fault.put_into(made.module, range(config.n_layer))
    try:
        findings = held(made if float64_copy else without_float64_copy(made), source)
    except NotExamined:
        return
    assert named(findings) in ([], [fault.name])


def one_linear_map_scales(model: Any) -> None:
    """What comes back through one matrix is scaled, and its own derivative with it."""
    model.transformer.h[1].mlp.c_fc.register_forward_hook(
        lambda module, args, y: faults.scaled(y, 0.9)
    )


def noise_in_the_backward_pass(model: Any) -> None:
    """As a lossy compression of gradients adds it."""

    def noisy(gradient: Any) -> Any:
        import torch

        drawn = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        return gradient + 0.01 * gradient.std() * drawn.to(gradient.dtype)

    def hook(module: Any, args: Any, y: Any) -> None:
        if y.requires_grad:
            y.register_hook(noisy)

    model.transformer.h[1].mlp.register_forward_hook(hook)


def clipped(model: Any) -> None:
    """Derivatives are clipped in the middle of the model."""

    def hook(module: Any, args: Any, y: Any) -> None:
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.clamp(max=float(gradient.std())))

    model.transformer.h[1].mlp.register_forward_hook(hook)


def gelu_scaled_in_all_layers(model: Any) -> None:
    """The same behind every GELU: no one factor."""
    for block in model.transformer.h:
        block.mlp.act.register_forward_hook(lambda module, args, y: faults.scaled(y, 0.9))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("float64_copy", [True, False], ids=["float64", "declared"])
@pytest.mark.parametrize(
    "fault",
    [one_linear_map_scales, noise_in_the_backward_pass, clipped, gelu_scaled_in_all_layers],
    ids=lambda fault: fault.__name__,
)
def test_what_is_in_no_catalogue_gets_no_name(
    fault: Callable[[Any], None], dtype: Any, float64_copy: bool
) -> None:
    made = port(fault, dtype=dtype)
    findings = held(made if float64_copy else without_float64_copy(made))
    assert failed(findings) or dtype == "bfloat16"
    assert named(findings) == []


def answering_alone(inner: Port, change: Callable[[Gradients], Gradients]) -> Port:
    """A port of which nothing is known but its weights, its logits and derivatives of these."""
    made = Port()
    made.name, made.dtype = inner.name, inner.dtype
    made.parameters, made.logits = inner.parameters, inner.logits  # type: ignore[method-assign]
    made.offer(GRADIENTS, inner.offers()[GRADIENTS])
    return answering(made, change)


def test_a_gradient_that_is_absent_is_named_as_one_that_is_zero() -> None:
    def drop(gradients: Gradients) -> Gradients:
        kept = {n: g for n, g in gradients.parameters.items() if not n.endswith("2.ln_1.weight")}
        return replace(gradients, parameters=kept)

    findings = held(answering_alone(port(), drop))
    assert failed(findings) == ["h.2.ln_1"]
    assert "no gradient reaches h2/ln_1/g" in message(findings, Status.FAILED)


def test_a_port_that_knows_the_sum_of_both_ends_alone_is_judged_at_the_logits() -> None:
    def total(gradients: Gradients) -> Gradients:
        return replace(gradients, wte_input=None, wte_output=None)

    findings = {f.site: f for f in held(answering_alone(port(), total))}
    assert {f.status for f in findings.values()} == {Status.PASSED}
    assert "wte (both ends)" in findings["logits"].message
    assert "wte" not in findings["embed"].message and "wpe" in findings["embed"].message


def test_a_gradient_that_is_not_finite_is_refuted() -> None:
    def spoil(gradients: Gradients) -> Gradients:
        spoilt = {
            n: g * np.nan if n.endswith("ln_f.bias") else g for n, g in gradients.parameters.items()
        }
        return replace(gradients, parameters=spoilt)

    assert failed(held(answering_alone(port(), spoil))) == ["ln_f"]


def test_the_reference_is_measured_once_for_all_ports_of_a_precision() -> None:
    source = checkpoint()
    shared = SharedWeights(source.tensors, record=False)

    def reference(seed: int = 0, **options: Any) -> ReferenceGradient:
        prepared = prepare(port(source=source, **options), source, shared)
        return reference_gradient(prepared.subject(seed))

    first = reference(attention="eager")
    assert reference(attention="sdpa") is first
    assert reference(dtype="bfloat16") is not first
    assert reference(seed=1) is not first


def test_without_gradients_nothing_is_examined() -> None:
    made = port()
    made.withdraw(GRADIENTS)
    assert [f.message for f in hold("gradient", made)] == ["no gradients"]


@pytest.mark.parametrize(
    ("dtype", "status"), [("float16", Status.NOT_EXAMINED), ("float32", Status.FAILED)]
)
def test_beyond_the_range_of_float16_there_is_no_mistake(dtype: Any, status: Status) -> None:
    """As a gradient that overflows comes back; in a wider format it is one."""

    def overflow(gradients: Gradients) -> Gradients:
        spoilt = {n: np.full_like(g, np.nan) for n, g in gradients.parameters.items()}
        ends = (gradients.wte_input, gradients.wte_output)
        return Gradients(spoilt, *(np.full_like(g, np.nan) for g in ends))

    findings = held(answering_alone(port(dtype=dtype), overflow))
    assert {f.status for f in findings} == {status}
    if status is Status.NOT_EXAMINED:
        words = "the gradient is not finite in float16, whose range ends at 65504"
        assert {f.message for f in findings} == {words}
