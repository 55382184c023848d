"""The campaign of planted faults: what is planted where, how it is stored, and what is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import family

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import families_power  # noqa: E402  # of the scripts, not installed
import families_power_page  # noqa: E402  # likewise

from gpt_verify.checkpoint.families import FAMILIES  # noqa: E402  # after the ones above
from gpt_verify.judging.run import environment  # noqa: E402  # after the ones above
from gpt_verify.laws.catalogue import CATALOGUE  # noqa: E402  # likewise
from gpt_verify.power.baselines import COMPARISONS  # noqa: E402  # likewise
from gpt_verify.power.injection import (  # noqa: E402  # likewise
    EVERYWHERE,
    LOGITS,
    ONE_LAYER,
    Injection,
)
from gpt_verify.power.outcome import FaultOutcome  # noqa: E402  # likewise
from gpt_verify.power.summary import EXPLAINED, EXPLAINED_LOGITS  # noqa: E402  # likewise


def test_the_committed_page_is_that_of_the_committed_result() -> None:
    script = ROOT / "scripts" / "families_power.py"
    done = subprocess.run([sys.executable, os.fspath(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_committed_holds() -> None:
    """All that changes something is detected and localised, nearly all named, nothing wrongly."""
    result = json.loads(families_power.RESULT.read_text(encoding="utf-8"))
    models = families_power_page.read(result)
    assert set(FAMILIES) <= set(models)
    for of, least in (
        (families_power_page.in_sites, EXPLAINED),
        (families_power_page.in_logits, EXPLAINED_LOGITS),
    ):
        n = families_power_page.total(
            families_power_page.counts(of(outcomes)) for outcomes in models.values()
        )
        assert n["detected"] == n["faults"]
        assert n["localised"] == n["sited"]
        assert n["named"] >= least * n["faults"]
        assert n["wrong"] == 0
    harmless = [o for outcomes in models.values() for o in outcomes if o.law is None]
    assert not any(o.detected for o in harmless)


def outcome(name: str, form: str = EVERYWHERE, **changed: Any) -> FaultOutcome:
    """A trial in which all is as it should be."""
    fault = CATALOGUE[name]
    made = FaultOutcome(
        injection=Injection(name, form, (0, 1)),
        family=fault.family,
        law=fault.law,
        inputs="short",
        verdict="refuted",
        by_law=True,
        sites=("h.0.attn.scores",) if form != LOGITS else (),
        first_divergence="h.0.attn.scores",
        explained_by=(name,),
        instead=(),
        unlike=True,
        floors=3.5 if form == LOGITS else None,
        baselines=dict.fromkeys(COMPARISONS, False) if form == EVERYWHERE else {},
        message="",
        seconds=1.5,
    )
    return replace(made, **changed)


def result(path: Path, **models: list[FaultOutcome]) -> Path:
    rows = {name: [families_power.row(o) for o in found] for name, found in models.items()}
    path.write_text(json.dumps({"environment": environment(), "models": rows}))
    return path


@pytest.fixture(autouse=True)
def unmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families_power_page, "marked", lambda root, text, now: text)


def test_a_trial_is_stored_and_read_as_it_was() -> None:
    for form in (EVERYWHERE, LOGITS, ONE_LAYER):
        made = outcome("rotary-missing", form, same=("gelu-erf",), instead=("gelu-erf",))
        stored = json.loads(json.dumps(families_power.row(made)))
        assert families_power_page.outcome(stored) == made


def test_words_are_stored_where_something_is_missed() -> None:
    words = "h.0.ln_1 is wrong"
    assert families_power.row(outcome("gelu-erf", message=words))["message"] == ""
    missed = outcome("gelu-erf", message=words, explained_by=())
    assert families_power.row(missed)["message"] == words


def test_every_fault_is_dealt_to_so_many_models_and_evenly() -> None:
    able = {"a": ["x", "y", "z"], "b": ["x", "y"], "c": ["x", "w"]}
    one = families_power.dealt(able, 1)
    assert {fault for _, fault in one} == set("xyzw")
    assert len(one) == 4
    assert {name for name, _ in one} == set("abc")
    assert one < families_power.dealt(able, 2)
    assert len(families_power.dealt(able, 9)) == sum(map(len, able.values()))


def test_all_that_a_family_can_have_is_planted() -> None:
    config = family("gemma2")
    asked = families_power.planted(config)
    able = {n for n, f in CATALOGUE.items() if f.in_family is not None and f.of(config)}
    assert {injection.fault for injection in asked} == able
    assert [i.form for i in asked if i.fault == "cap-scores-missing"] == [EVERYWHERE, LOGITS]
    left = families_power.planted(config, able - {"cap-clipped"})
    assert {injection.fault for injection in left} == {"cap-clipped"}


def test_a_model_beside_the_family_s_has_what_that_cannot_have(tmp_path: Path) -> None:
    """Slopes of a number of heads that is no power of two."""
    for name, has in (("bloom", False), ("bloom, 3 heads", True)):
        source = families_power.model(name, tmp_path / name)
        faults = {injection.fault for injection in families_power.planted(source.config)}
        assert ("alibi-naive" in faults) is has


def test_the_page(tmp_path: Path) -> None:
    """Counts, what the usual comparisons let pass, and what falls short."""
    caught = {**dict.fromkeys(COMPARISONS, False), "top-1": True}
    found = families_power_page.page(
        result(
            tmp_path / "families-power.json",
            llama=[
                outcome("gelu-erf"),
                outcome("gelu-erf", ONE_LAYER),
                outcome("gelu-erf", LOGITS),
                outcome("rotary-missing", baselines=caught),
                outcome("rotary-missing", ONE_LAYER, explained_by=()),
                outcome("gelu-relu", first_divergence="h.1.ln_1"),
                outcome("rotary-from-one", verdict="verified", explained_by=(), sites=()),
                outcome("gelu-tanh", verdict="verified", unlike=False, explained_by=()),
            ],
            phi=[
                outcome("gelu-erf", explained_by=("gelu-silu",), same=("gelu-silu",)),
                outcome("rotary-missing", LOGITS, explained_by=("gelu-erf",)),
                outcome("gelu-relu", LOGITS, floors=0.5, verdict="verified", explained_by=()),
            ],
        )
    )
    assert "4 faults planted in 2 models of\n2 families, in 11 trials" in found
    assert "4 detected, 3 of 4 that have a site localised, 3 named, 0 given" in found
    shown, rest = found.split("## Ports that show nothing but logits")
    assert "| llama | 3 | 3 | 2 of 3 | 2 | 0 |" in shown
    assert "| phi | 1 | 1 | 1 of 1 | 1 | 0 |" in shown
    assert "| llama | 1 | 1 | - | 1 | 0 |" in rest
    assert "| phi | 1 | 1 | - | 0 | 1 |" in rest
    assert "- `gelu-erf`: llama, phi\n" in rest
    assert "- `rotary-missing`: llama\n" not in rest
    assert "- `rotary-missing` in llama, one layer: unexplained." in rest
    assert "- `gelu-relu` in llama, all layers: localised at h.1.ln_1, not h.0.attn.scores." in rest
    assert "- `rotary-missing` in phi, logits only: named gelu-erf." in rest
    assert "- `gelu-erf` is the same function as `gelu-silu` in phi (all layers)" in rest
    assert "- `rotary-from-one` changes nothing, and must be verified: llama." in rest
    assert "- `gelu-tanh` changes nothing in llama, and is left out there." in rest
    assert "| llama, phi | 2 of 2 | 2 of 2 |" in rest
    assert "gelu-relu` in phi" not in rest  # below the floor


def test_what_changes_nothing_and_is_refuted_is_said(tmp_path: Path) -> None:
    alarm = outcome("rotary-from-one", message="h.0.attn.scores is wrong")
    found = families_power_page.page(result(tmp_path / "families-power.json", llama=[alarm]))
    assert "changes nothing, and is refuted: h.0.attn.scores is wrong" in found


def test_other_numerics_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = result(tmp_path / "families-power.json", llama=[outcome("gelu-erf")])
    monkeypatch.setattr(families_power, "RESULT", path)
    assert list(families_power.stored()["models"]) == ["llama"]
    text = json.loads(path.read_text())
    text["environment"]["made_with"]["numerics"] = -1
    path.write_text(json.dumps(text))
    assert families_power.stored()["models"] == {}
