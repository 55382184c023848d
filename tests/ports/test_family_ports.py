"""transformers' models of the families: verified as they are, refuted where one key differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import SIZES, Sources, written
from models import batch, failed, failures, judged, statuses

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import Input, seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.sites import sites

#: Families whose experts are stacked: every tensor is found, and what each expert computes by
#: itself is not seen.
STACKED = {"mixtral", "qwen3_moe", "gpt_oss"}
#: Bloom adds the slopes in the product that makes the scores, in a form of its own.
UNSEEN = {"sloped", "scores"}
#: Laws whose limits hang on the precision; all of them are held in float32.
IN_HALF = {
    *("determinism", "causality.bits", "causality.pattern", "loss.value", "batch", "cache", "lens"),
    *("cache.padded", "positions.padding", "gradient", "training.mode", "history"),
    *("symmetry.neurons", "symmetry.rotate", "symmetry.scale"),
}
INSIDE = [name for name in FAMILIES if name not in STACKED]


def inputs(source: Checkpoint) -> list[Input]:
    config = source.config
    return [seeded(config, 1, 0), batch(config, 2, 11), seeded(config, config.n_ctx, 0)]


@pytest.fixture(scope="module")
def reports(sources: Sources) -> Callable[[str, str, str], PortReport]:
    """Of a family, an attention and a precision; each is made once."""

    @cache
    def report(name: str, attention: str, dtype: str) -> PortReport:
        source = sources(name)
        laws = None if dtype == "float32" else IN_HALF
        return judged(f"huggingface-{attention}", source, inputs(source), dtype, laws)

    return report


Reports = Callable[[str, str, str], PortReport]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verified_under_the_laws(reports: Reports, name: str, dtype: str) -> None:
    """In bfloat16 the attention that models come with; docs/families.md has the other, too."""
    every = FAMILIES[name].attention
    for attention in every if dtype == "float32" else every[-1:]:
        report = reports(name, attention, dtype)
        assert report.verdict is Verdict.VERIFIED, (report.error, failures(report))
        for law in ("logits", "determinism", "causality.bits", "loss.value", "batch", "cache"):
            assert Status.PASSED in statuses(report, law).values(), law
        held = ["symmetry.neurons", "symmetry.rotate", "symmetry.scale"]
        held += ["lens"] if name != "bloom" else []
        held += ["causality.pattern"] if attention == "eager" else []
        for law in held:
            assert set(statuses(report, law).values()) == {Status.PASSED}, law


@pytest.mark.parametrize("name", INSIDE)
def test_the_inside_is_seen(sources: Sources, reports: Reports, name: str) -> None:
    """Every site, in float64 and in float32; of each product with a matrix the derivative."""
    report = reports(name, "eager", "float32")
    every = {site for site in sites(sources(name).config) if site.rpartition(".")[2] not in UNSEEN}
    for law in ("architecture", "activations.local"):
        seen = {site for site, status in statuses(report, law).items() if status is Status.PASSED}
        assert every <= seen, (law, sorted(every - seen)[:5])
    products = {s.name for s in sites(sources(name).config).values() if s.operation == "linear"}
    for law in ("architecture", "activations.local", "weights.values", "gradient"):
        seen = {site for site, status in statuses(report, law).items() if status is Status.PASSED}
        assert products <= seen, (law, sorted(products - seen)[:5])


@pytest.mark.parametrize("name", sorted(STACKED))
def test_stacked_experts_are_found(reports: Reports, name: str) -> None:
    report = reports(name, "eager", "float32")
    assert report.verdict is Verdict.VERIFIED
    assert set(statuses(report, "weights.values").values()) == {Status.PASSED}
    local = statuses(report, "activations.local")
    assert local["h.0.attn.out"] is Status.PASSED
    for kind in ("mlp.routing", "mlp.out", "resid_post", "attn.pattern"):
        assert local[f"h.1.{kind}"] is Status.PASSED, kind


def changed(source: Checkpoint, **keys: Any) -> Any:
    """transformers' model with other keys than the checkpoint's."""
    config = transformers.AutoConfig.from_pretrained(source.path)
    for key, value in keys.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    return transformers.AutoModelForCausalLM.from_pretrained(
        source.path, config=config, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.fixture
def quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
#: Keys that are silently lost or mistaken, and where that first shows.
MISTAKES = [
    ("llama", {"rope_parameters": ROPE}, "h.0.attn.q_rot"),
    ("llama", {"rms_norm_eps": 1e-6}, "h.0.ln_1"),
    ("llama", {"hidden_act": "gelu"}, "h.0.mlp.act"),
    ("mistral", {"sliding_window": None}, "h.0.attn.pattern"),
    ("mistral", {"sliding_window": 6}, "h.0.attn.pattern"),
    ("gemma", {"hidden_act": "gelu"}, "h.0.mlp.act"),
    ("gemma2", {"final_logit_softcapping": None}, "logits"),
    ("gemma2", {"attn_logit_softcapping": None}, "h.0.attn.capped"),
    ("gemma2", {"query_pre_attn_scalar": 256}, "h.0.attn.capped"),
    ("smollm3", {"no_rope_layers": [1, 1, 1]}, "h.1.attn.scores"),
    ("phi", {"layer_norm_eps": 1e-6}, "h.0.ln_1"),
    ("opt", {"activation_function": "gelu"}, "h.0.mlp.act"),
    ("gpt_neo", {"window_size": 6}, "h.1.attn.pattern"),
    ("gpt_neox", {"use_parallel_residual": False}, "h.0.ln_2"),
    ("gpt_neox", {"hidden_act": "gelu_new"}, "h.0.mlp.act"),
    # The weights of another number of experts are no routing of this model.
    ("mixtral", {"num_experts_per_tok": 3}, "h.0.mlp.out"),
    ("qwen3_moe", {"norm_topk_prob": True}, "h.0.mlp.routing"),
    ("gpt_oss", {"sliding_window": 6}, "h.0.attn.pattern"),
]


@pytest.mark.parametrize(
    ("name", "keys", "site"),
    MISTAKES,
    ids=[f"{name}-{next(iter(keys))}-{i}" for i, (name, keys, _) in enumerate(MISTAKES)],
)
def test_a_key_that_differs_is_refuted_where_it_acts(
    sources: Sources, quiet: None, name: str, keys: dict[str, Any], site: str
) -> None:
    from gpt_verify.ports.torch.module import TorchModule

    source = sources(name)

    def build() -> TorchModule:
        return TorchModule(
            changed(source, **keys),
            source,
            "changed",
            call=lambda module, ids: module(ids, use_cache=False),
        )

    report = judge("changed", source, inputs(source), None, "cpu", Silent(), build=build, laws=())
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == site, (report.first_divergence, failed(report, "logits"))


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt_neox", "gpt_oss"])
def test_another_family_is_no_port_of_it(sources: Sources, name: str, tmp_path: Path) -> None:
    """A correct model with other weights."""
    source = sources(name)
    other = written(tmp_path, name)
    from safetensors.numpy import load_file, save_file

    stored = load_file(other / "model.safetensors")
    key = next(k for k in stored if "norm" in k)
    stored[key] = stored[key] * 1.001
    save_file(stored, other / "model.safetensors", {"format": "pt"})
    report = judged(f"huggingface-eager={other}", source, inputs(source))
    assert report.verdict is Verdict.REFUTED
    assert SIZES[0] == source.config.n_vocab
