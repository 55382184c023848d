"""Judge the ports of transformers on a GPU, run the tests that need one, and write what was found.

    python scripts/gpu_report.py                  # docs/results/gpu-NAME-OF-THE-DEVICE.json
    python scripts/gpu_report.py --out /tmp/here

TensorFlow is not needed: the default checkpoint is read by gpt-verify's own reader. Each line of
``PLAN`` is one ``gpt-verify run`` in a process of its own, and says what must come out of it. Both
devices are judged against float64, the GPU in the run and the CPU in the law ``device``, where they
also meet each other.

Exit status: 0 everything came out as it must, 1 something did not, 2 not run (no GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PORTS = ROOT / "tests" / "gpu_ports.py"
RESULTS = ROOT / "docs" / "results"
NOT_RUN = 2
#: The tests among which those marked ``gpu`` are looked for: others import what is not needed here.
TESTS = ("tests/laws/test_gpu.py", "tests/laws/test_every_law.py")
#: Of the report on each port.
KEPT = ("name", "dtype", "device", "verdict", "logits_floors", "seconds")


@dataclass(frozen=True)
class Planned:
    """One run of the command.

    Attributes:
        name: in the report.
        words: after ``gpt-verify run --device cuda``.
        verdict: what must come out.
        failing: laws that must fail.
        says: what the first of them must say.
    """

    name: str
    words: tuple[str, ...]
    verdict: str = "verified"
    failing: tuple[str, ...] = ()
    says: str = ""


PLAN = (
    *(
        Planned(dtype, ("--port", "huggingface", "--dtype", dtype))
        for dtype in ("float32", "bfloat16", "float16")
    ),
    Planned(
        "TF32 on",
        ("--port", f"{PORTS}:tf32"),
        "refuted",
        ("precision", "determinism.state"),
        "computes in tf32",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the JSON report")
    parser.add_argument("--checkpoint", type=Path, help="default: the one that is shipped")
    parser.add_argument("--no-tests", action="store_true", help="leave pytest -m gpu out")
    arguments = parser.parse_args(argv)
    device, why = gpu()
    if device is None:
        print(f"gpu_report: not run: {why}", file=sys.stderr)
        return NOT_RUN
    print(f"device: {device}")
    more = ("--device", "cuda")
    if arguments.checkpoint is not None:
        more += ("--checkpoint", str(arguments.checkpoint))
    runs = [carried_out(planned, more) for planned in PLAN]
    tests = None if arguments.no_tests else tested(("-m", "gpu", *TESTS))
    made = next((run["environment"] for run in runs if "environment" in run), {})
    report = {"device": device, "environment": made, "runs": runs, "tests": tests}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"gpu-{slug(device)}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    well = all(run["as_expected"] for run in runs) and (tests is None or tests["as_expected"])
    print(f"{path}: {'everything as it must be' if well else 'NOT as it must be'}")
    return 0 if well else 1


def gpu() -> tuple[str | None, str]:
    """The name of the CUDA device, or why there is none."""
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, "no CUDA device"
    return torch.cuda.get_device_name(), ""


def slug(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def carried_out(planned: Planned, more: Sequence[str]) -> dict[str, Any]:
    """One run of the command, and whether it came out as it must."""
    command = [sys.executable, "-m", "gpt_verify", "run", "--quiet", *planned.words, *more]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "report.json"
        done = _run([*command, "--json", str(out)])
        report = json.loads(out.read_text()) if out.exists() else None
    seconds = time.perf_counter() - start
    complaints = complaints_of(planned, done.returncode, report)
    result = {
        "name": planned.name,
        "words": [word.removeprefix(f"{ROOT}{os.sep}") for word in (*planned.words, *more)],
        "expected": planned.verdict,
        "as_expected": not complaints,
        "complaints": complaints,
        "exit_status": done.returncode,
        "stderr": done.stderr.strip().splitlines()[-5:],
        "seconds": round(seconds, 1),
        **(shortened(report) if report is not None else {}),
    }
    print(
        f"{planned.name}: {'; '.join(complaints) or planned.verdict} ({seconds:.0f} s)", flush=True
    )
    return result


def complaints_of(planned: Planned, status: int, report: dict[str, Any] | None) -> list[str]:
    """Everything that did not come out as planned; empty where all did."""
    if report is None:
        return [f"exit status {status}, no report"]
    found = []
    if report["verdict"] != planned.verdict:
        found.append(f"{report['verdict']}, should be {planned.verdict}")
    if status != {"verified": 0, "refuted": 1}[planned.verdict]:
        found.append(f"exit status {status}")
    for port in report["ports"]:
        failed = {c["id"] for c in port["checks"] if c["status"] == "failed"}
        found += [
            f"{port['name']}: {law} did not fail" for law in planned.failing if law not in failed
        ]
        if planned.verdict == "verified":
            # Where it is not examined, the two devices did not meet.
            found += [
                f"{port['name']}: {check['id']} is {check['status']}: {check['message']}"
                for check in port["checks"]
                if check["id"] == "device" and check["status"] != "passed"
            ]
        if planned.says and not any(
            planned.says in c["message"]
            for c in port["checks"]
            if (c["id"], c["status"]) == (planned.failing[0], "failed")
        ):
            found.append(f"{port['name']}: nothing says {planned.says!r}")
    return found


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that is worth keeping: each law's statuses, worst score and what
    failed."""
    return {
        "environment": report["environment"],
        "checkpoint": report["checkpoint"],
        "ports": [
            {
                **{
                    key: port[key]
                    for key in ("name", "dtype", "device", "verdict", "logits_floors")
                },
                "seconds": port["seconds"],
                "laws": _laws(port["checks"]),
            }
            for port in report["ports"]
        ],
    }


def _laws(checks: list[dict[str, Any]]) -> dict[str, Any]:
    laws: dict[str, Any] = {}
    for check in checks:
        law = laws.setdefault(check["id"], {"statuses": Counter(), "worst": None, "failed": []})
        law["statuses"][check["status"]] += 1
        if check["score"] is not None and check["limit"]:
            share = check["score"] / check["limit"]
            law["worst"] = share if law["worst"] is None else max(law["worst"], share)
        if check["status"] == "failed":
            law["failed"].append(f"{check['site'] or ''} {check['message']}".strip())
        elif check["site"] is None:
            law["message"] = check["message"]
    return laws


def tested(words: Sequence[str]) -> dict[str, Any]:
    """pytest on the tests so chosen: how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", *words, f"--junitxml={out}"]
        done = _run(command, capture=False)
        if not out.exists():
            return {"as_expected": False, "exit_status": done.returncode}
        cases = list(ElementTree.parse(out).getroot().iter("testcase"))
    outcome: Counter[str] = Counter()
    wrong = []
    for case in cases:
        bad = next((c for c in case if c.tag in ("failure", "error")), None)
        kind = (
            "failed"
            if bad is not None
            else "skipped"
            if case.find("skipped") is not None
            else "passed"
        )
        outcome[kind] += 1
        if bad is not None:
            wrong.append(f"{case.get('classname')}::{case.get('name')}: {bad.get('message')}"[:300])
    # A skip here is a test that was not run on the GPU that there is.
    well = done.returncode == 0 and outcome["passed"] > 0 and not outcome["skipped"]
    return {"as_expected": well, "exit_status": done.returncode, **outcome, "wrong": wrong}


def _run(command: list[str], capture: bool = True) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=capture, text=True)


if __name__ == "__main__":
    sys.exit(main())
