"""``gpt-verify power`` counts what is found, and fails where something is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ROOT, command
from families import family, written
from models import CONFIG

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.checkpoint.synthetic import synthesize
from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.faults.fault import InModel, InTransformers
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.laws.table import CHECKS
from gpt_verify.port import Port
from gpt_verify.power import baselines, family_variants, summary
from gpt_verify.power.campaign import Campaign, Plan, chosen, run_campaign
from gpt_verify.power.injection import (
    EVERYWHERE,
    LOGITS,
    ONE_LAYER,
    TENSORFLOW,
    Injection,
    correct_port,
    damaged,
    injections,
    port_with,
    why_not_injected,
)
from gpt_verify.power.outcome import CorrectOutcome, FaultOutcome
from gpt_verify.power.trial import Bench
from gpt_verify.power.variants import VARIANTS, unavailable, variants_of
from gpt_verify.process.state import changes, snapshot
from gpt_verify.report import power as report

#: What a name of a correct variant of a family ends in.
FORMATS = ("", ", bfloat16", ", float16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("power") / "model"
    synthesize(directory, CONFIG, 0)
    return directory


def campaign(model: Path, **plan: Any) -> Campaign:
    return run_campaign(Plan(model, jobs=1, **plan))


@pytest.fixture(scope="module")
def done(model: Path) -> tuple[int, dict[str, Any], str]:
    out = model.parent
    words = ["power", "--checkpoint", str(model), "--jobs", "1"]
    words += ["--fault", "gelu-erf", "--fault", "gelu-cubic-0.0447"]
    status = main([*words, "--json", f"{out}/p.json", "--markdown", f"{out}/p.md"])
    page = (out / "p.md").read_text()
    return status, json.loads((out / "p.json").read_text()), page


class TestCommand:
    """Two faults, one of which the usual tolerance lets pass."""

    def test_everything_holds(self, done: tuple[int, dict[str, Any], str]) -> None:
        status, found, _ = done
        numbers = found["summary"]
        assert status == 0
        assert numbers["holds"]
        assert numbers["faults"] == numbers["detected"] == numbers["explained"] == 2
        assert numbers["with_a_site"] == numbers["localised"] == 2
        assert numbers["wrong_names"] == numbers["wrong_name_trials"] == 0
        assert numbers["logits_only"] == {
            "visible": 2,
            "detected": 2,
            "explained": 2,
            "wrong_names": 0,
            "below_the_floor": 0,
            "below_the_floor_explained": 0,
        }
        # No correct variant was judged, and nothing is said of false alarms.
        assert (numbers["correct_variants"], numbers["correct_runs"]) == (0, 0)
        assert not any("false" in s["statement"] for s in found["statements"])

    def test_a_row_for_each_trial(self, done: tuple[int, dict[str, Any], str]) -> None:
        rows = done[1]["faults"]
        forms = [EVERYWHERE, ONE_LAYER, LOGITS]
        assert [(row["fault"], row["form"]) for row in rows] == [
            (name, form) for name in ("gelu-erf", "gelu-cubic-0.0447") for form in forms
        ]
        one = rows[1]
        assert one["layers"] == [CONFIG.n_layer // 2]
        assert one["first_divergence"] == f"h.{CONFIG.n_layer // 2}.mlp.act"
        assert one["explained_by"] == ["gelu-erf"]
        assert rows[2]["floors"] > 1

    def test_the_usual_tolerance(self, done: tuple[int, dict[str, Any], str]) -> None:
        """Cut to 0.0447 the constant moves no logit of a small model by 1e-3."""
        everywhere = [row for row in done[1]["faults"] if row["form"] == EVERYWHERE]
        caught = {row["fault"]: row["peers"]["allclose 1e-3"] for row in everywhere}
        assert caught["gelu-cubic-0.0447"] is False
        assert not any(row["peers"]["signed mean"] for row in everywhere)

    def test_every_key_is_documented(self, done: tuple[int, dict[str, Any], str]) -> None:
        found, page = done[1], (ROOT / "docs" / "report.md").read_text()
        page = page[page.index("## Power") :]
        keys = [*found, *found["summary"], *found["summary"]["logits_only"], *found["faults"][0]]
        assert [key for key in keys if f"`{key}`" not in page] == []

    def test_the_page(self, done: tuple[int, dict[str, Any], str]) -> None:
        page = done[2]
        assert "| gelu | 2 | all 2 | all 2 | all 2 | 0 |" in page
        assert "- faults detected: 2 of 2 (must: all)" in page
        assert f"| `gelu-erf` | {CATALOGUE['gelu-erf'].summary} |" in page


def test_in_several_processes(model: Path) -> None:
    faults = ["gelu-relu", "gelu-silu"]
    words = ["power", "--quick", "--jobs", "2", "--json", "-"]
    words += [word for fault in faults for word in ("--fault", fault)]
    done = command(*words, "--checkpoint", model)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["fault"] for row in found["faults"]] == faults
    assert found["summary"]["detected"] == 2
    assert "not in a quick run" in found["left_out"]["one layer form of faults"]
    assert "quick: a subset" in done.stderr


def test_a_quick_run_tries_some_of_each_family(model: Path) -> None:
    tried = [CATALOGUE[name] for name in chosen(Plan(model, quick=True), CONFIG)]
    able = faults_of(CONFIG)
    families = {fault.family for fault in able.values()}
    assert {fault.family for fault in tried} == families
    assert len(able) / 3 <= len(tried) < len(able) / 3 + len(families)
    assert chosen(Plan(model), CONFIG) == list(able)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--fault", "gelu"], "there is no such fault"),
        (["--family", "gelu-erf"], "not one of"),
        (["--checkpoint", "/nowhere"], "no such directory"),
    ],
)
def test_what_cannot_be_tried(
    capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert main(["power", *words]) == 2
    assert why in capsys.readouterr().err


class TestItCanFail:
    """Each number, where what it counts goes wrong."""

    def with_fault(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
        made = replace(CATALOGUE["gelu-relu"], name="gelu-made-up", **changes)
        monkeypatch.setitem(CATALOGUE, made.name, made)
        return made.name

    def short(self, model: Path, name: str) -> list[str]:
        found = campaign(model, faults=(name,), quick=True)
        assert not summary.holds(found)
        assert report.misses(found)
        return [s.description for s in summary.statements(found) if not s.holds]

    def test_a_fault_that_is_not_there(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = self.with_fault(monkeypatch, inject=InModel(lambda model, layers: None))
        assert self.short(model, name) == [
            "faults detected",
            "faults localised",
            "faults explained",
        ]

    def test_a_fault_that_is_elsewhere(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Named as what it is, which is not what it is called."""
        name = self.with_fault(monkeypatch, inject=CATALOGUE["norm-eps-1e-6"].inject)
        short = self.short(model, name)
        assert "faults detected" not in short
        assert {"faults localised", "faults explained", "trials with a wrong name"} <= set(short)

    def test_what_changes_nothing_and_does(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = self.with_fault(monkeypatch, law=None)
        assert "what changes nothing, refuted" in self.short(model, name)

    def test_a_false_alarm(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variant that is not correct stands for one that is refuted."""

        def wrong(checkpoint: Checkpoint) -> Port:
            injection = Injection("gelu-erf", EVERYWHERE, (0,))
            return port_with(CATALOGUE["gelu-erf"], injection, checkpoint)

        for name in list(VARIANTS):
            monkeypatch.delitem(VARIANTS, name)
        monkeypatch.setitem(VARIANTS, "wrong", wrong)
        monkeypatch.setitem(VARIANTS, "right", correct_port)
        found = campaign(model, correct=True, seeds=1)
        assert [(o.variant, o.false_alarm) for o in found.correct] == [
            ("wrong", True),
            ("right", False),
        ]
        assert summary.summary(found)["false_alarms"] == 1
        assert not summary.holds(found)
        assert "wrong, seed 0: false alarm" in report.terminal(found)

    def test_nothing_tried(self, model: Path) -> None:
        found = Campaign(Plan(model), CONFIG, (), (), {}, 0.0)
        assert not summary.holds(found)
        assert report.verdict(found) == "nothing was tried"


OUTCOME = FaultOutcome(
    Injection("gelu-erf", EVERYWHERE, (0, 1)),
    "gelu",
    "activations",
    "short",
    "refuted",
    True,
    ("h.0.mlp.act",),
    "h.0.mlp.act",
    ("gelu-erf",),
    (),
    True,
    None,
    {},
    "it",
    0.1,
)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"verdict": "verified", "message": ""}, "not detected (verified) "),
        ({"explained_by": ("gelu-sigmoid",)}, "named gelu-sigmoid"),
        ({"first_divergence": "logits"}, "localised at logits, not h.0.mlp.act"),
        ({"explained_by": ()}, "unexplained"),
        (
            {"explained_by": ("gelu-sigmoid",), "instead": ("gelu-erf",)},
            "not told apart from gelu-sigmoid",
        ),
        (
            {"explained_by": ("gelu-erf", "gelu-sigmoid"), "same": ("gelu-sigmoid",)},
            "explained, and gelu-sigmoid as well",
        ),
        ({"unlike": False}, "changes nothing, and is refuted: it"),
        ({"unlike": False, "verdict": "verified"}, None),
    ],
    ids=str,
)
def test_what_fell_short_is_said(model: Path, change: dict[str, Any], line: str | None) -> None:
    """Law is None where a fault changes nothing anywhere."""
    outcome = replace(OUTCOME, **change)
    if change.get("unlike") is False:
        outcome = replace(outcome, law=None)
    found = Campaign(Plan(model), CONFIG, (outcome,), (), {}, 0.0)
    lines = [] if line is None else [f"gelu-erf, {EVERYWHERE}: {line}".rstrip()]
    assert [said.rstrip() for said in report.misses(found)] == lines
    page = report.markdown(found)
    assert ("## What fell short" in page) == bool(lines)
    assert all(said in page for said in lines)


def test_the_page_says_what_is_not_counted_and_lists_the_variants(model: Path) -> None:
    unseen = replace(OUTCOME, injection=Injection("gelu-erf", LOGITS, (0,)), unlike=False)
    silent = replace(OUTCOME, unlike=False, verdict="verified", inputs="default")
    correct = [
        CorrectOutcome("right", 0, "verified", (), ()),
        CorrectOutcome("right", 1, "refuted", ("logits",), ("gelu-erf",)),
    ]
    made = (unseen, replace(silent, injection=Injection("gelu-sigmoid", EVERYWHERE, (0,))))
    page = report.markdown(Campaign(Plan(model), CONFIG, made, tuple(correct), {"x": "y"}, 0.0))
    for line in (
        "- not run: x: y",
        "- without effect on this checkpoint: gelu-sigmoid",
        "- not to be seen in logits: gelu-erf",
        "- tried on the default inputs as well: gelu-sigmoid",
        "- right, seed 1: false alarm: logits",
        "| right | 2 | 1 | 0 |",
    ):
        assert line in page, line


@pytest.mark.parametrize(
    "name", ["sums in another order", "residual in place", "head by head", "padded on the left"]
)
def test_a_correct_variant(model: Path, name: str) -> None:
    """The first two were refuted, before a trace knew sums of parts and copies of a stream."""
    outcome = Bench(open_checkpoint(model), 0).correct(name, 0)
    assert not outcome.false_alarm, outcome.failures


@pytest.mark.parametrize("name", [n for n, f in CATALOGUE.items() if f.law == "determinism.state"])
def test_a_fault_that_changes_the_process_is_not_the_next_ones(model: Path, name: str) -> None:
    """Found and named twice, and a correct port after it is refuted by no law of determinism."""
    bench, before = Bench(open_checkpoint(model), 0), snapshot()
    injection = Injection(name, EVERYWHERE, (0, 1, 2))
    for _ in range(2):
        assert bench.fault(injection).explained_by == (name,)
    laws = {law.id for law in CHECKS if law.id.startswith("determinism")}
    outcome = bench.correct("eager", 0, laws)
    assert not outcome.false_alarm, outcome.failures
    assert changes(before, snapshot()) == []


def test_forms() -> None:
    found = {injection.form for injection in injections(CATALOGUE["gelu-erf"], CONFIG)}
    assert found == {EVERYWHERE, ONE_LAYER, LOGITS}
    found = {injection.form for injection in injections(CATALOGUE["weights-bfloat16"], CONFIG)}
    assert TENSORFLOW in found
    assert injections(replace(CATALOGUE["gelu-erf"], inject=None), CONFIG) == []


class TestTokenizers:
    """Faults that are injected where there is a vocabulary alone."""

    #: No merge of the default vocabulary goes across digits; and one that shows there.
    BLIND, SHOWS = "tokenizer-digits-in-threes", "tokenizer-lower-case"

    def test_found_and_named_where_they_show(self) -> None:
        found = campaign(default_checkpoint(), faults=(self.BLIND, self.SHOWS), quick=True)
        assert summary.summary(found)["without_effect"] == [self.BLIND]
        assert [o.injection.fault for o in found.injected if o.explained] == [self.SHOWS]
        assert summary.holds(found)
        assert not any(any(o.baselines.values()) for o in found.injected), "they look at logits"

    def test_one_that_shows_and_is_not_found_does_not_hold(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its law looks at the other direction."""
        other = replace(CATALOGUE[self.SHOWS], law="tokenizer.decode", needs="something")
        monkeypatch.setitem(CATALOGUE, self.SHOWS, other)
        found = campaign(default_checkpoint(), faults=(self.SHOWS,), quick=True)
        assert not summary.holds(found)

    def test_no_vocabulary(self, model: Path) -> None:
        for name in ("encoder.json", "vocab.bpe"):
            assert not (model / name).exists()
        found = campaign(model, faults=(self.SHOWS,))
        assert found.left_out == {self.SHOWS: "the checkpoint has no vocabulary"}
        assert not found.injected
        assert not summary.holds(found)

    def test_no_library(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpt_verify.power.injection.find_spec", lambda name: None)
        why = why_not_injected(CATALOGUE[self.SHOWS], open_checkpoint(default_checkpoint()))
        assert why == "tokenizers is not installed"
        assert why_not_injected(CATALOGUE["gelu-erf"], open_checkpoint(model)) is None


def test_a_damaged_checkpoint_for_tensorflow(model: Path) -> None:
    """In memory; the original is not touched."""
    source = open_checkpoint(model)
    fault = CATALOGUE["weights-scaled"]
    names = damaged(fault, source, [0, 1, 2]).tensors
    changed = [n for n, x in names.items() if not np.array_equal(x, source.tensors[n])]
    assert changed
    assert all(any(n.endswith(kind) for kind in fault.tensors.kinds) for n in changed)


class TestBaselines:
    """Each usual comparison lets the correct port pass, and what its weakness is."""

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 5, 7)) * 10
    right = baselines.Shown([logits], {"h.0.resid_post": logits}, {"w": logits})

    def caught(self, **changes: Any) -> set[str]:
        found = baselines.caught(replace(self.right, **changes), self.right)
        return {name for name, refused in found.items() if refused}

    def test_the_same(self) -> None:
        assert self.caught() == set()

    def test_tolerances(self) -> None:
        assert self.caught(logits=[self.logits + 5e-4 * (-1) ** np.arange(7)]) >= {"allclose 1e-4"}
        shift = np.zeros(7)
        shift[:2] = 0.01, -0.01
        assert {"allclose 1e-3", "allclose 1e-4"} == self.caught(logits=[self.logits + shift])

    def test_not_a_number_is_refused(self) -> None:
        bad = self.logits.copy()
        bad[0, 0, 0] = np.nan
        assert self.caught(logits=[bad]) >= {"allclose 1e-3", "NMSE < 1e-2", "tensor means"}

        assert self.caught(logits=[bad]) >= {"KL < 0.1"}
        bad[0, -1, 0] = np.nan
        assert self.caught(logits=[bad]) >= {"cosine ≥ 0.99", "mutual top-5"}

    def test_the_cosine_is_of_the_last_position_and_blind_to_a_factor(self) -> None:
        turned = self.logits.copy()
        turned[:, :-1] *= -1
        assert "cosine ≥ 0.99" not in self.caught(logits=[turned])
        assert "cosine ≥ 0.99" not in self.caught(logits=[3 * self.logits])
        turned[:, -1] *= -1
        assert "cosine ≥ 0.99" in self.caught(logits=[turned])

    def test_the_divergence_is_the_mean_over_positions_in_nats(self) -> None:
        """Two tokens, 1/2 each: a port that has 1/2 + x diverges by -ln(1 - 4x²) / 2."""
        right = baselines.Shown([np.zeros((1, 1, 2))], {}, {})
        for x, refused in ((0.21, False), (0.22, True)):  # 0.097 and 0.107
            port = replace(right, logits=[np.log([[[0.5 + x, 0.5 - x]]])])
            assert baselines.caught(port, right)["KL < 0.1"] is refused
            shifted = replace(port, logits=[port.logits[0] + 100])
            assert baselines.caught(shifted, right)["KL < 0.1"] is refused

    def test_mutual_top_five(self) -> None:
        """The first token may be the other's fifth, not its sixth, and either way round."""
        right = -np.arange(7.0)[None, None]
        for places, refused in ((4, False), (5, True)):
            moved = right.copy()
            moved[..., 0] = -places - 0.5
            assert ("mutual top-5" in self._against(moved, right)) is refused
            assert ("mutual top-5" in self._against(right, moved)) is refused

    @staticmethod
    def _against(port: Any, right: Any) -> set[str]:
        found = baselines.caught(baselines.Shown([port], {}, {}), baselines.Shown([right], {}, {}))
        return {name for name, refused in found.items() if refused}

    def test_another_shape_is_refused(self) -> None:
        assert "top-1" in self.caught(logits=[self.logits[:, :4]])

    def test_the_signed_mean_sees_nothing(self) -> None:
        unrelated = np.random.default_rng(9).standard_normal(self.logits.shape)
        assert self.caught(states={"h.0.resid_post": unrelated}) == set()


class TestFamily:
    """A small model of a family is made, and transformers' own is given its faults."""

    @pytest.fixture(scope="class")
    @staticmethod
    def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return written(tmp_path_factory.mktemp("power") / "llama", "llama")

    def test_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--family", "llama", "--fault", "rms-eps-1e-6", "--jobs", "1", "--json", "-"]
        assert main(["power", "--quick", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        (row,) = found["faults"]
        assert (row["first_divergence"], row["explained_by"]) == ("h.0.ln_1", ["rms-eps-1e-6"])
        assert row["peers"]["NMSE < 1e-2"] is False
        assert found["summary"]["holds"]

    def test_its_faults_are_those_that_it_can_have(self, llama: Path) -> None:
        names = chosen(Plan(llama, families=("llama",)), family("llama"))
        assert {"rotary-theta-lost", "grouped-tiled", "gelu-erf"} <= {*names}
        assert not {"cap-scores-missing", "gelu-silu", "tying-part-hidden"} & {*names}
        assert all(CATALOGUE[name].in_family for name in names)
        rotary = chosen(Plan(llama, families=("rotary",)), family("llama"))
        assert rotary == [name for name in names if CATALOGUE[name].family == "rotary"]

    def test_what_changes_nothing_must_pass(self, llama: Path) -> None:
        found = campaign(llama, faults=("rotary-from-one",), quick=True)
        (outcome,) = found.injected
        assert (outcome.law, outcome.verdict) == (None, "verified")
        assert summary.holds(found)

    def test_every_form(self) -> None:
        """In one layer where it can be in one, and in ports that show nothing but logits."""
        config = family("llama")
        forms = {
            "rotary-theta-lost": [EVERYWHERE, LOGITS],
            "gated-exchanged": [EVERYWHERE, ONE_LAYER, LOGITS],
            "window-ignored": [],
        }
        for name, expected in forms.items():
            assert [i.form for i in injections(CATALOGUE[name], config)] == expected
        assert injections(CATALOGUE["cache-no-mask"], config) == []

    def test_what_changes_nothing_here_is_not_expected_to_be_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether a fault says that it needs something or not."""
        fault = replace(CATALOGUE["rms-eps-1e-6"], in_family=InTransformers())
        assert not fault.needs
        monkeypatch.setitem(CATALOGUE, fault.name, fault)
        source = open_checkpoint(written(tmp_path / "llama", "llama"))
        outcome = Bench(source, 0).fault(Injection(fault.name, EVERYWHERE, (0, 1, 2)))
        assert (outcome.detected, outcome.unlike, outcome.expected) == (False, False, False)

    def test_another_family_than_the_checkpoint_s(self, model: Path, llama: Path) -> None:
        for directory in (model, llama):
            with pytest.raises(UsageError, match=r"--family qwen3: .* is of (gpt2|llama)"):
                campaign(directory, families=("qwen3",))

    def test_correct_variants(self) -> None:
        plain = [f"huggingface-{way}{dtype}" for way in ("eager", "sdpa") for dtype in FORMATS]
        assert list(family_variants.plain(family("llama"))) == plain
        assert list(variants_of(family("llama")))[: len(plain)] == plain
        assert [name for name in variants_of(family("gemma2")) if "sdpa" in name] == []
        assert all(unavailable(name) is None for name in variants_of(family("llama")))
