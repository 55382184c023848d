"""Decoders of the families, written from scratch as one writes a port, of which nothing is said.

Each is verified at every site that it shows. A mistake is a change to the text of its file, and is
refuted at the first site that is wrong by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from families import in_memory, written
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TESTS, batch, failed, failures, finding, judged, statuses

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.matching.assembly import with_assemblies
from gpt_verify.matching.match import match
from gpt_verify.matching.order import confirmed
from gpt_verify.matching.pieced import pieced
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.reference import tensor_table
from gpt_verify.sites import sites

#: Family → the file and the function in it.
PORTS = {
    "llama": "llama_port.py:llama",
    "qwen3": "qwen3_port.py:qwen3",
    "gemma2": "gemma2_port.py:gemma2",
}
#: What lies between two sites that are seen, and is judged with the second of them.
UNSEEN = {
    "llama": set(),
    # A fused kernel.
    "qwen3": {"attn.scores", "attn.pattern"},
    "gemma2": set(),
}
#: Other ways to keep several matrices as one: the function in ``fused_ports`` → its family.
FUSED = {
    "in_turns": "qwen3",
    "by_group": "qwen3",
    "tiled": "qwen3",
    "in_by_out": "qwen3",
    "by_slices": "qwen3",
    "in_pairs": "qwen3",
    "other_neurons": "qwen3",
    "stacked": "qwen3",
    "with_bias": "qwen2",
    "with_bias_afterwards": "qwen2",
    "keys_and_values": "qwen2",
    "biases_apart": "qwen2",
}


@dataclass(frozen=True)
class Mistake:
    """A change to a port's text, and the site at which it is wrong by itself."""

    family: str
    old: str
    new: str
    site: str
    law: str = "activations.local"


MISTAKES = {
    "theta lost": Mistake("llama", 'keys["rope_theta"], keys', "10000.0, keys", "h.0.attn.q_rot"),
    "scaling ignored": Mistake(
        "llama",
        "torch.outer(torch.arange(length).float(), stretched(frequencies, scaling))",
        "torch.outer(torch.arange(length).float(), frequencies)",
        "h.0.attn.q_rot",
    ),
    "halves read as pairs": Mistake(
        "llama",
        "return weight.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width)",
        "return weight",
        "h.0.attn.q_rot",
    ),
    "keys not in the order of queries": Mistake(
        "llama",
        'self.wk = linear(neighbours(stored("k"), self.shared))',
        'self.wk = linear(stored("k"))',
        "h.0.attn.k_rot",
    ),
    "pairs over the heads' border": Mistake(
        "llama",
        'self.wq = linear(neighbours(stored("q"), self.heads))',
        'self.wq = linear(neighbours(stored("q"), 1))',
        "h.0.attn.q",
        "weights.values",
    ),
    "heads tiled": Mistake(
        "llama",
        "x[:, :, :, None].expand(-1, -1, -1, times, -1).flatten(2, 3)",
        "x.repeat(1, 1, times, 1)",
        "h.0.attn.scores",
    ),
    "gate and up exchanged": Mistake(
        "llama",
        "F.silu(self.w1(x)) * self.w3(x)",
        "F.silu(self.w3(x)) * self.w1(x)",
        "h.0.mlp.act",
    ),
    "epsilon": Mistake("llama", "keepdim=True) + self.epsilon", "keepdim=True) + 1e-6", "h.0.ln_1"),
    "no scale": Mistake("llama", " / math.sqrt(q.shape[-1])", "", "h.0.attn.scores"),
    "fused gate and up exchanged": Mistake(
        "qwen3", "gate, up = self.gate_up", "up, gate = self.gate_up", "h.0.mlp.act"
    ),
    "queries are not normed": Mistake(
        "qwen3", "rotary(self.norm_q(q))", "rotary(q)", "h.0.attn.mix"
    ),
    "normed after they are turned": Mistake(
        "qwen3", "rotary(self.norm_k(k))", "self.norm_k(rotary(k))", "h.0.attn.mix"
    ),
    "keys of another layer": Mistake(
        "qwen3",
        "return linear(torch.cat(weights))",
        "if len(parts) == 3:\n"
        '            weights[1] = tensor(self.checkpoint, "h0/attn/k/w").t()\n'
        "        return linear(torch.cat(weights))",
        "h.1.attn.k",
        "weights.values",
    ),
    "a fused matrix is rounded": Mistake(
        "qwen3",
        "return linear(torch.cat(weights))",
        'low = self.at == "h1" and "mlp/up" in parts\n'
        "        return linear(torch.cat(weights).to(torch.bfloat16 if low else None).float())",
        "h.1.mlp.gate",
        "weights.values",
    ),
    "cap missing": Mistake("gemma2", "capped(match, self.cap)", "match", "h.0.attn.capped"),
    "final cap missing": Mistake(
        "gemma2",
        "return capped(self.last(x) @ self.words.T, self.cap)",
        "return self.last(x) @ self.words.T",
        "logits",
    ),
    "window too long": Mistake(
        "gemma2", "behind >= self.reach", "behind > self.reach", "h.0.attn.pattern"
    ),
    "windows of other layers": Mistake(
        "gemma2", "layer % 2 == 0", "layer % 2 == 1", "h.0.attn.pattern"
    ),
    "g for 1 + g": Mistake(
        "gemma2", "(1 + self.offset.float())", "self.offset.float()", "h.0.ln_1"
    ),
    "exact GELU": Mistake(
        "gemma2",
        "return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))",
        "h.0.mlp.act",
    ),
    "scale of the head": Mistake(
        "gemma2", 'said["query_pre_attn_scalar"] ** -0.5', "self.size**-0.5", "h.0.attn.capped"
    ),
    "no norm of what attention made": Mistake(
        "gemma2", "x + self.b(self.look(self.a(x)))", "x + self.look(self.a(x))", "h.0.ln_2"
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    folder = tmp_path_factory.mktemp("families")
    # The file that has others of the family as well is written for models without windows.
    more = {"qwen2": {"use_sliding_window": False}}
    return cache(lambda name: open_checkpoint(written(folder / name, name, **more.get(name, {}))))


Sources = Callable[[str], Checkpoint]


@pytest.mark.parametrize("family", PORTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verified(sources: Sources, family: str, dtype: str) -> None:
    source = sources(family)
    config = source.config
    inputs = [seeded(config, 1, 0), batch(config, 2, 11), seeded(config, config.n_ctx, 0)]
    report = judged(f"{TESTS / PORTS[family]}", source, inputs, dtype)
    assert report.verdict is Verdict.VERIFIED, (report.error, failures(report))
    assert set(statuses(report, "weights.values").values()) == {Status.PASSED}
    expected = {s.name for s in sites(config).values() if s.kind not in UNSEEN[family]}
    for law in ("activations.local", "architecture"):
        found = statuses(report, law).items()
        why = {f.message for f in report.findings if f.id == law and f.status is not Status.PASSED}
        assert {site for site, status in found if status is Status.PASSED} == expected, (law, why)


def report(mistake: Mistake, source: Checkpoint, folder: Path) -> PortReport:
    file, _, factory = PORTS[mistake.family].partition(":")
    text = (TESTS / file).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1
    altered = folder / f"altered_{file}"
    altered.write_text(text.replace(mistake.old, mistake.new), encoding="utf-8")
    inputs = [seeded(source.config, 1, 0), batch(source.config, 2, 11)]
    return judge(f"{altered}:{factory}", source, inputs, None, "cpu", Silent(), laws=())


@pytest.mark.parametrize("name", MISTAKES)
def test_refuted_at_its_site(sources: Sources, name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    found = report(mistake, sources(mistake.family), tmp_path)
    assert found.error is None
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == mistake.site
    assert finding(found, mistake.law, mistake.site).status is Status.FAILED
    if mistake.law != "weights.values":  # then every weight is what it was
        assert failed(found, "weights.values") == set()


@dataclass(frozen=True)
class Variation:
    """Changes to a port's text that change nothing, and what is not seen of it then."""

    family: str
    changes: dict[str, str]
    unseen: frozenset[str] = frozenset()


_RMS = "F.rms_norm(x, (len(self.gain),), self.gain, self.epsilon)"
_ROOT = "(x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()"
_ROOT_OF_D, _FOURTH = "math.sqrt(self.words.shape[1])", "self.words.shape[1] ** 0.25"
_TURNED = frozenset({"attn.q_rot", "attn.k_rot"})
VARIATIONS = {
    # Scores depend on distances alone; position 0 is turned, so that nothing tells the order.
    "positions from one": Variation(
        "llama", {"torch.arange(length).float()": "torch.arange(1, length + 1).float()"}, _TURNED
    ),
    "channels in halves afterwards": Variation(
        "llama",
        {
            "torch.view_as_real(pairs * by[:, None]).flatten(3)": "torch.view_as_real("
            "pairs * by[:, None]).transpose(3, 4).flatten(3)"
        },
    ),
    "scaled after the turn": Variation(
        "llama",
        {
            " / math.sqrt(q.shape[-1])": "",
            "self.heads, -1), by)": "self.heads, -1), by) / math.sqrt(len(self.wq.weight) // 4)",
        },
    ),
    "scaled before the turn": Variation(
        "llama",
        {
            " / math.sqrt(q.shape[-1])": "",
            "self.heads, -1), by)": "self.heads, -1) / math.sqrt(len(self.wq.weight) // 4), by)",
        },
        frozenset({"attn.q_rot"}),
    ),
    "gain before the root": Variation("qwen3", {_RMS: f"x * self.gain * {_ROOT}"}),
    "gain and root as one": Variation("qwen3", {_RMS: f"x * (self.gain * {_ROOT})"}),
    # The norm's own factor, or one of the scores: nothing tells.
    "a factor after the gain": Variation(
        "qwen3",
        {_RMS: f"x / 4 * {_ROOT} * self.gain * 4"},
        _TURNED | {"attn.q_norm", "attn.k_norm"},
    ),
    "queries and keys are turned at once": Variation(
        "qwen3",
        {
            "q, k = rotary(self.norm_q(q)), rotary(self.norm_k(k))": (
                "q, k = torch.cat([self.norm_q(q), self.norm_k(k)], 1), self.sizes[:2]\n"
                "        q, k = rotary(q).split(k, 1)"
            )
        },
        _TURNED,
    ),
    "embedding scaled in two steps": Variation("gemma2", {_ROOT_OF_D: f"{_FOURTH} * {_FOURTH}"}),
    "embedding scaled by a vector": Variation(
        "gemma2", {_ROOT_OF_D: f"torch.full(self.words.shape[1:], {_ROOT_OF_D})"}
    ),
    "embedding looked at before it is scaled": Variation(
        "gemma2",
        {
            f"x = self.words[tokens] * {_ROOT_OF_D}": (
                f"x = self.words[tokens]\n        x = torch.ones_like(x) * x * {_ROOT_OF_D}"
            )
        },
        frozenset({"embed"}),
    ),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_what_changes_nothing_is_not_refuted(sources: Sources, name: str, tmp_path: Path) -> None:
    variation = VARIATIONS[name]
    file, _, factory = PORTS[variation.family].partition(":")
    text, source = (TESTS / file).read_text(encoding="utf-8"), sources(variation.family)
    for old, new in variation.changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    altered = tmp_path / f"altered_{file}"
    altered.write_text(text, encoding="utf-8")
    inputs = [seeded(source.config, 1, 0), batch(source.config, 2, 11)]
    found = judge(f"{altered}:{factory}", source, inputs, None, "cpu", Silent(), laws=())
    assert found.verdict is Verdict.VERIFIED, (found.error, failures(found))
    local = statuses(found, "activations.local")
    seen = {site for site, status in local.items() if status is Status.PASSED}
    hidden = variation.unseen | UNSEEN[variation.family]
    assert seen == {s.name for s in sites(source.config).values() if s.kind not in hidden}


def test_what_is_found_nowhere_is_not_examined(sources: Sources, tmp_path: Path) -> None:
    """A fused matrix that is wrong in every layer has no fellow: the logits are judged alone."""
    everywhere = Mistake(
        "qwen3",
        "return linear(torch.cat(weights))",
        "return linear(torch.cat(weights).bfloat16().float())",
        "logits",
    )
    found = report(everywhere, sources("qwen3"), tmp_path)
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == "logits"
    for law in ("weights.values", "architecture", "activations.local"):
        assert set(statuses(found, law).values()) == {Status.NOT_EXAMINED}, law


def test_a_derivative_that_is_wrong(sources: Sources, tmp_path: Path) -> None:
    """The mistakes that are tried know how GPT-2 is wired, and are asked of no other family."""
    source = sources("llama")
    text = (TESTS / "llama_port.py").read_text(encoding="utf-8")
    old = "return self.w2(F.silu(self.w1(x)) * self.w3(x))"
    assert text.count(old) == 1
    altered = tmp_path / "altered_llama_port.py"
    altered.write_text(text.replace(old, old.replace("self.w3(x)", "self.w3(x).detach()")), "utf-8")
    found = judge(
        f"{altered}:llama",
        source,
        [batch(source.config, 2, 11)],
        None,
        "cpu",
        Silent(),
        laws=("gradient",),
    )
    assert found.verdict is Verdict.REFUTED
    assert failed(found, "gradient") >= {"h.0.mlp.up", "h.1.mlp.up", "h.2.mlp.up"}
    assert "ln_f" not in failed(found, "gradient")


@pytest.mark.parametrize("style", FUSED)
def test_other_ways_to_fuse(sources: Sources, style: str) -> None:
    source = sources(FUSED[style])
    inputs = [seeded(source.config, 1, 0), batch(source.config, 2, 11)]
    spec = f"{TESTS / 'fused_ports.py'}:{style}"
    found = judge(spec, source, inputs, None, "cpu", Silent(), laws=())
    assert found.verdict is Verdict.VERIFIED, (found.error, failures(found))
    assert set(statuses(found, "weights.values").values()) == {Status.PASSED}
    local = statuses(found, "activations.local")
    for kind in ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"):
        # A product without its bias is no site, and where that is added is not followed.
        hidden = style == "biases_apart" and kind.startswith("attn")
        assert local[f"h.1.{kind}"] is (Status.NOT_EXAMINED if hidden else Status.PASSED)


# Orders of the channels of a head


@st.composite
def orders(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, bool]:
    """Of the channels of q and of k, [heads, K]: alike in heads that meet, or not in one of them.

    The model has H = 4, G = 2, K = 10.
    """
    k = np.array([draw(st.permutations(range(10))) for _ in range(2)])
    q = k.repeat(2, axis=0)
    alike = draw(st.booleans())
    if not alike:
        head, step = draw(st.integers(0, 3)), draw(st.integers(1, 9))
        q[head] = np.roll(q[head], step)
    return q, k, alike


@settings(max_examples=25, deadline=None)
@given(orders(), st.booleans())
def test_any_order_that_queries_and_keys_share(
    made: tuple[np.ndarray, np.ndarray, bool], transposed: bool
) -> None:
    *given_orders, alike = made
    source = in_memory("llama")
    values = dict(source.tensors)
    for part, order in zip("qk", given_orders, strict=True):
        channels = (order + 10 * np.arange(len(order))[:, None]).reshape(-1)
        values[f"h1/attn/{part}/w"] = values[f"h1/attn/{part}/w"][..., channels]
    held = []
    for i, name in enumerate(tensor_table(source.config)):
        value = np.squeeze(values[name])
        value = value.T if transposed else value
        held.append(Parameter(f"p.{i}", value.shape, lambda value=value: value, i))
    weights = DeclaredWeights(source.tensors, FLOAT32)
    pieces = pieced(held, match(held, source.config, weights), source.config, weights)
    found = confirmed(pieces, source.config)
    matching = match(list(with_assemblies(held, found)), source.config, weights)
    assert matching.exact == alike
