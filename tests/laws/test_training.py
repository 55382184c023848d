"""The laws of training: correct ports in every mode, and each fault by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training_ports
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.table import CHECKS
from gpt_verify.port import IGNORED, MODES
from gpt_verify.reference import Config

PARTS = [part.id for part in CHECKS if part.id.startswith("training.")]
FAULTS = [name for name, fault in CATALOGUE.items() if fault.family == "training"]


def one(law: str, *args: Any) -> Finding:
    (finding,) = hold(law, *args)
    return finding


@pytest.mark.parametrize(
    ("attention", "dtype"), [("eager", "float32"), ("sdpa", "bfloat16"), ("sdpa", "float16")]
)
def test_transformers_trains_what_it_evaluates(attention: str, dtype: Any) -> None:
    made = port(attention=attention, dtype=dtype)
    for law in PARTS:
        finding = one(law, made)
        assert finding.status is Status.PASSED, finding.message


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refuted_and_named(name: str) -> None:
    law = CATALOGUE[name].law
    assert law is not None
    finding = one(law, faulty(name))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name, finding.message


def _pushing(model: Any, right: Any, logits: Any, labels: Any, ignored: bool) -> Any:
    """The loss, and with it the derivative of what the labels that are ignored, or all, push."""
    chosen = (labels[:, 1:] == IGNORED) if ignored else torch.ones_like(labels[:, 1:]).bool()
    pushed = logits[:, :-1][chosen].logsumexp(-1).sum()
    return right(logits, labels) + 0.1 * (pushed - pushed.detach())


@pytest.mark.parametrize(
    ("ignored", "words"),
    [
        (True, "labels that are ignored have no part in its loss, and one in its derivative"),
        (False, "its loss is right, and its derivative is that of another one"),
    ],
)
def test_the_derivative_of_a_loss_is_that_of_its_value(ignored: bool, words: str) -> None:
    made = plain(lambda model: wrap(model, "loss", lambda *args: _pushing(*args, ignored=ignored)))
    assert one("loss.ignored", made).status is Status.PASSED
    finding = one("training.accumulation", made)
    assert finding.status is Status.FAILED
    assert finding.fault == "loss-gradient"
    assert words in finding.message


def test_a_factor_of_a_loss_reaches_its_derivative() -> None:
    def loss(model: Any, right: Any, logits: Any, labels: Any) -> Any:
        found = right(logits, labels)
        if found.requires_grad:
            found.register_hook(torch.ones_like)
        return found

    finding = one("training.accumulation", plain(lambda model: wrap(model, "loss", loss)))
    assert finding.status is Status.FAILED
    assert finding.fault == "loss-gradient-unscaled"


def test_gradients_of_some_tensors_that_overwrite_each_other() -> None:
    def overwriting(model: Any) -> None:
        for block in model.h:

            def forward(linear: Any, right: Any, x: Any) -> Any:
                seen = linear.weight.view_as(linear.weight)
                if seen.requires_grad:
                    weight = linear.weight
                    seen.register_hook(lambda d: d if weight.grad is None else d - weight.grad)
                return x @ seen + linear.bias

            wrap(block.mlp.c_fc, "forward", forward)

    finding = one("training.accumulation", plain(overwriting))
    assert finding.status is Status.FAILED
    assert finding.fault == "training-gradients-zeroed"


def test_it_is_refuted_after_its_derivatives_were_taken() -> None:
    """What took those away was once left behind: zeros were then compared with zeros."""
    made = faulty("training-detached")
    hold("gradient", made)
    (finding,) = hold("training.mode", made)
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == "training-detached"
    right = plain()
    hold("gradient", right)
    right.module(torch.tensor([[1, 2, 3]]))["logits"].sum().backward()
    assert all(p.grad is not None for p in right.module.parameters())


def test_a_wrong_loss_is_not_taken_for_lost_gradients() -> None:
    """Where the loss of the parts is wrong already, gradients that are lost explain nothing."""

    def build(model: Any) -> None:
        def loss(self: Any, right: Any, logits: Any, labels: Any) -> Any:
            return right(logits, labels) * (2 if (labels == IGNORED).any() else 1)

        wrap(model, "loss", loss)
        CATALOGUE["training-gradients-zeroed"].put_into(model, [0])

    (finding,) = hold("training.accumulation", plain(build))
    assert finding.status is Status.FAILED
    assert finding.fault is None, finding.message


@pytest.mark.parametrize(
    "name", ["training-checkpointing-no-causal-mask", "training-checkpointing-draws-anew"]
)
def test_without_checkpointing_such_a_port_is_right(name: str) -> None:
    assert one("training.mode", faulty(name)).status is Status.PASSED


@pytest.mark.parametrize("how", ["flag", "reentrant"])
def test_a_flag_is_a_switch(how: str) -> None:
    finding = one("training.checkpointing", plain(getattr(training_ports, how)))
    assert finding.status is Status.PASSED, finding.message
    assert "use_checkpoint = True" in finding.message


def test_another_kernel_in_training_is_within_rounding() -> None:
    finding = one("training.mode", plain(training_ports.fused_when_trained))
    assert finding.status is Status.PASSED, finding.message
    assert finding.score is not None and 0 < finding.score < 5


def test_dropout_is_off_where_it_is_found() -> None:
    made = plain(training_ports.dropout_by_config)
    assert one("training.mode", made).status is Status.PASSED
    assert [block.mlp.dropout for block in made.module.h] == [0.1] * CONFIG.n_layer


def test_dropout_that_is_hidden_is_no_fault() -> None:
    finding = one("training.mode", plain(training_ports.hidden_dropout))
    assert finding.status is Status.NOT_EXAMINED
    assert "draws at random" in finding.message


def test_a_port_for_inference_is_no_fault() -> None:
    finding = one("training.mode", plain(training_ports.for_inference))
    assert finding.status is Status.NOT_EXAMINED
    assert "for inference only" in finding.message


def test_a_port_that_raises_in_training_is_no_fault() -> None:
    def forward(self: Any, right: Any, *given: Any, **more: Any) -> Any:
        if self.training:
            raise RuntimeError("a kernel for evaluation")
        return right(*given, **more)

    finding = one("training.mode", plain(lambda model: wrap(model, "forward", forward)))
    assert finding.status is Status.NOT_EXAMINED
    assert finding.message == "it does not run in train(): RuntimeError: a kernel for evaluation"


def made_anew(model: Any) -> None:
    model.wpe = torch.nn.Parameter(model.wpe.detach().clone())


def by_requires_grad(model: Any) -> None:
    def requires_grad_(self: Any, right: Any, wanted: bool = True) -> Any:
        if wanted:
            made_anew(self)
        return right(wanted)

    wrap(model, "requires_grad_", requires_grad_)


def by_methods_of_its_own(model: Any) -> None:
    model.freeze, model.unfreeze = (lambda: None), (lambda: made_anew(model))


@pytest.mark.parametrize("how", [by_requires_grad, by_methods_of_its_own])
def test_a_parameter_that_comes_back_as_another_is_refuted(how: Any) -> None:
    """An optimizer goes on with the one that it was given."""
    finding = one("training.freezing", plain(how))
    assert finding.status is Status.FAILED
    assert finding.message == "frozen and unfrozen, parameter wpe is moved"
    assert finding.fault is None


def test_a_model_of_one_layer_and_two_tokens() -> None:
    source = checkpoint(Config(n_vocab=3, n_ctx=2, n_embd=4, n_head=1, n_layer=1))
    made = port(source=source)
    for law in PARTS:
        finding = one(law, made, source)
        assert finding.status is Status.PASSED, finding.message


def state(module: torch.nn.Module) -> list[Any]:
    """All that a mode may change."""
    config: Any = module.config
    found: list[Any] = [sorted((k, repr(v)) for k, v in vars(config).items())]
    for name, part in module.named_modules():
        attributes = {k: repr(v) for k, v in vars(part).items() if k[0] != "_" and k != "h"}
        found.append((name, part.training, attributes, [*part._parameters], [*part._forward_hooks]))
    for name, p in module.named_parameters():
        found.append(
            (name, id(p), p.data_ptr(), p.requires_grad, p.grad, p.detach().numpy().tobytes())
        )
    return [*found, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("law", PARTS)
@pytest.mark.parametrize(
    "build", [port, lambda: plain(training_ports.written_by_train)], ids=["transformers", "own"]
)
def test_the_port_is_put_back_as_it_was(law: str, build: Any) -> None:
    made = build()
    next(made.module.parameters()).requires_grad_(False)
    made.matching  # noqa: B018  # found out by the first law that asks
    tokens = np.arange(6)[None]
    logits, before = made.logits(tokens), state(made.module)
    hold(law, made)
    assert state(made.module) == before
    assert made.logits(tokens).tobytes() == logits.tobytes()


def test_a_mode_is_left_when_it_raises() -> None:
    made = port()
    before = state(made.module)
    for mode in made.offers()[MODES]():
        with pytest.raises(KeyError), mode.enter(False):
            assert made.module.training
            raise KeyError
        assert state(made.module) == before


def smoothed(share: float) -> Callable[[Any], None]:
    """Label smoothing that training alone has, as a criterion's argument."""

    def alter(model: Any) -> None:
        def forward(self: Any, right: Any, input_ids: Any, labels: Any = None, **more: Any) -> Any:
            made = right(input_ids, labels=labels, **more)
            if labels is not None and self.training:
                logits = made["logits"][:, :-1].flatten(0, 1)
                made["loss"] = torch.nn.functional.cross_entropy(
                    logits, labels[:, 1:].flatten(), label_smoothing=share
                )
            return made

        wrap(model, "forward", forward)

    return alter


def passing_over(layer: int) -> Callable[[Any], None]:
    """Stochastic depth with a fixed choice."""

    def alter(model: Any) -> None:
        block = model.h[layer]

        def wire(own: Any, right: Any, x: Any, attend: Any) -> Any:
            made = right(x, attend)
            return x if model.training else made

        wrap(block, "wire", wire)

    return alter


@pytest.mark.parametrize("share", [0.1, 0.02])
def test_what_training_does_to_the_loss_has_the_name_of_a_loss(share: float) -> None:
    finding = one("training.mode", plain(smoothed(share)))
    assert finding.status is Status.FAILED
    assert finding.fault == "loss-label-smoothing", finding.message
    assert f"in training mode labels are smoothed, ε = {share:g}" in finding.message


@pytest.mark.parametrize("layer", range(CONFIG.n_layer))
def test_a_block_that_training_passes_over_is_named(layer: int) -> None:
    finding = one("training.mode", plain(passing_over(layer)))
    assert finding.status is Status.FAILED
    assert finding.fault == "block-left-out", finding.message
    assert f"in training mode block {layer} is passed over" in finding.message
