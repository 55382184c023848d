"""A tensor kept in a way that nobody knows: named, and not examined, if the port is right."""

from __future__ import annotations

import torch
from models import CONFIG, checkpoint, failed, finding, statuses
from test_pieced import report
from torch import nn
from torch.nn import functional as F
from torch_styles import Model, SplitBlock

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status, Verdict

SOURCE = checkpoint()


class Flat(SplitBlock):
    """A matrix and one number more, kept as one vector."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        weight = self.fc_in.weight.detach()
        self.shape, self.bias = weight.shape, self.fc_in.bias
        self.flat = nn.Parameter(torch.cat([weight.flatten(), torch.zeros(1)]))
        del self.fc_in

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        made = F.linear(x, self.flat[:-1].view(self.shape), self.bias)
        return self.fc_out(F.gelu(made, approximate="tanh"))


class FlatAndWrong(Flat):
    """A fault: one of its numbers is another one."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        with torch.no_grad():
            self.flat[17] += 1


class FlatAndOneBiasWrong(Flat):
    """A fault that the logits do not show: a constant added to every key."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        with torch.no_grad():
            self.key.bias += 0.5


class Gone(SplitBlock):
    """The bias of the keys, which no logit depends on, is nowhere; nothing is in its place."""

    def __init__(self, checkpoint: Checkpoint, scope: str) -> None:
        super().__init__(checkpoint, scope)
        self.key.bias = None
        self.temperature = nn.Parameter(torch.ones(3))


def test_not_examined_and_named() -> None:
    found = report(Model(SOURCE, Flat))
    assert found.error is None
    assert found.verdict is Verdict.VERIFIED
    of_law = statuses(found, "weights.values")
    unplaced = {f"h.{layer}.mlp.pre" for layer in range(CONFIG.n_layer)}
    assert {site for site, s in of_law.items() if s is Status.NOT_EXAMINED} == unplaced
    for law in ("weights.accounted", "weights.count"):
        said = finding(found, law)
        assert said.status is Status.NOT_EXAMINED
        assert "blocks.0.flat" in said.message
        assert "h0/mlp/c_fc/w" in said.message


def test_refuted_where_the_logits_are_wrong() -> None:
    found = report(Model(SOURCE, FlatAndWrong))
    assert found.verdict is Verdict.REFUTED
    assert f"h.{CONFIG.n_layer - 1}.mlp.pre" in failed(found, "weights.values")
    assert finding(found, "weights.accounted").status is Status.FAILED


def test_what_was_placed_is_held_to_its_values() -> None:
    found = report(Model(SOURCE, FlatAndOneBiasWrong))
    assert finding(found, "logits", "logits").status is Status.PASSED
    assert found.verdict is Verdict.REFUTED
    keys = {f"h.{layer}.attn.qkv" for layer in range(CONFIG.n_layer)}
    assert failed(found, "weights.values") == keys


def test_missing_with_nothing_in_its_place() -> None:
    found = report(Model(SOURCE, Gone))
    assert finding(found, "logits", "logits").status is Status.PASSED
    assert found.verdict is Verdict.REFUTED
    assert finding(found, "weights.accounted").status is Status.FAILED


class TwoTables(Model):
    """The vocabulary in two tables, as ranks keep it."""

    def __init__(self, checkpoint: Checkpoint, block: type[nn.Module]) -> None:
        super().__init__(checkpoint, block)
        rows = self.wte.weight.detach()
        self.tables = nn.ParameterList(nn.Parameter(part.clone()) for part in rows.split(57))
        del self.wte, self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        table = torch.cat(list(self.tables))
        x = table[ids] + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x) @ table.T


def test_a_vocabulary_in_two_tables() -> None:
    found = report(TwoTables(SOURCE, SplitBlock))
    assert found.error is None
    assert found.verdict is Verdict.VERIFIED
    assert finding(found, "weights.values", "logits").status is Status.NOT_EXAMINED
