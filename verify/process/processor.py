"""Which processor computes, and with which of its instructions: what a figure was measured on.

The last bit of a product hangs on the library, on the instructions that it picks for the
processor, and on the number of threads. No framework is imported for this: libraries are asked that
are loaded.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

#: Variables that choose instructions and threads, each of one library.
SETTINGS = (
    "OPENBLAS_CORETYPE",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "NPY_DISABLE_CPU_FEATURES",
    "TF_ENABLE_ONEDNN_OPTS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
_CPUINFO = Path("/proc/cpuinfo")


def processor() -> dict[str, Any]:
    """The processor as a report describes it, in plain data.

    ``blas`` are the libraries of linear algebra that show themselves (MKL in torch does not);
    ``numpy`` are the instructions beyond the baseline that NumPy's own loops use.
    """
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    found: dict[str, Any] = {
        "vendor": _named("vendor_id") or platform.machine(),
        "model": _named("model name") or platform.processor() or platform.machine(),
        "blas": [
            {
                "library": pool["internal_api"],
                "version": pool["version"],
                "architecture": pool.get("architecture"),
                "threads": pool["num_threads"],
            }
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "numpy": list(simd.get("found", [])),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "threads": torch.get_num_threads(),
        }
    return found


def _named(key: str) -> str | None:
    """The value of the key for the first processor, where the system tells it (Linux); None
    elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(values, None)
