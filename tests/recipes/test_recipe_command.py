"""``gpt-verify recipe``: one line for a port, a table, and what was declared is held to; and what
``compare`` says of two ports in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import complaint
from families import in_memory
from models import CONFIG, checkpoint
from rounding_ports import OTHER, RoundingPort

from gpt_verify.command.cli import main
from gpt_verify.judging.attribute import Attributed, attribute_run
from gpt_verify.judging.options import Options
from gpt_verify.judging.recipe import PortRecipe, recipe_run
from gpt_verify.judging.selection import request
from gpt_verify.recipes.declared import AUTHORS
from gpt_verify.recipes.table import RECIPES
from gpt_verify.report import attribution, recipe

SOURCE = checkpoint()
PORTS = f"{Path(__file__).parents[1] / 'rounding_ports.py'}"


def made(**recipes: str) -> RoundingPort:
    return RoundingPort(SOURCE, recipes={k.replace("__", "."): v for k, v in recipes.items()})


def examined(*ports: Any) -> tuple[PortRecipe, ...]:
    return recipe_run(asked(*ports)).ports


def asked(*ports: Any) -> Any:
    return request(None, ports, Options(), by_default=False, opened=SOURCE)


def test_every_operation_of_a_small_model_is_named() -> None:
    (found,) = examined(made())
    assert CONFIG.n_ctx < 64  # so that this is the largest sample that there is
    assert all(group.named for group in found.groups), found.groups
    assert found.not_shown == ()


def test_one_layer_that_rounds_otherwise_is_told_apart() -> None:
    (found,) = examined(made(h__1__ln_1="cast-before-gain"))
    named = {group.sites: group.named for group in found.groups if group.kind == "ln_1"}
    assert named == {("h.0.ln_1", "h.2.ln_1"): ("float32",), ("h.1.ln_1",): ("cast-before-gain",)}
    assert "norms in float32, cast before the gain (h.1.ln_1)" in recipe.statement(found)


def differing(one: Any, other: Any) -> Attributed:
    return attribute_run(asked(one, other))


def test_what_two_ports_compute_otherwise_is_all_that_is_named() -> None:
    three = {**OTHER, "mlp.out": "bias-after"}
    found = differing(made(), RoundingPort(SOURCE, recipes=three))
    assert found.error is None and found.found is not None
    assert found.found.first == "h.0.mlp.act"
    assert [pair.kind for pair in found.otherwise] == ["ln_1", "mlp.act", "mlp.out"]
    assert found.untold == () and found.accounted >= 0.9
    said = attribution.terminal(found)
    assert "part at h.0.mlp.act" in said
    assert "  mlp.out: " in said and "cast before the bias" in said


HIDDEN = ("scores", "pattern")


def test_what_one_port_hides_is_no_difference() -> None:
    found = differing(made(), RoundingPort(SOURCE, hides=HIDDEN))
    assert found.found is not None and found.found.first is None
    assert found.otherwise == found.untold == ()
    assert "have the same bits" in attribution.terminal(found)


def test_what_one_port_hides_may_be_computed_otherwise() -> None:
    scores = RoundingPort(SOURCE, recipes={"scores": "float32"}, hides=HIDDEN)
    found = differing(made(), scores)
    assert found.found is not None and found.found.first == "h.0.attn.mix"
    assert [pair.kind for pair in found.otherwise] == ["attn.mix"]
    assert found.otherwise[0].b.named == ("fused-scores-stored",)


def test_what_no_recipe_has_is_not_accounted_for() -> None:
    class Coarse(RoundingPort):
        def sites(self, tokens_T: Any) -> Any:
            shown = super().sites(tokens_T)
            return {**shown, "logits": (shown["logits"] * 4).round() / 4}

    found = differing(made(), Coarse(SOURCE))
    assert [pair.kind for pair in found.untold] == ["logits"]
    assert found.accounted < 0.5
    assert "not known of logits" in attribution.terminal(found)


def test_what_a_port_raises_is_said() -> None:
    class Broken(RoundingPort):
        def activations(self, tokens: Any, visit: Any) -> Any:
            raise ValueError("no such kernel")

    (found,) = examined(Broken(SOURCE))
    assert found.error == "rounding: ValueError: no such kernel"
    both = differing(made(), Broken(SOURCE))
    assert both.found is None
    assert "not examined: ValueError: no such kernel" in attribution.terminal(both)
    assert attribution.as_dict(both)["accounted"] is None


@pytest.fixture
def words(tiny: Path) -> list[str]:
    return ["recipe", "--checkpoint", str(tiny), "--port", f"{PORTS}:other"]


def test_the_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([*words, "--json", str(out)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("rounding (bfloat16): ")
    assert "softmax in float32; " in first
    assert "GELU with every step stored in bfloat16" in first
    assert any(line.startswith("mlp.act ") for line in rest)
    assert rest[-1].startswith("repeat: gpt-verify recipe ")
    (port,) = json.loads(out.read_text())["ports"]
    rows = {group["sites"][0]: group for group in port["groups"]}
    assert rows["h.1.ln_1"]["recipes"] == ["cast-before-gain"]
    assert rows["h.1.ln_1"]["kept_in"] == "bfloat16"
    best = rows["h.1.ln_1"]["tried"][0]
    assert best["outside"] == 0 and best["equal"] >= 0.99 * best["elements"]
    assert best["chance"] < 0.9


def test_the_json_goes_to_standard_output(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json", "-", "--quiet"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ports"][0]["line"] in said.err


def test_what_is_declared_is_held_to(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stated.json"
    words = [*words, "--recipe", str(path), "--quiet"]
    path.write_text(json.dumps({"ln_2": "float32", "gelu": ["steps", "steps-squares"]}))
    assert main(words) == 0
    assert "sites as declared" in capsys.readouterr().out
    path.write_text(json.dumps({"layer_norm": "float32", "mlp.act": "steps"}))
    assert main(words) == 1
    said = capsys.readouterr().out
    assert ", 1 departs from it" in said
    assert "h.1.ln_1: " in said and "they are as cast-before-gain has them" in said


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"layer_nrm": "float32"}, "did you mean layer_norm?"),
        ({"layer_norm": "float3"}, "is no recipe of it"),
        ({}, "an object of operations"),
        ([], "an object of operations"),
        ({"rms_norm": "float32"}, "is no operation or site"),
    ],
    ids=str,
)
def test_a_declaration_that_means_nothing_is_refused(
    stated: object, said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stated.json"
    path.write_text(json.dumps(stated))
    assert main([*words, "--recipe", str(path)]) == 2
    assert said in complaint(capsys.readouterr().err)


def test_a_declaration_of_which_nothing_is_seen_is_not_kept(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stated.json"
    path.write_text(json.dumps({"pattern": "float32"}))
    words[-1] = f"{PORTS}:hides_attention"
    assert main([*words, "--recipe", str(path), "--quiet"]) == 2
    assert "not examined: pattern" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("port", "said"),
    [
        ("wide", "computes in float32: recipes are told apart in half precision"),
        ("logits_alone", "no activations shown"),
        ("breaks", "ValueError: no such kernel"),
    ],
)
def test_what_cannot_be_told_is_2(
    port: str, said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words[-1] = f"{PORTS}:{port}"
    # A port that declares another precision is not asked for half precision at all.
    asked = [] if port == "wide" else ["--dtype", "bfloat16"]
    assert main([*words, *asked]) == 2
    assert said in capsys.readouterr().out


def test_what_is_missing_is_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words[:3]) == 2
    assert "takes one --port" in complaint(capsys.readouterr().err)
    assert main([*words, "--recipe", "authors"]) == 2
    assert "is not known" in complaint(capsys.readouterr().err)
    assert main([*words, "--recipe", str(tmp_path / "none")]) == 2
    assert "neither authors nor a file" in complaint(capsys.readouterr().err)


def test_compare_says_what_makes_the_difference(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    ports = ["--port", f"{PORTS}:plain", "--port", f"{PORTS}:other"]
    page = tmp_path / "out.html"
    words = ["compare", "--checkpoint", str(tiny), *ports, "--length", "24", "--json", str(out)]
    main([*words, "--html", str(page)])
    said = capsys.readouterr().out
    assert "part at h.0.mlp.act: " in said and "KL(" in said
    found = json.loads(out.read_text())["attribution"]
    assert {pair["kind"] for pair in found["otherwise"]} == {"ln_1", "mlp.act"}
    assert found["accounted"] >= 0.9
    assert {cause["kind"] for cause in found["causes"]} == {"ln_1", "mlp.act"}
    assert abs(sum(cause["share"] for cause in found["causes"]) - 1) < 2.0**-24
    shown = page.read_text(encoding="utf-8")
    for cause in found["causes"]:
        share = f"{100 * cause['share']:.1f} %"
        assert f'<code>{cause["kind"]}</code></th><td class="n">{share}</td>' in shown
    assert "in float32, cast before the gain" in shown


def test_the_page_is_of_two_ports_in_half_precision(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--html", str(tmp_path / "out.html")]
    report = tmp_path / "report.json"
    report.write_text("{}")
    assert main([*words, str(report), str(report)]) == 2
    assert "--html shows why two ports differ" in complaint(capsys.readouterr().err)
    ports = ["--port", f"{PORTS}:wide", "--port", f"{PORTS}:wide"]
    assert main([*words, "--checkpoint", str(tiny), *ports, "--length", "3"]) == 2
    assert "in half precision" in complaint(capsys.readouterr().err)


@pytest.mark.parametrize("name", AUTHORS)
def test_a_family_keeps_to_what_its_authors_do_or_departs(name: str) -> None:
    source, declaration = in_memory(name), AUTHORS[name]
    theirs = {place: names[0] for place, names in declaration.recipes.items()}
    rms = "float32" if theirs["rms_norm"] != "float32" else "cast-before-gain"
    ports = [RoundingPort(source, recipes={**theirs, **more}) for more in ({}, {"rms_norm": rms})]
    found = request(None, ports, Options(), by_default=False, opened=source)
    kept, departs = (port.kept for port in recipe_run(found, declaration).ports)
    assert kept is not None and departs is not None
    assert kept.departures == () and kept.not_examined == () and len(kept.kept) > 20
    assert {d.site.rpartition(".")[2] for d in departs.departures} >= {"ln_1"}
    assert all(d.found[0].recipe.name == rms for d in departs.departures)


def test_what_authors_do_is_a_recipe_that_exists() -> None:
    for declaration in AUTHORS.values():
        assert declaration.source
        for operation, names in declaration.recipes.items():
            assert set(names) <= {known.name for known in RECIPES[operation]}
