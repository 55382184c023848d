"""Run a command under another set of the processor's instructions, and prove that it was in force.

    python scripts/instructions.py                     # what every library uses if it may choose
    python scripts/instructions.py avx2 -- pytest tests/numerics/test_budgets.py
    python scripts/instructions.py baseline --threads 1 -- python scripts/calibrate.py --configs 240
    python scripts/instructions.py another -- …        # the one of these that differs here

``native`` is all that the machine has, ``avx2`` nothing above AVX2, ``baseline`` the least that
each library was built for. Variables choose the instructions; before the command runs, another
process with the same variables computes something, and every library is asked what it used. MKL
takes orders on Intel's processors alone (elsewhere it has one path of its own choice, and one that
is compatible with every processor, which ``baseline`` chooses). Where it takes none, the line that
is printed says so.

Exit status: that of the command; 2 where the set is not in force, or there is no such machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
INTEL = "GenuineIntel"
NUMPY = "NPY_DISABLE_CPU_FEATURES"
#: Set → what chooses it. NumPy's own loops are held back by what it has found, below.
SETS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "baseline": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
#: Set → what OpenBLAS, torch and oneDNN say when it is in force.
SAYS = {
    "avx2": {"openblas": "Haswell", "torch": "AVX2", "onednn": "Intel AVX2"},
    "baseline": {"openblas": "Nehalem", "torch": "DEFAULT", "onednn": "Intel SSE4.1"},
}
#: The variable under which a command is told which set it runs in.
NAME = "GPT_VERIFY_INSTRUCTIONS"
#: Where torch.compile keeps what it has compiled.
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_ASK = """
import json, sys
import torch
from gpt_verify.process.processor import processor
torch.ones(200, 200, dtype=torch.float64) @ torch.ones(200, 200, dtype=torch.float64)  # MKL
torch.ones(4, 4).to_mkldnn().relu()  # oneDNN
sys.stdout.flush()
print("\\nprocessor " + json.dumps(processor()))
"""


def variables(name: str, threads: int | None = None) -> dict[str, str]:
    """The environment of a command: that of this process, with nothing left of another set."""
    chosen = {variable for choice in SETS.values() for variable in choice} | {NAME, NUMPY}
    if NAME in os.environ:
        chosen |= {COMPILED}
    found = {key: value for key, value in os.environ.items() if key not in chosen} | SETS[name]
    if name != "native":
        features = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
        # What this process is held back from itself is not found.
        features = [*features, *os.environ.get(NUMPY, "").split()]
        wide = [f for f in features if f == "X86_V4" or f.startswith("AVX512")]
        found[NUMPY] = " ".join(features if name == "baseline" else wide)
        found[NAME] = name
        # torch takes from its cache what was compiled for wider vectors, and computes NaN with it.
        found[COMPILED] = str(Path(tempfile.gettempdir()) / f"torchinductor-{name}")
    if threads is not None:
        found |= dict.fromkeys(THREADS, str(threads))
    return found


def in_force(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """``processor()`` of a process with these variables, besides ``mkl`` and ``onednn``: what each
    says of itself when it computes, None where it says nothing."""
    asked = dict(os.environ if environment is None else environment)
    asked |= {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    asked["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), asked.get("PYTHONPATH")]))
    out = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, env=asked, check=True
    ).stdout
    lines = out.splitlines()
    found: dict[str, Any] = {"mkl": None, "onednn": None}
    for line in lines:
        if line.startswith("processor "):
            found |= json.loads(line.removeprefix("processor "))
        elif line.startswith("MKL_VERBOSE oneMKL"):
            found["mkl"] = line.partition("architecture ")[2].partition(", ")[0]
        elif line.startswith("MKL_VERBOSE") and "CNR:" in line:
            found["mkl_reproducible"] = line.partition("CNR:")[2].split()[0]
        elif "cpu,isa:" in line:
            found["onednn"] = line.partition("cpu,isa:")[2]
    return found


def wrong(name: str, found: Mapping[str, Any]) -> list[str]:
    """What is not as the set has it; nothing for ``native``, which is whatever there is."""
    if name == "native":
        return []
    says, lacking = SAYS[name], []
    architectures = {p["architecture"] for p in found["blas"] if p["library"] == "openblas"}
    if architectures != {says["openblas"]}:
        lacking.append(f"OpenBLAS uses {sorted(map(str, architectures))}, not {says['openblas']}")
    if found["torch"]["capability"] != says["torch"]:
        lacking.append(f"torch uses {found['torch']['capability']}, not {says['torch']}")
    if found["torch"]["onednn"] and found["onednn"] != says["onednn"]:
        lacking.append(f"oneDNN uses {found['onednn']}, not {says['onednn']}")
    wide = [f for f in found["numpy"] if f == "X86_V4" or f.startswith("AVX512")]
    if wide or (name == "baseline" and found["numpy"]):
        lacking.append(f"NumPy uses {', '.join(found['numpy'])}")
    if found["torch"]["mkl"]:
        if name == "baseline" and found.get("mkl_reproducible") != "COMPATIBLE":
            lacking.append(f"MKL's mode is {found.get('mkl_reproducible')}, not COMPATIBLE")
        if name == "avx2" and found["vendor"] == INTEL and "AVX2)" not in str(found["mkl"]):
            lacking.append(f"MKL uses {found['mkl']}, not AVX2")
    return lacking


def another() -> str:
    """The set that differs most usefully from what the machine uses as it is."""
    known = in_force(variables("native"))
    return "avx2" if known["torch"]["capability"] == "AVX512" else "baseline"


def line(name: str, found: Mapping[str, Any]) -> str:
    """What was in force, in one line."""
    blas = ", ".join(
        f"{p['library']} {p['version']} {p['architecture']} ({p['threads']} threads)"
        for p in found["blas"]
    )
    torch = found["torch"]
    mkl = f"MKL: {found['mkl']}"
    if found.get("mkl_reproducible", "OFF") != "OFF":
        mkl += f", {found['mkl_reproducible']}"
    elif name == "avx2" and found["vendor"] != INTEL:
        mkl += ", which does not take orders here"
    return (
        f"instructions {name}: {found['model']}; {blas}; "
        f"torch {torch['capability']} ({torch['threads']} threads); {mkl}; "
        f"oneDNN: {found['onednn']}; NumPy: {', '.join(found['numpy']) or 'its baseline'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", nargs="?", default="native", choices=[*SETS, "another"])
    parser.add_argument("--threads", type=int, help="of every library")
    words, command = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    arguments = parser.parse_args(words)
    if platform.machine() not in ("x86_64", "AMD64") and arguments.set != "native":
        print(f"no set {arguments.set} on {platform.machine()}", file=sys.stderr)
        return 2
    name = another() if arguments.set == "another" else arguments.set
    environment = variables(name, arguments.threads)
    found = in_force(environment)
    print(line(name, found), flush=True)
    if lacking := wrong(name, found):
        print(f"{name} is not in force: {'; '.join(lacking)}", file=sys.stderr)
        return 2
    return subprocess.run(command, env=environment).returncode if command else 0


if __name__ == "__main__":
    sys.exit(main())
