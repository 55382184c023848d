"""What a torch module shows besides its logits: derivatives, copies, its graph, another device.

Twelve styles of writing GPT-2 and transformers' own are held against central differences of the
oracle's loss; ways in which a module can cut a derivative off are written out one by one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import functional_styles
import numpy as np
import pytest
import torch
import torch_styles
from gradients import Gradients, gathered
from models import CONFIG, checkpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from reference import Config, logits, tensor_table
from reference.loss import loss_nats, token_losses_nats
from verify.checkpoint import Checkpoint
from verify.ports.huggingface import huggingface
from verify.ports.port import NotExamined
from verify.ports.torch_module import TorchModule

SOURCE = checkpoint()
TOKENS = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (2, 11))
POSITION = 5
STYLES: dict[str, Callable[[Checkpoint], nn.Module]] = {
    name: getattr(module, name)
    for module, names in (
        (torch_styles, "split_linears fused_in_place hand_written upcasting recomputing"),
        (torch_styles, "time_first row_by_row library"),
        (functional_styles, "functional einsum nameless convolutions"),
    )
    for name in names.split()
}
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def port(style: str, source: Checkpoint = SOURCE) -> TorchModule:
    if style.startswith("huggingface"):
        _, attention, dtype = style.split("-")
        return huggingface(source, attention, dtype)  # type: ignore[arg-type]
    return TorchModule(STYLES[style](source), source, style)


def twin_gradients(made: TorchModule) -> Gradients:
    with made.float64() as twin:
        assert twin.gradients is not None
        return gathered(twin, TOKENS)


Weights = Mapping[str, np.ndarray]


def mean_loss(weights: Weights) -> float:
    return float(np.mean([loss_nats(logits(weights, CONFIG, row), row) for row in TOKENS]))


def difference_quotient(weights: Weights, name: str, direction: np.ndarray, step: float) -> float:
    """Central, of fourth order (five points, the middle one has no weight)."""
    values = [
        mean_loss({**weights, name: weights[name] + n * step * direction}) for n in (1, -1, 2, -2)
    ]
    return (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)


@cache
def slopes(dtype: str = "float32") -> dict[str, tuple[np.ndarray, float, float]]:
    """Tensor → direction, the oracle's derivative along it, and the error of that."""
    weights = {}
    for name, value in SOURCE.tensors.items():
        narrow = torch.from_numpy(np.array(value)).to(getattr(torch, dtype))
        weights[name] = narrow.double().numpy()
    rng, found = np.random.default_rng(1), {}
    for name, value in weights.items():
        direction = rng.standard_normal(value.shape) / np.sqrt(value.size)
        near, far = (difference_quotient(weights, name, direction, h) for h in (1e-4, 2e-4))
        # Truncation shows in the difference of the two; the loss itself is rounded.
        error = abs(near - far) + 64 * UNIT["float64"] * mean_loss(weights) / 1e-4
        found[name] = direction, near, error
    return found


def slope_of(made: TorchModule, found: Gradients, name: str, direction: np.ndarray) -> float:
    """A port's derivative along a direction that is given in the checkpoint's layout."""
    total = 0.0
    for placement in made.matching.placements:
        if placement.tensor != name:
            continue
        along = direction
        if placement.part is not None:
            along = np.split(along, 3, axis=-1)[placement.part]
        if placement.transposed:
            along = along.T
        value = found.parameters[placement.parameter].astype(np.float64)
        total += float((value.reshape(along.shape) * along).sum())
    return total


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "style", [*STYLES, "huggingface-eager-float32", "huggingface-sdpa-float64"]
)
def test_the_twin_has_the_derivatives_of_the_oracle(style: str) -> None:
    made = port(style)
    found = twin_gradients(made)
    for name, (direction, expected, error) in slopes().items():
        got = slope_of(made, found, name, direction)
        # Where layer norm and softmax stay in float32, so do their derivatives.
        limit = error if style != "upcasting" else error + 64 * UNIT["float32"]
        assert abs(got - expected) <= limit, name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_twin_of_half_precision_has_the_derivatives_at_its_own_weights(dtype: str) -> None:
    made = port(f"huggingface-eager-{dtype}")
    found = twin_gradients(made)
    for name, (direction, expected, error) in slopes(dtype).items():
        assert abs(slope_of(made, found, name, direction) - expected) <= error, name


@pytest.mark.parametrize(
    ("style", "dtype"),
    [
        *((style, "float32") for style in STYLES),
        *((f"huggingface-{a}-{d}", d) for a in ("eager", "sdpa") for d in UNIT),
    ],
)
def test_derivatives_in_the_declared_precision(style: str, dtype: str) -> None:
    """At least half of the digits are those of the twin: of every parameter and of both parts."""
    made = port(style)
    wide, found = twin_gradients(made), gathered(made, TOKENS)
    assert found.parameters.keys() == wide.parameters.keys()
    pairs = [(found.parameters[name], wide.parameters[name]) for name in wide.parameters]
    pairs += [(found.wte_input, wide.wte_input), (found.wte_output, wide.wte_output)]
    for got, expected in pairs:
        assert got.dtype == (np.float64 if dtype == "float64" else np.float32)
        if np.linalg.norm(expected) > 1e-3:  # the derivative along k's bias is zero
            assert relative(got, expected) < np.sqrt(UNIT[dtype])


@pytest.mark.parametrize("style", STYLES)
def test_the_parts_make_the_whole(style: str) -> None:
    found, made = twin_gradients(port(style)), port(style)
    shape = (CONFIG.n_vocab, CONFIG.n_embd)
    assert found.wte_input.shape == found.wte_output.shape == shape
    (wte,) = (p for p in made.matching.placements if p.tensor == "wte")
    whole = found.parameters[wte.parameter]
    assert relative(found.wte_input + found.wte_output, whole) < 4 * UNIT["float64"]
    absent = np.setdiff1d(np.arange(CONFIG.n_vocab), TOKENS)
    assert not found.wte_input[absent].any()
    assert found.wte_output.all()


@pytest.mark.parametrize("style", STYLES)
def test_names_that_share_memory_have_the_same_total(style: str) -> None:
    made = port(style)
    found = gathered(made, TOKENS).parameters
    parameters = list(made.parameters())
    assert set(found) == {p.name for p in parameters}
    for p in parameters:
        assert found[p.name].shape == p.shape
        for other in parameters:
            if other.storage == p.storage:
                assert np.array_equal(found[other.name], found[p.name])


class TestInput:
    @pytest.mark.parametrize("style", [*STYLES, "huggingface-sdpa-float32"])
    def test_against_the_oracle(self, style: str) -> None:
        """Moving the embedding of one position: wpe has one row for each."""
        made, row = port(style), TOKENS[:1]
        with made.float64() as twin:
            found = twin.input_gradients(row, POSITION)
        weights = {name: np.array(v, np.float64) for name, v in SOURCE.tensors.items()}
        direction = np.random.default_rng(2).standard_normal(found.shape)

        def loss(step: float) -> float:
            wpe = weights["wpe"].copy()
            wpe[: len(direction)] += step * direction
            values = logits({**weights, "wpe": wpe}, CONFIG, row[0])
            return float(token_losses_nats(values, row[0])[POSITION])

        near, far = ((8 * (loss(h) - loss(-h)) - loss(2 * h) + loss(-2 * h)) / (12 * h)
                     for h in (1e-4, 2e-4))  # fmt: skip
        error = abs(near - far) + 64 * UNIT["float64"] * loss(0) / 1e-4
        limit = error if style != "upcasting" else error + 64 * UNIT["float32"]
        assert abs(float((found * direction).sum()) - near) <= limit

    @pytest.mark.parametrize("style", [*STYLES, "huggingface-eager-bfloat16"])
    def test_nothing_comes_from_later_positions(self, style: str) -> None:
        found = port(style).input_gradients(TOKENS[:1], POSITION)
        assert found.shape == (TOKENS.shape[1], CONFIG.n_embd)
        assert not found[POSITION + 1 :].any()
        assert all(np.linalg.norm(row) > 0 for row in found[: POSITION + 1])

    def test_a_position_that_predicts_nothing(self) -> None:
        made = port("split_linears")
        with pytest.raises(ValueError, match="position 10 of tokens"):
            made.input_gradients(TOKENS[:1], 10)


# Ways in which wte is read. ``trunk`` is everything between the lookup and the last product.

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def trunk(model: Any, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    x = rows + model.wpe(torch.arange(ids.shape[1]))
    return model.final_norm(functools.reduce(lambda x, block: block(x), model.blocks, x))


def with_forward(forward: Forward) -> nn.Module:
    model = torch_styles.split_linears(SOURCE)
    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]
    return model


def one_hot(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return F.one_hot(ids, CONFIG.n_vocab).to(model.wte.weight.dtype)


def head_detached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return trunk(model, model.wte(ids), ids) @ model.wte.weight.detach().t()


def head_detached_one_hot(model: Any, ids: torch.Tensor) -> torch.Tensor:
    rows = one_hot(model, ids) @ model.wte.weight
    return trunk(model, rows, ids) @ model.wte.weight.detach().t()


def head_detached_masked_sum(model: Any, ids: torch.Tensor) -> torch.Tensor:
    rows = (one_hot(model, ids).unsqueeze(-1) * model.wte.weight).sum(-2)
    return trunk(model, rows, ids) @ model.wte.weight.detach().t()


def lookup_detached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return trunk(model, model.wte(ids).detach(), ids) @ model.wte.weight.t()


def stream_detached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return trunk(model, model.wte(ids), ids).detach() @ model.wte.weight.t()


def chunked_head(model: Any, ids: torch.Tensor) -> torch.Tensor:
    x = trunk(model, model.wte(ids), ids)
    return torch.cat([x @ part.t() for part in model.wte.weight.split(30)], -1)


def one_copy_for_both(model: Any, ids: torch.Tensor) -> torch.Tensor:
    table = (model.wte.weight * 1.0).clone()
    return trunk(model, F.embedding(ids, table), ids) @ table.t()


def masked_sum_for_both(model: Any, ids: torch.Tensor) -> torch.Tensor:
    rows = (one_hot(model, ids).unsqueeze(-1) * model.wte.weight).sum(-2)
    return (trunk(model, rows, ids).unsqueeze(-2) * model.wte.weight).sum(-1)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, 1).t() @ x.flatten(0, 1)


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


def written_backward(model: Any, ids: torch.Tensor) -> torch.Tensor:
    table = Same.apply(model.wte.weight)
    return Product.apply(trunk(model, F.embedding(ids, table), ids), table)


def reentrant_blocks(model: Any, ids: torch.Tensor) -> torch.Tensor:
    x = model.wte(ids) + model.wpe(torch.arange(ids.shape[1]))
    for block in model.blocks:
        x = recompute(block, x, use_reentrant=True)
    return model.head(model.final_norm(x))


def reentrant_head(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return recompute(model.head, trunk(model, model.wte(ids), ids), use_reentrant=True)


class MatrixHead(nn.Module):
    """x @ w, or a convolution over one position."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.ndim == 3:
            return F.conv1d(x.transpose(1, 2), self.weight).transpose(1, 2)
        return x @ self.weight


def with_head(head: Callable[[torch.Tensor], nn.Module]) -> nn.Module:
    model = torch_styles.split_linears(SOURCE)
    model.head = head(model.wte.weight.data)
    return model


def sparse() -> nn.Module:
    model = torch_styles.split_linears(SOURCE)
    model.wte.sparse = True
    return model


@cache
def plain() -> Gradients:
    return twin_gradients(port("split_linears"))


def modules() -> dict[str, nn.Module]:
    written = (chunked_head, one_copy_for_both, masked_sum_for_both, written_backward)
    return {f.__name__: with_forward(f) for f in written} | {
        "two parameters in one memory": with_head(lambda w: linear_of(w)),
        "transposed in the same memory": with_head(lambda w: MatrixHead(w.t())),
        "a convolution in the same memory": with_head(lambda w: MatrixHead(w.unsqueeze(-1))),
        "frozen": torch_styles.split_linears(SOURCE).requires_grad_(False),
        "sparse": sparse(),
    }


def linear_of(weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(*reversed(weight.shape), bias=False)
    made.weight = nn.Parameter(weight)
    return made


class TestEndsOfTied:
    @pytest.mark.parametrize("name", modules())
    def test_however_it_is_read(self, name: str) -> None:
        made = TorchModule(modules()[name], SOURCE, name)
        with made.float64() as twin:
            at_input = twin.input_gradients(TOKENS[:1], POSITION)
        with port("split_linears").float64() as twin:
            expected = twin.input_gradients(TOKENS[:1], POSITION)
        limit = 2.0**10 * UNIT["float64"]
        assert relative(at_input, expected) < limit
        found = twin_gradients(made)
        assert relative(found.wte_input, plain().wte_input) < limit
        assert relative(found.wte_output, plain().wte_output) < limit
        total = plain().parameters["wte.weight"]
        assert relative(found.parameters["wte.weight"], total) < limit
        head = found.parameters["head.weight"]
        head = head.T if head.shape == total.T.shape else head.reshape(total.shape)
        assert relative(head, total) < limit

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(
        ("forward", "blocked"),
        [
            (head_detached, "wte_output"),
            (head_detached_one_hot, "wte_output"),
            (head_detached_masked_sum, "wte_output"),
            (lookup_detached, "wte_input"),
            (stream_detached, "wte_input"),
        ],
    )
    def test_a_blocked_side_is_zero(self, forward: Forward, blocked: str, dtype: str) -> None:
        made = TorchModule(with_forward(forward), SOURCE, "blocked", dtype)  # type: ignore[arg-type]
        found = gathered(made, TOKENS)
        other = {"wte_output": "wte_input", "wte_input": "wte_output"}[blocked]
        assert not getattr(found, blocked).any()
        expected = getattr(plain(), other)
        assert relative(getattr(found, other), expected) < np.sqrt(UNIT[dtype])

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_reentrant_checkpoints_are_followed(self) -> None:
        made = TorchModule(with_forward(reentrant_blocks), SOURCE, "reentrant")
        before = {n: p.grad for n, p in made.module.named_parameters()}
        found = twin_gradients(made)
        assert relative(found.wte_input, plain().wte_input) < 2.0**10 * UNIT["float64"]
        assert relative(found.wte_output, plain().wte_output) < 2.0**10 * UNIT["float64"]
        for name, expected in plain().parameters.items():
            if np.linalg.norm(expected) > 1e-12:
                assert relative(found.parameters[name], expected) < 2.0**10 * UNIT["float64"]
        made.input_gradients(TOKENS[:1], POSITION)
        assert {n: p.grad for n, p in made.module.named_parameters()} == before

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_what_hides_the_head_hides_the_parts(self) -> None:
        made = TorchModule(with_forward(reentrant_head), SOURCE, "reentrant head")
        found = twin_gradients(made)
        assert found.wte_input is found.wte_output is None
        total = plain().parameters["wte.weight"]
        assert relative(found.parameters["wte.weight"], total) < 2.0**10 * UNIT["float64"]


def test_of_an_untied_head_the_output_is_its_own() -> None:
    made = TorchModule(with_head(lambda w: linear_of(w.clone())), SOURCE, "untied")
    found = twin_gradients(made)
    assert np.array_equal(found.parameters["wte.weight"], found.wte_input)
    assert np.array_equal(found.parameters["head.weight"], found.wte_output)
    assert np.array_equal(found.wte_input, plain().wte_input)
    assert np.array_equal(found.wte_output, plain().wte_output)


class TestNotDifferentiable:
    @pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
    def test_run_without_gradients(self, without: Any) -> None:
        model = torch_styles.split_linears(SOURCE)
        model.forward = without()(model.forward)  # type: ignore[method-assign]
        made = TorchModule(model, SOURCE, "inference")
        calls = (
            lambda t: gathered(made, t),
            lambda t: made.input_gradients(t[:1], 3),
        )
        for call in calls:
            with pytest.raises(NotExamined, match="does not depend on its parameters"):
                call(TOKENS)

    def test_output_detached(self) -> None:
        made = TorchModule(
            with_forward(lambda m, ids: stream_detached(m, ids).detach()), SOURCE, ""
        )
        with pytest.raises(NotExamined, match="does not depend on its parameters"):
            gathered(made, TOKENS)

    def test_a_module_without_parameters_has_none(self) -> None:
        class Constant(nn.Module):
            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                return torch.zeros(*ids.shape, CONFIG.n_vocab)

        made = TorchModule(Constant(), SOURCE, "constant")
        assert made.gradients is made.input_gradients is None

    def test_one_token_predicts_nothing(self) -> None:
        with pytest.raises(ValueError, match="two tokens"):
            gathered(port("split_linears"), TOKENS[:, :1])


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("style", ["split_linears", "fused_in_place", "nameless"])
def test_everything_is_left_as_it_was(style: str, twin: bool) -> None:
    model = STYLES[style](SOURCE)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(bool(i % 2))
        if i % 3 == 0:
            parameter.grad = torch.full_like(parameter, i)
    made = TorchModule(model, SOURCE, style)
    named = dict(model.named_parameters(remove_duplicate=False))

    def state() -> list[Any]:
        return [
            (name, id(p), p.requires_grad, id(p.grad), p.detach().numpy().tobytes())
            for name, p in named.items()
        ]

    before, rng = state(), torch.get_rng_state()
    dropout = nn.Dropout(0.5)  # draws from the generator
    model.register_forward_hook(lambda module, args, output: output + 0 * dropout(output))
    bits = made.logits(TOKENS).tobytes()
    torch.set_rng_state(rng)
    with made.float64() if twin else nullcontext(made) as one:
        gathered(one, TOKENS)
        one.input_gradients(TOKENS[:1], POSITION)
        assert dict(model.named_parameters(remove_duplicate=False)).keys() == named.keys()
    if not twin:
        assert torch.equal(torch.get_rng_state(), rng)
    assert state() == before
    assert dict(model.named_parameters(remove_duplicate=False)) == named
    assert torch.is_grad_enabled()
    assert not any(module.training for module in model.modules())
    assert made.logits(TOKENS).tobytes() == bits


@pytest.mark.parametrize(
    "sizes", [(1, 3, 4, 2, 1), (2, 2, 3, 1, 1), (5, 4, 1, 1, 1), (6, 6, 6, 3, 2), (4, 8, 4, 1, 1)]
)
@pytest.mark.parametrize("style", ["split_linears", "nameless", "huggingface-eager-float32"])
def test_odd_sizes(style: str, sizes: tuple[int, ...]) -> None:
    """A vocabulary of one or two, one channel, square tables."""
    source = checkpoint(Config(*sizes), seed=1)
    made = port(style, source)
    length = source.config.n_ctx
    tokens = np.random.default_rng(3).integers(0, source.config.n_vocab, (2, length))
    with made.float64() as twin:
        found = gathered(twin, tokens)
        at_input = twin.input_gradients(tokens[:1], 0)
    assert found.wte_input.shape == found.wte_output.shape == sizes[:3:2]
    wte = next(p for p in made.matching.placements if p.tensor == "wte")
    whole = found.parameters[wte.parameter].reshape(sizes[:3:2])
    assert np.allclose(found.wte_input + found.wte_output, whole, rtol=0, atol=1e-15)
    assert at_input.shape == (length, source.config.n_embd)
    assert not at_input[1:].any()
    assert set(gathered(made, tokens).parameters) == {p.name for p in made.parameters()}
    assert len(tensor_table(source.config)) <= len(found.parameters)
