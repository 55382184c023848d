"""Derivatives of the reference's loss, against a complex step through the oracle, and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import PLAIN, family, keyed
from models import CONFIG as LARGER
from models import checkpoint
from oracle import CONFIG, weights_of
from rounding import Noise, gamma, summed
from transformers import GPT2LMHeadModel

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.graph import backward, differences
from gpt_verify.graph import derivatives as numerics
from gpt_verify.graph.back import Back
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.derivatives import Inconsistent, derivatives
from gpt_verify.graph.differences import difference
from gpt_verify.graph.directions import WTE_READERS, Direction, draw
from gpt_verify.graph.table import OPERATIONS
from gpt_verify.numerics.precision import FLOAT32, FLOAT64, PRECISIONS
from gpt_verify.numerics.scores import limit_max
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.reference import Config, forward, tensor_table
from gpt_verify.reference.loss import token_losses_nats
from gpt_verify.sites import sites

TOKENS = np.array([[3, 10, 0, 3, 7, 1], [5, 5, 2, 9, 0, 10]])
#: A relative error of a derivative that must be seen in float64: a definition of fine enough.
SEEN = 1e-6
ODD = [
    Config(n_vocab=2, n_ctx=2, n_embd=1, n_head=1, n_layer=1),
    Config(n_vocab=3, n_ctx=4, n_embd=2, n_head=2, n_layer=1),
    Config(n_vocab=5, n_ctx=3, n_embd=6, n_head=1, n_layer=4),
]


def declared(config: Config, precision: str = "float64", seed: int = 0) -> DeclaredWeights:
    return DeclaredWeights(weights_of(config, seed), PRECISIONS[precision])


def tokens_of(config: Config, rows: int = 2, length: int = 6, seed: int = 0) -> np.ndarray:
    shape = rows, min(length, config.n_ctx)
    return np.random.default_rng([seed, *shape]).integers(0, config.n_vocab, shape)


def complex_step(
    weights: DeclaredWeights, config: Config, tokens: np.ndarray, direction: Direction
) -> float:
    """Im L(θ + iεv) / ε, which has no truncation and no cancellation: another way to the same."""
    perturbed = {name: weights.float64(name).astype(complex) for name in weights}
    step = 1e-30  # its square is nothing beside 1, and no digit is lost to it
    perturbed[direction.tensor] = perturbed[direction.tensor] + step * 1j * direction.values()
    losses = []
    for row in tokens:
        value = deque_last(forward(perturbed, config, row, np.complex128))
        if direction.tensor == "wte" and len(direction.sites) == 1:
            value = one_end(weights, perturbed, config, row, direction.sites[0])
        losses.append(token_losses_nats(value, row))
    return float(np.mean(losses).imag) / step


def deque_last(sites):
    *_, (_, value) = sites
    return value


def one_end(weights, perturbed, config, row, site):
    """The logits where wte is perturbed for one of its two readers alone."""
    plain = {**perturbed, "wte": weights.float64("wte").astype(complex)}
    lookup, product = (perturbed, plain) if site == "embed" else (plain, perturbed)
    values = dict(forward(lookup, config, row, np.complex128))
    return values["ln_f"] @ product["wte"].T


@pytest.mark.parametrize("config", [CONFIG, *ODD], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_derivative_is_within_its_error_of_the_complex_step(config, seed):
    weights, tokens = declared(config, seed=seed), tokens_of(config, seed=seed)
    directions = draw(config, np.random.default_rng(seed))
    for found in derivatives(config, weights, tokens, directions, FLOAT64):
        exact = complex_step(weights, config, tokens, found.direction)
        # Both of them round.
        assert abs(found.value - exact) <= LIMIT_FLOORS * found.rounding, found.direction
        assert LIMIT_FLOORS * found.rounding < SEEN * max(1.0, abs(exact)), found.direction


def test_every_tensor_has_a_direction_and_wte_three_that_add_up():
    directions = draw(CONFIG, np.random.default_rng(0))
    tensors = [d.tensor for d in directions]
    assert sorted(tensors) == sorted([*tensor_table(CONFIG), "wte", "wte"])
    assert all(d.values().shape == tensor_table(CONFIG)[d.tensor].shape for d in directions)
    found = derivatives(CONFIG, declared(CONFIG), TOKENS, directions, FLOAT64)
    ends = {d.direction.sites: d.value for d in found if d.direction.tensor == "wte"}
    apart = sum(d.rounding for d in found if d.direction.tensor == "wte")
    assert abs(ends[WTE_READERS] - (ends["embed",] + ends["logits",])) <= limit_max(1) * apart
    assert all(abs(value) > LIMIT_FLOORS * apart for value in ends.values())


def losses_run(weights, config, row):
    """Every next-token loss of one sequence."""

    def run(dtype, store):
        logits_TV = deque_last(forward(weights, config, row, dtype, store))
        yield "losses", store(token_losses_nats(logits_TV, row))

    return run


def test_a_run_that_is_not_perturbed_has_the_loss_of_the_reference():
    weights = declared(CONFIG)
    perturbed = differences._Perturbed(TOKENS, draw(CONFIG, np.random.default_rng(0)), np.zeros(1))
    (found,) = perturbed.losses(CONFIG, weights)
    for i, row in enumerate(TOKENS):
        expected = token_losses_nats(deque_last(forward(weights, CONFIG, row)), row)
        known = Noise(losses_run(weights, CONFIG, row))
        np.testing.assert_array_equal(known.exact["losses"], expected)
        known.assert_holds("losses", found[i * 5 : i * 5 + 5])


def test_how_many_noisy_runs_are_made_side_by_side_does_not_matter(monkeypatch):
    directions = draw(CONFIG, np.random.default_rng(0))
    together = derivatives(CONFIG, declared(CONFIG), TOKENS, directions, FLOAT64)
    monkeypatch.setattr(numerics, "ROOM_BYTES", 1)
    alone = derivatives(CONFIG, declared(CONFIG), TOKENS, directions[::-1], FLOAT64)[::-1]
    for a, b in zip(together, alone, strict=True):
        assert a.direction is b.direction and a.value == b.value
        # Two estimates from a dozen observations each: neither is ten times too small (Student's
        # distribution, as in ``gpt_verify.numerics.draws``), so they are no further apart.
        assert 1 / LIMIT_FLOORS < a.floor / b.floor < LIMIT_FLOORS


def with_operation(operation: str) -> Config:
    """A small model that has it."""
    models = [CONFIG, keyed(PLAIN, activation="silu"), *map(family, FAMILIES)]
    return next(c for c in models if operation in {s.operation for s in sites(c).values()})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_rule_is_not_believed(operation, monkeypatch):
    """One part in a million of what it hands back is enough."""
    config = with_operation(operation)
    tokens = tokens_of(config)
    correct = OPERATIONS[operation].back

    def wrong(step, d):
        back = correct(step, d)
        tensors = tuple(backward.Pulled(p.rows, p.columns * (1 + 1e-6)) for p in back.tensors)
        return Back(tuple(x * (1 + 1e-6) for x in back.inputs), tensors)

    backward_pass = numerics.Backward

    class Wrong(backward_pass):
        def _backs(self, site, ds, rule):
            return super()._backs(site, ds, wrong if site.operation == operation else rule)

    monkeypatch.setattr(numerics, "Backward", Wrong)
    directions = [d for d in draw(config, np.random.default_rng(0)) if d.sites != WTE_READERS]
    with pytest.raises(Inconsistent, match="central differences of its loss"):
        derivatives(config, declared(config), tokens, directions, FLOAT64)


def test_a_loss_of_strong_curvature_is_looked_at_more_closely():
    tensors = weights_of(CONFIG, 0)
    for name in tensors:
        if name.endswith("attn/c_attn/w"):
            tensors[name] = tensors[name] * 300
    weights = DeclaredWeights(tensors, FLOAT64)
    directions = [d for d in draw(CONFIG, np.random.default_rng(0)) if d.sites != WTE_READERS]
    found = difference(CONFIG, weights, TOKENS, directions)
    assert found.step < differences.STEP
    known = derivatives(CONFIG, weights, TOKENS, directions, FLOAT64)
    expected = sum(scale * d.value for scale, d in zip(found.scales, known, strict=True))
    assert abs(found.value - expected) <= LIMIT_FLOORS * found.error
    for d in known:
        exact = complex_step(weights, CONFIG, TOKENS, d.direction)
        assert abs(d.value - exact) <= LIMIT_FLOORS * d.rounding, d.direction


def test_a_vocabulary_of_one_has_no_loss_to_lower():
    config = Config(n_vocab=1, n_ctx=3, n_embd=4, n_head=2, n_layer=1)
    directions = draw(config, np.random.default_rng(0))
    found = derivatives(config, declared(config), np.zeros((2, 3), int), directions, FLOAT32)
    assert [d.value for d in found] == [0.0] * len(directions)
    assert found[0].floors(0.0) == 0.0


def test_what_is_not_finite_agrees_with_nothing():
    directions = draw(CONFIG, np.random.default_rng(0))[:1]
    (found,) = derivatives(CONFIG, declared(CONFIG), TOKENS, directions, FLOAT32)
    assert found.floors(float("nan")) == found.floors(float("inf")) == float("inf")


def test_along_is_the_inner_product():
    rng = np.random.default_rng(0)
    for direction in draw(CONFIG, rng)[2:6]:
        gradient = rng.standard_normal(direction.values().shape)
        values = direction.values()
        terms, size = gradient.size, np.sum(np.abs(gradient * values))
        expected = np.sum(gradient * values)
        assert abs(direction.along(gradient) - expected) <= 2 * gamma(terms + 2) * size
        assert direction.square == summed(np.sum(values**2), terms + 2)


def autograd(model: GPT2LMHeadModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the mean loss under the checkpoint's names."""
    ids = torch.tensor(tokens)
    logits = model(ids).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = torch.nn.functional.cross_entropy(wide[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters)
    return {_name(n): v.double().numpy() for n, v in zip(names, values, strict=True)}


def _name(name: str) -> str:
    name = name.removeprefix("transformer.").replace("h.", "h").replace(".", "/")
    kind = "g" if "ln_" in name else "w"
    name = name.replace("/weight", f"/{kind}").replace("/bias", "/b")
    return name[:3] if name.startswith(("wte", "wpe")) else name


def scores(
    dtype: str, in_float64: bool, config: Config = LARGER, rows: int = 2, attention: str = "eager"
) -> np.ndarray:
    """Of autograd in transformers' GPT-2, tensor by tensor."""
    source, tokens = checkpoint(config), tokens_of(config, rows, length=9)
    module = huggingface(source, attention, dtype).module
    gradients = autograd(module.double() if in_float64 else module, tokens)
    precision = PRECISIONS[dtype]
    directions = draw(config, np.random.default_rng(0))
    whole = [d for d in directions if d.tensor != "wte" or d.sites == WTE_READERS]
    found = derivatives(
        config, DeclaredWeights(source.tensors, precision), tokens, whole, precision
    )
    finer = FLOAT64.u / precision.u if in_float64 else 1.0
    return np.array(
        [d.floors(d.direction.along(gradients[d.direction.tensor]), finer) for d in found]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("in_float64", [False, True], ids=["declared", "float64"])
def test_autograd_is_within_floors_that_are_not_too_wide(dtype, in_float64):
    found = scores(dtype, in_float64)
    assert len(found) == len(tensor_table(LARGER))
    # The limit is twice what any correct port has reached.
    assert found.max() <= LIMIT_FLOORS / 2
    # A floor that were always far above the noise would let everything pass. What is far is a
    # definition: five times the noise of the worst tensor, twenty times that of the ordinary one.
    assert found.max() > 0.2
    assert np.sqrt(np.mean(found**2)) > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [*ODD, Config(2, 2, 48, 3, 4)], ids=str)
def test_autograd_is_within_floors_where_almost_nothing_is_left_of_a_derivative(config, dtype):
    """Layer norms of one or two channels, and predictions that are all alike."""
    for attention in ("eager", "sdpa"):
        assert scores(dtype, False, config, 16, attention).max() < LIMIT_FLOORS / 2
        assert scores(dtype, True, config, 16, attention).max() < LIMIT_FLOORS / 2


def test_a_gradient_off_by_a_millionth_is_seen_in_float64():
    source, tokens = checkpoint(), tokens_of(LARGER, length=9)
    gradients = autograd(huggingface(source, "eager").module.double(), tokens)
    directions = draw(LARGER, np.random.default_rng(0))[3:]
    weights = DeclaredWeights(source.tensors, FLOAT32)
    for d in derivatives(LARGER, weights, tokens, directions, FLOAT32):
        off = d.direction.along(gradients[d.direction.tensor] * (1 + SEEN))
        assert d.floors(off, FLOAT64.u / FLOAT32.u) > LIMIT_FLOORS, d.direction
