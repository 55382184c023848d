"""``gpt-verify recipe``: one line for a port, a table, and what was declared is held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import complaint
from models import CONFIG, checkpoint

from gpt_verify.command.cli import main
from gpt_verify.judging.attribute import Attributed, attribute_run
from gpt_verify.judging.options import Options
from gpt_verify.judging.recipe import PortRecipe, recipe_run
from gpt_verify.judging.selection import request
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.recipes.declared import AUTHORS
from gpt_verify.recipes.table import RECIPES
from gpt_verify.report import attribution, recipe

SOURCE = checkpoint()
EAGER = "huggingface-eager"


def cast_before_gain(layer: int) -> Any:
    """Of the first norm of a layer."""

    def alter(port: Any) -> None:
        norm = port.module.transformer.h[layer].ln_1

        def forward(x: torch.Tensor) -> torch.Tensor:
            wide = torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), eps=norm.eps)
            return wide.to(x.dtype) * norm.weight + norm.bias

        norm.forward = forward

    return alter


def gelu_in_float32(port: Any) -> None:
    port.module.transformer.h[1].mlp.act = torch.nn.GELU(approximate="tanh")


def altered(*changes: Any, dtype: str = "bfloat16") -> Any:
    port = huggingface(SOURCE, "eager", dtype)  # type: ignore[arg-type]
    for change in changes:
        change(port)
    return port


def examined(*ports: Any, **more: Any) -> tuple[PortRecipe, ...]:
    asked = request(None, ports, Options(dtype="bfloat16"), by_default=False, opened=SOURCE)
    return recipe_run(asked, **more).ports


def test_one_layer_that_rounds_otherwise_is_told_apart() -> None:
    (found,) = examined(altered(cast_before_gain(1)))
    named = {group.sites: group.named for group in found.groups if group.kind == "ln_1"}
    assert named == {("h.0.ln_1", "h.2.ln_1"): ("float32",), ("h.1.ln_1",): ("cast-before-gain",)}
    assert "norms (h.1.ln_1) in float32, cast before the gain" in recipe.statement(found)


def differing(one: Any, other: Any) -> Attributed:
    asked = request(None, [one, other], Options(dtype="bfloat16"), by_default=False, opened=SOURCE)
    return attribute_run(asked)


def test_what_two_ports_compute_otherwise_is_all_that_is_named() -> None:
    made = differing(altered(), altered(cast_before_gain(1), gelu_in_float32))
    assert made.error is None and made.found is not None
    assert made.found.first == "h.1.ln_1"
    assert [pair.kind for pair in made.otherwise] == ["ln_1", "mlp.act"]
    assert made.untold == () and made.accounted >= 0.9
    assert "part at h.1.ln_1" in attribution.terminal(made)


def test_the_exchange_of_all_roundings_leaves_nothing() -> None:
    made = differing(altered(), altered(gelu_in_float32))
    assert made.found is not None and made.found.first == "h.1.mlp.act"
    parts = made.found.parts
    # To within what float64 can say of a difference that float32 would not show.
    assert parts[-1].left < 2.0**-48
    assert abs(sum(part.share for part in parts) - 1) < 2.0**-24
    before = [part for part in parts if part.kind in ("embed",)]
    assert all(part.share == 0 and part.left == 1 for part in before)
    assert made.found.kl_nats > 0 and made.found.rms_nats > 0


def test_a_port_does_not_differ_from_itself() -> None:
    made = differing(altered(), altered())
    assert made.found is not None and made.found.first is None
    assert made.found.rms_nats == 0 and made.otherwise == ()
    assert "have the same bits" in attribution.terminal(made)


def written(path: Path, stated: object) -> str:
    path.write_text(json.dumps(stated))
    return str(path)


@pytest.fixture
def words(tiny: Path) -> list[str]:
    return ["recipe", "--checkpoint", str(tiny), "--dtype", "bfloat16", "--length", "17"]


def test_the_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([*words, "--port", EAGER, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "norms in float32; " in text.splitlines()[0]
    assert "GELU with every step stored in bfloat16" in text.splitlines()[0]
    assert "products accumulate in float32" in text.splitlines()[0]
    (port,) = json.loads(out.read_text())["ports"]
    rows = {group["kind"]: group for group in port["groups"]}
    assert rows["ln_1"]["recipes"] == ["float32"] and rows["ln_1"]["kept_in"] == "bfloat16"
    best = rows["ln_1"]["tried"][0]
    assert best["outside"] == 0 and best["equal"] >= 0.99 * best["elements"]
    assert best["chance"] < 0.9


def test_what_is_declared_is_held_to(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stated.json"
    words = [*words, "--port", EAGER, "--recipe", str(path), "--quiet"]
    written(path, {"layer_norm": "float32", "mlp.act": ["steps", "steps-squares"]})
    assert main(words) == 0
    assert "as declared" in capsys.readouterr().out
    written(path, {"layer_norm": "float32", "mlp.act": "float32"})
    assert main(words) == 1
    assert "h.0.mlp.act: " in capsys.readouterr().out
    for stated, said in (
        ({"layer_nrm": "float32"}, "did you mean layer_norm?"),
        ({"layer_norm": "float3"}, "is no recipe of it"),
        ({}, "an object of operations"),
        ({"rms_norm": "float32"}, "is no operation or site"),
    ):
        written(path, stated)
        assert main(words) == 2
        assert said in complaint(capsys.readouterr().err)


def test_a_declaration_of_which_nothing_is_seen_is_not_kept(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = written(tmp_path / "stated.json", {"pattern": "float32"})
    words = [*words, "--port", "huggingface-sdpa", "--recipe", stated, "--quiet"]
    assert main(words) == 2
    assert "not examined: pattern" in capsys.readouterr().out


def test_what_cannot_be_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wide = [word if word != "bfloat16" else "float32" for word in words]
    assert main([*wide, "--port", EAGER]) == 2
    assert "half precision" in capsys.readouterr().out
    assert main(words) == 2
    assert "takes one --port" in complaint(capsys.readouterr().err)
    assert main([*words, "--port", EAGER, "--recipe", "authors"]) == 2
    assert "not known" in complaint(capsys.readouterr().err)


def test_what_authors_do_is_a_recipe_that_exists() -> None:
    for declaration in AUTHORS.values():
        assert declaration.source
        for operation, names in declaration.recipes.items():
            assert set(names) <= {known.name for known in RECIPES[operation]}


def test_a_model_has_enough_elements() -> None:
    """What is asked for where nothing is said: every operation of the tiny model is named."""
    (found,) = examined(altered())
    assert CONFIG.n_ctx < 64
    assert all(group.named for group in found.groups), found.groups
