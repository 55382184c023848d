"""What a torch module shows besides its logits: derivatives, copies, its graph, another device.

Twelve styles of writing GPT-2 and transformers' own are checked against central differences of the
oracle's loss; ways in which a module can cut a derivative off are written out one by one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
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
from rounding import LIMIT_FLOORS, Slope, gamma, slope
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.graph.derivatives import Derivative, derivatives
from gpt_verify.graph.directions import WTE_READERS, draw
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import GRADIENTS, INPUT_GRADIENTS, NotExamined
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import Config, tensor_table

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


def port(style: str, source: Checkpoint = SOURCE) -> TorchModule:
    if style.startswith("huggingface"):
        _, attention, dtype = style.split("-")
        return huggingface(source, attention, dtype)  # type: ignore[arg-type]
    return TorchModule(STYLES[style](source), source, style)


def float64_gradients(made: TorchModule) -> Gradients:
    with made.float64() as float64_copy:
        return gathered(float64_copy, TOKENS)


@cache
def known(weights: str = "float32", arithmetic: str = "float32") -> list[Derivative]:
    """The oracle's derivatives of every tensor and of both ends of wte, with what rounding in this
    arithmetic does to them, at the checkpoint's weights as this format holds them."""
    declared = DeclaredWeights(SOURCE.tensors, PRECISIONS[weights])
    directions = draw(CONFIG, np.random.default_rng(1))
    return derivatives(CONFIG, declared, TOKENS, directions, PRECISIONS[arithmetic])


#: How much finer float64 is than the arithmetic whose noise is known.
FINER = FLOAT64.u / FLOAT32.u


def of_wte(end: str) -> Derivative:
    """Of ``embed`` or of ``logits``."""
    return next(d for d in known() if d.direction.tensor == "wte" and d.direction.sites == (end,))


def whole_wte() -> Derivative:
    return next(d for d in known() if d.direction.sites == WTE_READERS)


def assert_derivatives(
    made: TorchModule, found: Gradients, expected: list[Derivative], finer: float = 1.0
) -> None:
    """Of every tensor and of both ends of wte, within what ports are allowed."""
    for d in expected:
        if d.direction.tensor == "wte" and d.direction.sites != WTE_READERS:
            part = found.wte_input if d.direction.sites == ("embed",) else found.wte_output
            got = d.direction.along(part)
        else:
            got = slope_of(made, found, d.direction.tensor, d.direction.values())
        assert d.floors(got, finer) <= LIMIT_FLOORS, (d.direction.tensor, d.direction.sites)


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


@pytest.mark.parametrize(
    "style", [*STYLES, "huggingface-eager-float32", "huggingface-sdpa-float64"]
)
def test_the_float64_copy_has_the_derivatives_of_the_oracle(style: str) -> None:
    made = port(style)
    # Where layer norm and softmax stay in float32, so do their derivatives.
    finer = FINER if style != "upcasting" else 1.0
    assert_derivatives(made, float64_gradients(made), known(), finer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_float64_copy_of_half_precision_has_the_derivatives_at_its_own_weights(
    dtype: str,
) -> None:
    made = port(f"huggingface-eager-{dtype}")
    assert_derivatives(made, float64_gradients(made), known(dtype), FINER)


@pytest.mark.parametrize(
    ("style", "dtype"),
    [
        *((style, "float32") for style in STYLES),
        *((f"huggingface-{a}-{d}", d) for a in ("eager", "sdpa") for d in PRECISIONS),
    ],
)
def test_derivatives_in_the_declared_precision(style: str, dtype: str) -> None:
    """Of every parameter and of both parts of wte, within the noise of that precision."""
    made = port(style)
    found = gathered(made, TOKENS)
    assert found.parameters.keys() == float64_gradients(made).parameters.keys()
    for got in (*found.parameters.values(), found.wte_input, found.wte_output):
        assert got.dtype == (np.float64 if dtype == "float64" else np.float32)
    if dtype == "float64":
        assert_derivatives(made, found, known(), FINER)
    else:
        assert_derivatives(made, found, known(dtype, dtype))


def test_a_derivative_off_by_a_millionth_is_seen_in_float64() -> None:
    made = port("split_linears")
    found = float64_gradients(made)
    for d in known():
        got = slope_of(made, found, d.direction.tensor, d.direction.values())
        if d.direction.tensor != "wte":
            assert d.floors((1 + 1e-6) * got, FINER) > LIMIT_FLOORS


def gradient_of(made: TorchModule, found: Gradients, tensor: str, shape: tuple[int, ...]) -> Any:
    (placed,) = (p for p in made.matching.placements if p.tensor == tensor)
    return found.parameters[placed.parameter].reshape(shape)


def assert_parts_make_the_whole(made: TorchModule, tokens_T: np.ndarray) -> None:
    """Of a single sequence, whose positions receive what its tokens do: a row of wte gets a sum of
    as many terms as its token occurs, and the part of the head."""
    with made.float64() as float64_copy:
        found = gathered(float64_copy, tokens_T[None])
    size_VD = np.abs(found.wte_output)
    whole = gradient_of(made, found, "wte", size_VD.shape)
    at_embed = gradient_of(made, found, "wpe", (-1, size_VD.shape[1]))[: len(tokens_T)]
    np.add.at(size_VD, tokens_T, np.abs(at_embed))
    apart = np.abs(found.wte_input + found.wte_output - whole)
    assert (apart <= 2 * gamma(len(tokens_T) + 1) * size_VD).all()


@pytest.mark.parametrize("style", STYLES)
def test_the_parts_make_the_whole(style: str) -> None:
    made = port(style)
    found = float64_gradients(made)
    shape = (CONFIG.n_vocab, CONFIG.n_embd)
    assert found.wte_input.shape == found.wte_output.shape == shape
    for row in TOKENS:
        assert_parts_make_the_whole(made, row)
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


@cache
def at_input(narrow: bool = False) -> tuple[Slope, np.ndarray]:
    """Of one prediction, along a direction of its embeddings: wpe has one row for each position."""
    weights = {name: np.array(v, np.float64) for name, v in SOURCE.tensors.items()}
    direction = np.zeros_like(weights["wpe"])
    direction[: TOKENS.shape[1]] = np.random.default_rng(2).standard_normal(
        (TOKENS.shape[1], CONFIG.n_embd)
    )
    precision = FLOAT32 if narrow else FLOAT64
    known = slope(weights, CONFIG, TOKENS[:1], {"wpe": direction}, POSITION, precision)
    return known, direction[: TOKENS.shape[1]]


class TestInput:
    @pytest.mark.parametrize("style", [*STYLES, "huggingface-sdpa-float32"])
    def test_against_the_oracle(self, style: str) -> None:
        """Moving the embedding of one position: wpe has one row for each."""
        made, row = port(style), TOKENS[:1]
        with made.float64() as float64_copy:
            found = float64_copy.offers()[INPUT_GRADIENTS](row, POSITION)
        expected, along = at_input(style == "upcasting")
        assert expected.floors(float((found * along).sum())) <= LIMIT_FLOORS
        # So that something is compared: what is off by so much would be seen.
        off = 1e-3 if style == "upcasting" else 1e-6
        assert expected.floors((1 + off) * float((found * along).sum())) > LIMIT_FLOORS

    @pytest.mark.parametrize("style", [*STYLES, "huggingface-eager-bfloat16"])
    def test_nothing_comes_from_later_positions(self, style: str) -> None:
        found = port(style).offers()[INPUT_GRADIENTS](TOKENS[:1], POSITION)
        assert found.shape == (TOKENS.shape[1], CONFIG.n_embd)
        assert not found[POSITION + 1 :].any()
        assert all(np.linalg.norm(row) > 0 for row in found[: POSITION + 1])

    def test_a_position_that_predicts_nothing(self) -> None:
        made = port("split_linears")
        with pytest.raises(ValueError, match="position 10 of tokens"):
            made.offers()[INPUT_GRADIENTS](TOKENS[:1], 10)


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
    return float64_gradients(port("split_linears"))


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
        with made.float64() as float64_copy:
            got = float64_copy.offers()[INPUT_GRADIENTS](TOKENS[:1], POSITION)
        expected, along = at_input()
        assert expected.floors(float((got * along).sum())) <= LIMIT_FLOORS
        found = float64_gradients(made)
        total = found.parameters["wte.weight"]
        for d, value in (
            (of_wte("embed"), found.wte_input),
            (of_wte("logits"), found.wte_output),
            (whole_wte(), total),
        ):
            assert d.floors(d.direction.along(value), FINER) <= LIMIT_FLOORS
        head = found.parameters["head.weight"]
        head = head.T if head.shape == total.T.shape else head.reshape(total.shape)
        assert np.array_equal(head, total)

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
        d = of_wte("embed" if other == "wte_input" else "logits")
        finer = FINER if dtype == "float64" else 1.0
        assert d.floors(d.direction.along(getattr(found, other)), finer) <= LIMIT_FLOORS

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_reentrant_checkpoints_are_followed(self) -> None:
        made = TorchModule(with_forward(reentrant_blocks), SOURCE, "reentrant")
        before = {n: p.grad for n, p in made.module.named_parameters()}
        found = float64_gradients(made)
        assert_derivatives(made, found, known(), FINER)
        made.offers()[INPUT_GRADIENTS](TOKENS[:1], POSITION)
        assert {n: p.grad for n, p in made.module.named_parameters()} == before

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_what_hides_the_head_hides_the_parts(self) -> None:
        made = TorchModule(with_forward(reentrant_head), SOURCE, "reentrant head")
        found = float64_gradients(made)
        assert found.wte_input is found.wte_output is None
        d = whole_wte()
        assert d.floors(d.direction.along(found.parameters["wte.weight"]), FINER) <= LIMIT_FLOORS


def test_of_an_untied_head_the_output_is_its_own() -> None:
    made = TorchModule(with_head(lambda w: linear_of(w.clone())), SOURCE, "untied")
    found = float64_gradients(made)
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
            lambda t: made.offers()[INPUT_GRADIENTS](t[:1], 3),
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
        assert GRADIENTS not in made.offers() and INPUT_GRADIENTS not in made.offers()

    def test_one_token_predicts_nothing(self) -> None:
        with pytest.raises(ValueError, match="two tokens"):
            gathered(port("split_linears"), TOKENS[:, :1])


@pytest.mark.parametrize("float64_copy", [False, True])
@pytest.mark.parametrize("style", ["split_linears", "fused_in_place", "nameless"])
def test_everything_is_left_as_it_was(style: str, float64_copy: bool) -> None:
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
    with made.float64() if float64_copy else nullcontext(made) as one:
        gathered(one, TOKENS)
        one.offers()[INPUT_GRADIENTS](TOKENS[:1], POSITION)
        assert dict(model.named_parameters(remove_duplicate=False)).keys() == named.keys()
    if not float64_copy:
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
    with made.float64() as float64_copy:
        found = gathered(float64_copy, tokens)
        first = float64_copy.offers()[INPUT_GRADIENTS](tokens[:1], 0)
    assert found.wte_input.shape == found.wte_output.shape == sizes[:3:2]
    for row in tokens:
        assert_parts_make_the_whole(made, row)
    assert first.shape == (length, source.config.n_embd)
    assert not first[1:].any()
    assert set(gathered(made, tokens).parameters) == {p.name for p in made.parameters()}
    assert len(tensor_table(source.config)) <= len(found.parameters)
