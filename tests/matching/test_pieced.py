"""Tensors in pieces, or in another order: placed by their rows and columns, and judged as ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIG, INPUTS, checkpoint, failed, failures, finding, statuses
from pieced_styles import (
    STYLES,
    Backwards,
    FusedKeyValue,
    ListOfHeads,
    OneKeyValue,
    OtherNeurons,
    styled,
)
from torch_styles import Model

from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.judging.judge import judge
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.run import Silent
from gpt_verify.matching.assembly import with_assemblies
from gpt_verify.matching.match import match
from gpt_verify.matching.order import confirmed
from gpt_verify.matching.pieced import pieced
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import Dtype, Parameter
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import tensor_table

SOURCE = checkpoint()
WEIGHTS = DeclaredWeights(SOURCE.tensors, FLOAT32)
#: What a style does not show beside the scores and the pattern of its fused kernel.
HIDDEN = {
    "fused_heads": {"attn.mix", "attn.out", "resid_mid"},
    "put_together": {"ln_1", "attn.qkv", "attn.mix"},
}


def report(module: torch.nn.Module, dtype: Dtype | None = None) -> PortReport:
    return judge(
        "pieced",
        SOURCE,
        INPUTS,
        dtype,
        "cpu",
        Silent(),
        build=lambda: TorchModule(module, SOURCE, "pieced", dtype),
    )


@pytest.mark.parametrize("style", STYLES)
def test_verified(style: str) -> None:
    found = report(styled(SOURCE, style))
    assert found.error is None
    assert failures(found) == []
    assert found.verdict is Verdict.VERIFIED
    assert {place.tensor for place in found.mapping.values()} == set(tensor_table(CONFIG))
    hidden = {"attn.scores", "attn.pattern"} | HIDDEN.get(style, set())
    of_law = statuses(found, "architecture")
    unseen = {site for site, status in of_law.items() if status is Status.NOT_EXAMINED}
    assert unseen == {f"h.{i}.{kind}" for kind in hidden for i in range(CONFIG.n_layer)}
    for law in ("symmetry.heads", "symmetry.neurons", "gradient", "tying.storage"):
        assert Status.PASSED in statuses(found, law).values(), law


def test_more_rows_than_the_vocabulary_has() -> None:
    """It is no padded table: it begins with a column of another matrix."""
    module = OneKeyValue(SOURCE)
    assert len(module.kv) > CONFIG.n_vocab
    found = report(module)
    assert failures(found) == []
    assert found.verdict is Verdict.VERIFIED
    assert finding(found, "architecture", "h.1.attn.qkv").status is Status.PASSED


@pytest.mark.parametrize("n_vocab", [1, 2, 3, 4])
@pytest.mark.parametrize("style", STYLES)
def test_a_vector_of_as_many_elements_as_wte_is_no_head(style: str, n_vocab: int) -> None:
    """As the bias of k and v in one matrix has where there are two tokens."""
    source = checkpoint(replace(CONFIG, n_vocab=n_vocab, n_layer=1))
    port = TorchModule(styled(source, style), source, "pieced")
    placed = prepare(port, source, SharedWeights(source.tensors, record=False)).matching
    assert placed is not None and placed.missing == ()
    assert not any(placement.head for placement in placed.placements)
    port.close()


@pytest.mark.parametrize("style", ["backwards", "list_of_heads", "other_neurons"])
def test_verified_in_half_precision(style: str) -> None:
    found = report(styled(SOURCE, style), "bfloat16")
    assert failures(found) == []
    assert found.verdict is Verdict.VERIFIED


WRONG = [
    ("fused_key_value", "blocks.1.to_kv.weight", "h1/attn/c_attn/w"),
    ("fused_key_value", "blocks.2.to_kv.bias", "h2/attn/c_attn/b"),
    ("backwards", "blocks.1.fused.weight", "h1/attn/c_attn/w"),
    ("backwards", "blocks.0.fused.bias", "h0/attn/c_attn/b"),
    ("list_of_heads", "blocks.1.each.2.0.weight", "h1/attn/c_attn/w"),
    ("fused_heads", "blocks.2.outs.1", "h2/attn/c_proj/w"),
    ("interleaved", "blocks.1.fused.weight", "h1/attn/c_attn/w"),
    ("other_neurons", "blocks.1.fc_in.weight", "h1/mlp/c_fc/w"),
    ("shards", "blocks.0.shards.1.weight", "h0/attn/c_attn/w"),
]


@pytest.mark.parametrize("change", ["one element", "noise"])
@pytest.mark.parametrize(("style", "parameter", "tensor"), WRONG)
def test_a_wrong_value_is_found_in_its_tensor(
    style: str, parameter: str, tensor: str, change: str
) -> None:
    module = styled(SOURCE, style)
    wrong = module.get_parameter(parameter)
    with torch.no_grad():
        if change == "noise":
            wrong.copy_(torch.randn(wrong.shape, generator=torch.Generator().manual_seed(0)))
        else:
            wrong.view(-1)[1] += 0.25
    matching = TorchModule(module, SOURCE, style).matching
    assert matching.missing == matching.surplus == ()
    differing = {p.tensor for p in matching.placements if not p.exact}
    assert differing == {tensor}


class ReadForwards(Backwards):
    """A fault: v, k and q as a converter left them, read as q, k and v."""

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.fused(x).chunk(3, -1)


class ReadTheOtherWay(FusedKeyValue):
    """A fault: k is taken for v."""

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        q, k, v = super().qkv(x)
        return q, v, k


class OneListLost(ListOfHeads):
    """A fault: the second head's query is used for the first as well."""

    def qkv(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        q, k, v = super().qkv(x)
        size = q.shape[-1] // self.heads
        return torch.cat([q[..., size : 2 * size], q[..., size:]], -1), k, v


class OneSideInOrder(OtherNeurons):
    """A fault: the neurons of the first matrix are in another order than those of the second."""

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        made = torch.nn.functional.gelu(self.fc_in(x), approximate="tanh")
        return self.fc_out(made.flip(-1))


@pytest.mark.parametrize(
    ("block", "site"),
    [
        (ReadForwards, "attn.qkv"),
        (ReadTheOtherWay, "attn.mix"),
        (OneListLost, "attn.mix"),
        (OneSideInOrder, "mlp.act"),
    ],
)
def test_read_wrongly(block: type, site: str) -> None:
    found = report(Model(SOURCE, block))
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == f"h.0.{site}"


def test_another_order_read_plainly_is_a_wrong_weight() -> None:
    found = report(Model(SOURCE, ReadForwards))
    assert f"h.{CONFIG.n_layer - 1}.attn.qkv" in failed(found, "weights.values")
    assert "h.0.attn.mix" not in failed(found, "activations.local")


def test_the_order_is_said() -> None:
    said = {name: str(place) for name, place in report(styled(SOURCE, "backwards")).mapping.items()}
    assert said["blocks.1.fused.weight"] == "h1/attn/c_attn/w, its columns in another order"


def parameter(name: str, value: np.ndarray) -> Parameter:
    def write(given: np.ndarray) -> None:
        value[...] = given

    return Parameter(name, value.shape, lambda: value.copy(), name, write=write)


@st.composite
def in_pieces(draw: st.DrawFn) -> tuple[str, list[np.ndarray], bool]:
    """A matrix cut into rows or columns, in any order, each piece as it is or transposed."""
    tensor = draw(st.sampled_from(["attn/c_attn/w", "attn/c_proj/w", "mlp/c_fc/w", "mlp/c_proj/w"]))
    value = SOURCE.tensors[f"h1/{tensor}"].reshape(tensor_table(CONFIG)[f"h1/{tensor}"].shape)
    columns = draw(st.booleans())
    rows = value.T if columns else value
    order = draw(st.permutations(range(len(rows)))) if draw(st.booleans()) else range(len(rows))
    borders = draw(st.lists(st.integers(1, len(rows) - 1), unique=True, min_size=1, max_size=5))
    pieces = np.split(rows[list(order)], sorted(borders))
    return f"h1/{tensor}", [p.T if draw(st.booleans()) else p for p in pieces], columns


@settings(max_examples=40, deadline=None)
@given(in_pieces())
def test_any_cut_and_any_order(cut: tuple[str, list[np.ndarray], bool]) -> None:
    """Read as the tensor, written to where it came from, and taken apart without a remainder."""
    tensor, pieces, _ = cut
    others = {name: SOURCE.tensors[name] for name in tensor_table(CONFIG) if name != tensor}
    held = [parameter(name, np.array(value)) for name, value in others.items()]
    held += [parameter(f"p{i}", np.array(value)) for i, value in enumerate(pieces)]
    found = pieced(held, match(held, CONFIG, WEIGHTS), CONFIG, WEIGHTS)
    assert [assembly.tensor for assembly in found] == [tensor]
    whole = next(p for p in with_assemblies(held, found) if p.implies == tensor)
    expected = np.squeeze(SOURCE.tensors[tensor])
    assert np.array_equal(whole.read(), expected)
    sources = [p for p in held if p.name.startswith("p")]
    shares = [found[0].scattered(p.name, p.read()) for p in sources]
    assert np.array_equal(np.sum(shares, axis=0), expected)
    assert whole.write is not None
    whole.write(expected + 1)
    assert all(np.array_equal(p.read(), v + 1) for p, v in zip(sources, pieces, strict=True))
    assert math.prod(whole.shape) == sum(p.size for p in pieces)


@settings(max_examples=40, deadline=None)
@given(in_pieces())
def test_what_need_not_be_told_is_believed(cut: tuple[str, list[np.ndarray], bool]) -> None:
    """Of a port that shows nothing but its weights: pieces in the checkpoint's order, no others."""
    tensor, pieces, _ = cut
    held = [parameter(n, SOURCE.tensors[n]) for n in tensor_table(CONFIG) if n != tensor]
    held += [parameter(f"p{i}", np.array(value)) for i, value in enumerate(pieces)]
    found = confirmed(pieced(held, match(held, CONFIG, WEIGHTS), CONFIG, WEIGHTS), CONFIG)
    matching = match(list(with_assemblies(held, found)), CONFIG, WEIGHTS)
    straight = all(a.straight for a in pieced(held, match(held, CONFIG, WEIGHTS), CONFIG, WEIGHTS))
    assert matching.exact == straight


def test_a_column_that_is_lost_is_not_made_up() -> None:
    name = "h1/attn/c_attn/w"
    value = np.squeeze(SOURCE.tensors[name])
    held = [parameter(n, SOURCE.tensors[n]) for n in tensor_table(CONFIG) if n != name]
    held += [parameter("one", value[:, :30]), parameter("other", value[:, 31:])]
    assert pieced(held, match(held, CONFIG, WEIGHTS), CONFIG, WEIGHTS) == []
