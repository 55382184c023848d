"""A judge that cannot fail proves nothing: each known mistake is refuted, at the site where it is.

The tables below say where each alteration of ``altered_ports`` is wrong by itself. The float64
copy must fail there and nowhere else; the declared precision must fail there or, where the fault
is below its rounding, not at all, and nowhere else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection

import altered_ports
import pytest
from command import command
from models import (
    CONFIG,
    INPUTS,
    TESTS,
    checkpoint,
    failed,
    failed_laws,
    failures,
    finding,
    judged,
)

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.sites import sites

LAYERS = range(CONFIG.n_layer)
ACTIVATIONS = [f"h.{i}.mlp.act" for i in LAYERS]
NORMS = [*(f"h.{i}.ln_{j}" for i in LAYERS for j in (1, 2)), "ln_f"]

#: Alteration → sites that are wrong by themselves, for the eager and for the fused attention.
#: The first is where the report must point.
BOTH: dict[str, list[str]] = {
    "exact_gelu": ACTIVATIONS,
    "gelu_0447": ACTIVATIONS,
    "epsilon_1e6": NORMS,
    "epsilon_10001e9": NORMS,
    "scaled_matrix": ["h.1.attn.out"],
    "head_of_its_own": ["logits"],
    "positions_shifted": ["embed"],
    "positions_shifted_clipped": ["embed"],
    "query_key_exchanged": ["h.1.attn.qkv"],
    "attention_output_scaled": ["h.1.resid_mid"],
    "head_silenced": ["h.2.attn.mix"],
}
EAGER: dict[str, list[str]] = {
    "mask_too_generous": [f"h.{i}.attn.pattern" for i in LAYERS],
    "unscaled_scores": ["h.1.attn.scores"],
    "scaled_by_width": [f"h.{i}.attn.scores" for i in LAYERS],
    "scaled_by_layer": ["h.1.attn.scores", "h.2.attn.scores"],
    "softmax_over_targets": ["h.1.attn.pattern"],
    "heads_interleaved": ["h.1.attn.scores", "h.1.attn.mix"],
    "gelu_short_scale": ["h.2.mlp.act"],
    "relu": ["h.1.mlp.act"],
    "unbiased_variance": ["h.1.ln_2"],
    "rms_norm": ["h.2.ln_1"],
    "no_final_norm": ["ln_f"],
    "half_precision_tensor": ["h.1.mlp.pre"],
    "one_bit": ["h.2.mlp.out"],
    "matrix_transposed": ["h.0.attn.out"],
    "no_mlp_bias": ["h.2.mlp.pre"],
    "no_projection_bias": ["h.1.mlp.out"],
    "no_attention_residual": ["h.1.resid_mid"],
    "no_mlp_residual": ["h.1.resid_post"],
    "residual_from_norm": ["h.1.resid_mid"],
    # The second branch reads what the first has not been added to.
    "parallel_branches": ["h.1.resid_mid", "h.1.resid_post"],
    # The second pass reads what no site has shown.
    "layer_twice": ["h.2.ln_1", "h.2.resid_mid"],
    "embedding_scaled": ["embed"],
    "soft_cap": ["logits"],
    "temperature": ["logits"],
    "shifted_logits": ["logits"],
    "dropout_left_on": ["h.1.resid_post"],
}
SDPA: dict[str, list[str]] = {
    "mask_too_generous": [f"h.{i}.attn.mix" for i in LAYERS],
    "unscaled_scores": ["h.1.attn.mix"],
}
CASES = [
    *(
        (f"{attention}_{name}", where)
        for name, where in BOTH.items()
        for attention in ("eager", "sdpa")
    ),
    *((f"eager_{name}", where) for name, where in EAGER.items()),
    *((f"sdpa_{name}", where) for name, where in SDPA.items()),
]
#: Too small for float32, and found all the same, because the float64 copy has no rounding to hide
#: under.
BELOW_FLOAT32 = {"epsilon_10001e9", "one_bit"}


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return checkpoint()


def judge_altered(
    factory: str, source: Checkpoint, laws: Collection[str] | None = None
) -> PortReport:
    return judged(f"{TESTS / 'altered_ports.py'}:{factory}", source, laws=laws)


@pytest.mark.parametrize(("factory", "where"), CASES, ids=[name for name, _ in CASES])
def test_refuted_where_it_is_wrong_and_nowhere_else(
    factory: str, where: list[str], source: Checkpoint
) -> None:
    report = judge_altered(factory, source, laws=())  # where it is, its sites alone say
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == where[0]
    assert failed(report, "architecture") == set(where)
    name = factory.partition("_")[2]
    local = failed(report, "activations.local")
    assert local <= set(where)
    assert bool(local) == (name not in BELOW_FLOAT32)
    # Cascaded, nothing is wrong before the first site that is.
    order = list(sites(CONFIG))
    for site in failed(report, "activations.cascaded"):
        assert site is not None
        assert order.index(site) >= order.index(where[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_unaltered_is_verified(attention: str, source: Checkpoint) -> None:
    report = judge_altered(f"{attention}_unaltered", source)
    assert report.verdict is Verdict.VERIFIED
    assert failures(report) == []
    hidden = {
        f.site
        for f in report.findings
        if f.status is Status.NOT_EXAMINED and f.id.startswith(("architecture", "activations"))
    }
    fused = {f"h.{i}.attn.{what}" for i in LAYERS for what in ("scores", "pattern")}
    assert hidden == (fused if attention == "sdpa" else set())


def test_every_alteration_is_judged_here() -> None:
    judged_here = {name.partition("_")[2] for name, _ in CASES}
    elsewhere = {
        "unaltered",
        "head_is_a_copy",
        "swapped_norms",
        "layers_exchanged",
        "gelu_in_bfloat16",
        "nondeterministic",
    }
    assert judged_here | elsewhere == set(altered_ports.ALTERATIONS)
    assert not judged_here & elsewhere


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_head_is_an_equal_copy(attention: str, source: Checkpoint) -> None:
    """Refuted on tying alone, not on its numbers."""
    report = judge_altered(f"{attention}_head_is_a_copy", source)
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == "logits"
    laws = failed_laws(report)
    assert "tying.storage" in laws
    assert all(law.startswith("tying.") for law in laws)
    assert "is not counted" in finding(report, "weights.count").message
    assert (
        "lm_head.weight is a matrix of its own"
        in finding(report, "tying.storage", "logits").message
    )


def test_swapped_norms(source: Checkpoint) -> None:
    """Each gain is there, and read at the wrong end of the block."""
    report = judge_altered("eager_swapped_norms", source)
    assert report.verdict is Verdict.REFUTED
    assert not failed(report, "weights.values")
    places = failed(report, "architecture", "activations.local")
    assert places
    assert all(str(site).startswith("h.1.") for site in places)


def test_exchanged_layers(source: Checkpoint) -> None:
    """Every weight is there; the layer that comes too late is named, and nothing before it."""
    report = judge_altered("eager_layers_exchanged", source)
    assert report.verdict is Verdict.REFUTED
    assert not failed(report, "weights.values")
    assert "h.1.ln_1" in failed(report, "architecture")
    assert finding(report, "architecture", "h.1.ln_1").message == (
        "h.1.ln_1 is computed after layer 2"
    )
    assert not any(str(f.site).startswith(("embed", "h.0.")) for f in failures(report))


def test_one_operation_in_bfloat16(source: Checkpoint) -> None:
    """A float32 port that rounds in the middle: its error shows from there on."""
    report = judge_altered("eager_gelu_in_bfloat16", source)
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == "h.1.mlp.act"
    assert not any(str(f.site).startswith(("embed", "h.0.")) for f in failures(report))


def test_nondeterminism_alone_refutes(source: Checkpoint) -> None:
    report = judge_altered("sdpa_nondeterministic", source)
    assert report.verdict is Verdict.REFUTED
    assert failed_laws(report) == {"determinism"}
    assert "1 of" in finding(report, "determinism").message


def test_dropout_is_not_deterministic(source: Checkpoint) -> None:
    report = judge_altered("sdpa_dropout_left_on", source)
    assert {"determinism", "activations.local", "architecture", "logits"} <= failed_laws(report)


def test_a_port_that_raises_on_some_inputs_is_refuted_and_judged_on_the_others(
    source: Checkpoint,
) -> None:
    report = judge_altered("eager_positions_shifted", source)
    assert (report.verdict, report.error) == (Verdict.REFUTED, None)
    logits = finding(report, "logits", "logits")
    assert logits.status is Status.FAILED
    assert "the port raised IndexError: index out of range" in logits.message
    assert "embeddings-positions-from-1" in report.explained_by


def test_the_message_names_element_and_budget(source: Checkpoint) -> None:
    message = finding(
        judge_altered("eager_exact_gelu", source), "activations.local", "h.0.mlp.act"
    ).message
    assert message.startswith("h.0.mlp.act[")
    assert " should be " in message
    assert " ± " in message


class TestLogitsAlone:
    """The same mistakes in a port that shows nothing else: refuted where floors can tell."""

    @pytest.mark.parametrize(
        "name",
        [
            "exact_gelu",
            "gelu_0447",
            "scaled_matrix",
            "head_of_its_own",
            "mask_too_generous",
            "positions_shifted_clipped",
            "query_key_exchanged",
            "layers_exchanged",
            "soft_cap",
            "gelu_in_bfloat16",
        ],
    )
    def test_refuted(self, name: str, source: Checkpoint) -> None:
        report = judge_altered(f"callable_{name}", source)
        assert report.verdict is Verdict.REFUTED
        assert report.first_divergence == "logits"
        more = {"mask_too_generous": "causality.bits"}
        more |= {"positions_shifted_clipped": "positions.beyond"}
        # Rounded to bfloat16, a difference of the products' last digit grows to one of bfloat16's,
        # in a batch as elsewhere. Whether a row's products differ there is the BLAS's choice.
        follows = {"batch"} if name == "gelu_in_bfloat16" else set()
        assert failed_laws(report) - follows == {"logits", more.get(name, "logits")}
        assert report.logits_floors is not None
        assert report.logits_floors > LIMIT_FLOORS

    def test_correct_is_verified_and_the_rest_is_named(self, source: Checkpoint) -> None:
        report = judge_altered("callable_unaltered", source)
        assert report.verdict is Verdict.VERIFIED
        passed = {f.id for f in report.findings if f.status is Status.PASSED}
        assert {"logits", "logits.faults", "determinism"} <= passed
        assert not passed & {"architecture", "activations.local", "weights.values"}
        hidden = [f for f in report.findings if f.status is Status.NOT_EXAMINED]
        assert all(f.message for f in hidden)

    def test_a_constant_for_each_position_is_told_apart(self, source: Checkpoint) -> None:
        report = judge_altered("callable_shifted_logits", source)
        assert report.verdict is Verdict.VERIFIED
        message = finding(report, "logits", "logits").message
        assert "equal up to a constant for each position" in message


class TestCommand:
    """End to end, as a user runs it."""

    def run(self, tiny: object, factory: str) -> subprocess.CompletedProcess[str]:
        lengths = ("--length", 1, "--length", 9)
        port = f"{TESTS / 'altered_ports.py'}:{factory}"
        return command("run", "--checkpoint", tiny, *lengths, "--port", port, "--json", "-")

    def test_refuted_is_1_and_names_the_site(self, tiny: object) -> None:
        done = self.run(tiny, "sdpa_mask_too_generous")
        assert done.returncode == 1, done.stderr
        report = json.loads(done.stdout)
        assert report["verdict"] == "refuted"
        (port,) = report["ports"]
        assert port["first_divergence"] == "h.0.attn.mix"
        assert port["verdict"] == "refuted"

    def test_verified_is_0(self, tiny: object) -> None:
        done = self.run(tiny, "eager_unaltered")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["verdict"] == "verified"


def test_the_inputs_hold_one_token_two_rows_and_every_position() -> None:
    assert [item.tokens.shape for item in INPUTS] == [(1, 1), (2, 11), (1, CONFIG.n_ctx)]
