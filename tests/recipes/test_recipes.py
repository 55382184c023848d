"""What a port rounds where is told from the bits of its numbers, and nothing is said where no
recipe fits."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from planted_recipes import NONE, PLANTED, Model, truncated
from recipe_cases import planted, shown

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import planted_page  # after the line above
import recipes_page

HALVES = ("bfloat16", "float16")
#: Which of these are one function in this format, so that both are named: a table at every number
#: of float16 is the function itself where everything is one of these.
#: The variance is of squares that are stored or not, and next to always one number of float16.
SAME = {
    ("float16", "h.0.mlp.act"): {"table-float16", "float32"},
    ("float16", "h.0.ln_1"): {"steps", "steps-variance"},
}


def _title(case: tuple[str, ...]) -> str:
    return "-".join(case)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", PLANTED, ids=_title)
def test_a_planted_recipe_is_named(case: tuple[str, str, str], dtype: str) -> None:
    name, site, recipe = case
    found = planted(name, site, PLANTED[case], dtype)
    same = SAME.get((dtype, site), set())
    same = same if recipe in same else set()
    (own,) = (t for t in found.tried if t.recipe.name == recipe)
    # Another one is named beside it where it makes the same numbers of these.
    others = {t.recipe.name for t in found.fitting if t.agreement == own.agreement}
    assert recipe in found.named and set(found.named) <= others | same, _tried(found)
    assert own.agreement.share >= 0.99
    assert own.agreement.outside == 0


def _tried(found) -> str:  # type: ignore[no-untyped-def]
    return "; ".join(f"{t.recipe.name}: {t.agreement}" for t in found.tried[:4])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", NONE, ids=_title)
def test_none_is_named_where_none_fits(case: tuple[str, str], dtype: str) -> None:
    found = planted("gpt2", case[0], NONE[case], dtype)
    assert found.named == (), _tried(found)
    assert found.best is not None and found.best.agreement.outside > 0


def test_the_page_has_these_recipes() -> None:
    text = recipes_page.PAGE.read_text(encoding="utf-8")
    assert recipes_page.written(text) == text


def test_there_are_enough_of_them() -> None:
    assert len({(site.rpartition(".")[2], recipe) for _, site, recipe in PLANTED}) >= 12
    assert len({site.rpartition(".")[2] for _, site, _ in PLANTED}) >= 6


def test_few_elements_name_nothing() -> None:
    """Chance may have it so."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 48, generator=draw).bfloat16() for _ in "ab")
    found = shown("gpt2", "bfloat16", {"embed": x, "h.0.attn.out": y, "h.0.resid_mid": x + y})
    assert found.named == () and found.best is not None and found.best.agreement.outside == 0


def test_what_is_kept_in_float32_is_told_from_what_is_stored() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 48, generator=draw).bfloat16().float() for _ in "ab")
    values = {"embed": x, "h.0.attn.out": y}
    kept = shown("gpt2", "bfloat16", {**values, "h.0.resid_mid": x + y})
    assert (kept.kept, kept.named) == ("float32", ("once",))
    stored = shown("gpt2", "bfloat16", {**values, "h.0.resid_mid": (x + y).bfloat16()})
    assert (stored.kept, stored.named) == ("bfloat16", ("once",))
    wrong = (x + y) * (1 + 2**-14)  # finer than bfloat16, coarser than float32
    assert shown("gpt2", "bfloat16", {**values, "h.0.resid_mid": wrong}).named == ()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("stored", [False, True], ids=["rounded once", "of a stored root"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_reciprocal_root_may_be_that_of_a_stored_root(
    name: str, stored: bool, dtype: str
) -> None:
    def root(x: torch.Tensor) -> torch.Tensor:
        return 1 / torch.sqrt(x) if stored else torch.rsqrt(x.float()).to(x.dtype)

    def way(x: torch.Tensor, m: Model) -> torch.Tensor:
        if name == "llama":
            return x * root((x * x).mean(-1, keepdim=True) + m.epsilon) * m.tensors[0]
        c = x - x.mean(-1, keepdim=True)
        return c * root((c * c).mean(-1, keepdim=True) + m.epsilon) * m.tensors[0] + m.tensors[1]

    found = planted(name, "h.0.ln_1", way, dtype)
    assert "steps" in found.named, _tried(found)
    assert set(found.named) <= SAME.get((dtype, "h.0.ln_1"), {"steps"})


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("block", [1, 8])
def test_sums_in_half_precision_are_alike(block: int, dtype: str) -> None:
    """Each order of the terms has other bits, and the same distances from the right sums."""

    def way(x: torch.Tensor, m: Model) -> torch.Tensor:
        w, b = m.tensors
        order = torch.randperm(len(w), generator=torch.Generator().manual_seed(1))
        made = torch.zeros(len(x), w.shape[1], dtype=x.dtype)
        for some in order.split(block):
            made = (made.float() + x[:, some].float() @ w[some].float()).to(x.dtype)
        return made + b

    found = planted("gpt2", "h.0.mlp.pre", way, dtype)
    assert found.named == ()
    assert f"narrow-{block}" in {t.recipe.name for t in found.alike}, _tried(found)
    right = planted("gpt2", "h.0.mlp.pre", PLANTED["gpt2", "h.0.mlp.pre", "float32"], dtype)
    assert right.alike == ()


def test_truncation_is_seen_in_a_few_elements() -> None:
    """One row in forty is enough for a recipe to fit no longer."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 48, generator=draw).bfloat16() for _ in "ab")
    made = x + y
    made[7] = truncated(x[7].float() + y[7].float(), x)
    found = shown("gpt2", "bfloat16", {"embed": x, "h.0.attn.out": y, "h.0.resid_mid": made})
    assert found.named == () and found.best is not None
    assert 0 < found.best.agreement.outside <= 48


def _names_alone(text: str) -> str:
    """Without shares and scores, which hang on the processor's kernels in their last digit."""
    return re.sub(r"\d+\.\d+", "#", text)


def test_the_page_is_of_the_ways_that_are_planted_today() -> None:
    page = recipes_page.PAGE.read_text(encoding="utf-8")
    for mark, lines in (("planted", planted_page.planted()), ("faults", planted_page.faults())):
        now = recipes_page.put(page, mark, list(lines))
        assert _names_alone(now) == _names_alone(page), "scripts/planted_page.py --write"
