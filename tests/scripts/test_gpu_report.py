"""The report of a GPU, as far as it can be tested without one: on what it must say and refuse."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import gpu_report  # not installed

ROOT = gpu_report.ROOT

SHORT = ("--length", "5")
FINE = gpu_report.Planned("float32", ("--port", "huggingface-sdpa", *SHORT))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_run_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(["--out", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err == "gpu_report: not run: no CUDA device\n"
    assert not (tmp_path / "results").exists()


def test_the_name_of_a_device_becomes_that_of_a_file() -> None:
    assert gpu_report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_report.slug("Tesla T4") == "tesla-t4"


def test_a_run_is_kept_in_short(tiny: Path) -> None:
    """On the CPU: everything but the device that it is meant for, which is said not to have run."""
    result = gpu_report.carried_out(FINE, ("--device", "cpu", "--checkpoint", str(tiny)))
    assert result["exit_status"] == 0
    assert result["ports"][0]["verdict"] == "verified"
    assert result["ports"][0]["laws"]["batch"]["statuses"] == {"passed": 1}
    assert result["ports"][0]["laws"]["activations.local"]["statuses"]["passed"] > 5
    assert 0 < result["ports"][0]["laws"]["logits"]["worst"] < 1
    # The two devices did not meet, and without that a run is not as it must be.
    assert result["complaints"] == [
        "huggingface-sdpa: device is not_examined: the port ran on the CPU only"
    ]
    assert result["as_expected"] is False
    assert str(ROOT) not in json.dumps(result["words"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_run_on_a_gpu_that_is_not_there_is_not_as_it_must_be(tiny: Path) -> None:
    result = gpu_report.carried_out(FINE, ("--device", "cuda", "--checkpoint", str(tiny)))
    assert result["as_expected"] is False
    assert result["exit_status"] == 2
    assert result["complaints"] == ["exit status 2, no report"]
    assert "there is no CUDA device" in result["stderr"][-1]


def report(**checks: tuple[str, str]) -> dict[str, Any]:
    """A report of one port with these checks: id → (status, message)."""
    found = [{"id": k, "status": s, "message": m, "site": None} for k, (s, m) in checks.items()]
    refuted = any(check["status"] == "failed" for check in found)
    verdict = "refuted" if refuted else "verified"
    return {"verdict": verdict, "ports": [{"name": "p", "checks": found}]}


TF32 = replace(gpu_report.PLAN[-1], failing=("precision",))


@pytest.mark.parametrize(
    ("planned", "status", "found", "complaints"),
    [
        (FINE, 0, report(device=("passed", "")), []),
        (FINE, 1, report(device=("failed", "x")), 3),
        (FINE, 2, None, ["exit status 2, no report"]),
        (TF32, 1, report(precision=("failed", "declared float32, computes in tf32 at all")), []),
        (TF32, 0, report(precision=("passed", "float32 at 17 of 17 products")), 4),
        (TF32, 1, report(precision=("failed", "computes in bfloat16")), 1),
        (TF32, 1, report(logits=("failed", "computes in tf32")), 2),
    ],
)
def test_what_did_not_come_out_as_planned_is_named(
    planned: Any, status: int, found: Any, complaints: Any
) -> None:
    named = gpu_report.complaints_of(planned, status, found)
    assert named == complaints if isinstance(complaints, list) else len(named) == complaints


def test_tests_are_counted_and_a_skip_is_no_pass(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text("def test_one(): pass\n")
    found = gpu_report.tested((str(file),))
    assert (found["as_expected"], found["passed"]) == (True, 1)
    file.write_text(
        "import pytest\ndef test_one(): pass\n"
        "@pytest.mark.gpu\ndef test_two(): pytest.skip('not run')\n"
    )
    found = gpu_report.tested((str(file),))
    assert (found["as_expected"], found["passed"], found["skipped"]) == (False, 1, 1)
    file.write_text("def test_one(): assert False\n")
    found = gpu_report.tested((str(file),))
    assert (found["as_expected"], found["failed"]) == (False, 1)
    assert "test_one" in found["wrong"][0]
