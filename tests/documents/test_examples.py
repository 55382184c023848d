"""The examples: verified as they are, and refuted at the right place with one mistake each."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import checkpoint, finding, judged

from gpt_verify.findings import Status, Verdict

FOLDER = Path(__file__).parents[2] / "examples/python"
NAMES = ("modules", "functional", "numpy_only")


@pytest.mark.parametrize("name", NAMES)
def test_verified(name: str) -> None:
    report = judged(f"{FOLDER / name}.py:factory", checkpoint())
    assert report.verdict is Verdict.VERIFIED, report.error
    assert finding(report, "positions.beyond").status is Status.PASSED
    if name != "numpy_only":
        assert all(f.status is Status.PASSED for f in report.findings if f.id == "weights.values")
        assert finding(report, "tying.gradient", "logits").status is Status.PASSED


@pytest.mark.parametrize(
    ("name", "old", "new", "site"),
    [
        ("modules", 'nn.GELU("tanh")', "nn.GELU()", "h.0.mlp.act"),
        (
            "modules",
            "nn.LayerNorm(width), Attention",
            "nn.LayerNorm(width, 1e-6), Attention",
            "h.0.ln_1",
        ),
        (
            "functional",
            'h = layer_norm(x, (width,), p["norm2_gain"], p["norm2_bias"], 1e-5)',
            'h = layer_norm(x, (width,), p["norm1_gain"], p["norm1_bias"], 1e-5)',
            "h.0.ln_2",
        ),
        ("functional", 'approximate="tanh"', 'approximate="none"', "h.0.mlp.act"),
        ("numpy_only", "np.tri(length, dtype=bool)", "np.tri(length, k=1, dtype=bool)", None),
        ("numpy_only", "np.float32(0.044715)", "np.float32(0.0447)", None),
    ],
)
def test_refuted(name: str, old: str, new: str, site: str | None, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert text.count(old) == 1
    altered = tmp_path / f"{name}.py"
    altered.write_text(text.replace(old, new))
    report = judged(f"{altered}:factory", checkpoint(), laws=())
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == (site or "logits")
