"""Which instructions compute: what is said of it, and that a set that was asked for is in force."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import instructions  # noqa: E402  # of the scripts, not installed

from gpt_verify.judging.run import environment  # noqa: E402  # after the one above
from gpt_verify.process.processor import processor  # noqa: E402  # after the one above

x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the sets are those of x86"
)


def test_this_process_computes_with_what_was_asked_for() -> None:
    """Under ``scripts/instructions.py`` the very process that runs the tests is asked."""
    import torch

    name = os.environ.get(instructions.NAME, "native")
    found = instructions.in_force()
    print(instructions.line(name, found))
    assert instructions.wrong(name, found) == []
    here = processor()
    assert here["torch"]["capability"] == torch.backends.cpu.get_cpu_capability()
    architectures = {p["architecture"] for p in here["blas"] if p["library"] == "openblas"}
    if name != "native":
        assert here["torch"]["capability"] == instructions.SAYS[name]["torch"]
        assert architectures == {instructions.SAYS[name]["openblas"]}
        assert here["settings"].items() >= instructions.SETS[name].items()


def test_a_report_names_the_processor() -> None:
    found = environment()["processor"]
    assert found == processor()
    assert found["model"] and found["vendor"]
    assert all(p["threads"] >= 1 and p["library"] for p in found["blas"])


@x86
@pytest.mark.parametrize("name", ["avx2", "baseline"])
def test_a_set_is_in_force_in_the_command(name: str) -> None:
    script = "from gpt_verify.process.processor import processor\n"
    script += "print(processor()['blas'][0]['architecture'])"
    command = [sys.executable, str(ROOT / "scripts" / "instructions.py"), name, "--threads", "1"]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    says = instructions.SAYS[name]
    assert first.startswith(f"instructions {name}: ")
    assert f"torch {says['torch']} (1 threads)" in first and f"oneDNN: {says['onednn']}" in first
    assert last == says["openblas"]


def test_its_status_is_that_of_the_command() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "instructions.py"), "native", "--"]
    done = subprocess.run([*command, sys.executable, "-c", "raise SystemExit(7)"], check=False)
    assert done.returncode == 7


AVX2: dict[str, Any] = {
    "vendor": "GenuineIntel",
    "blas": [{"library": "openblas", "architecture": "Haswell"}],
    "torch": {"capability": "AVX2", "mkl": True, "onednn": True},
    "mkl": "Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors",
    "onednn": "Intel AVX2",
    "numpy": ["X86_V3"],
}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("blas", 0, "architecture"), "SkylakeX", "OpenBLAS uses ['SkylakeX'], not Haswell"),
        (("torch", "capability"), "AVX512", "torch uses AVX512, not AVX2"),
        (("onednn",), "Intel AVX-512", "oneDNN uses Intel AVX-512, not Intel AVX2"),
        (("numpy",), ["X86_V3", "X86_V4"], "NumPy uses X86_V3, X86_V4"),
        (("mkl",), "(Intel(R) AVX-512) enabled processors", "MKL uses (Intel(R) AVX-512) enabled"),
    ],
    ids=["OpenBLAS", "torch", "oneDNN", "NumPy", "MKL"],
)
def test_another_set_than_was_asked_for_is_noticed(path: Any, value: Any, says: str) -> None:
    assert instructions.wrong("avx2", AVX2) == []
    found = copy.deepcopy(AVX2)
    at: Any = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (lacking,) = instructions.wrong("avx2", found)
    assert says in lacking


def test_a_set_that_is_not_in_force_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {**instructions.SETS["avx2"], "OPENBLAS_CORETYPE": "Nehalem"}
    monkeypatch.setitem(instructions.SETS, "avx2", wanted)
    monkeypatch.setattr(sys, "argv", ["instructions.py", "avx2", "--", "false"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert instructions.main() == 2
    assert "avx2 is not in force: OpenBLAS uses ['Nehalem'], not Haswell" in capsys.readouterr().err


def test_what_is_compiled_is_kept_apart() -> None:
    """Kernels for wider vectors are wrong in a process that is held to narrower ones."""
    compiled = instructions.COMPILED
    places = {name: instructions.variables(name).get(compiled) for name in instructions.SETS}
    within = instructions.NAME in os.environ
    assert places["native"] == (None if within else os.environ.get(compiled))
    assert len(set(places.values())) == len(instructions.SETS)
