"""What this installation can do, and whether the checkpoint that ships with it is intact.

The frameworks are asked in a child process, so that looking at them changes nothing here and a
framework that is broken breaks the child.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gpt_verify.errors import CheckpointError, GptVerifyError
from gpt_verify.process.children import output_of
from gpt_verify.text import one_line

#: Import name as people know it → distributions that provide it.
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "safetensors": ("safetensors",),
    "google-crc32c": ("google-crc32c",),
    "rich": ("rich",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos"),
    "pytest": ("pytest",),
}
_REQUIRED = ("numpy", "safetensors", "google-crc32c", "rich")

#: Beside the default checkpoint, in the format of ``sha256sum``.
MANIFEST = "SHA256SUMS"

_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "threads": torch.get_num_threads(),
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if cuda else None,
}))
"""


def version(name: str) -> str | None:
    """Version of an installed package, without importing it; None where it is not installed."""
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _torch_lines() -> Iterator[str]:
    try:
        status, output, last = output_of([sys.executable, "-c", _ASK_TORCH], 120)
        if status:
            reason = one_line(last) or f"exit status {status}"
            yield f"torch is installed and cannot be imported: {reason}"
            return
        answer = json.loads(output.splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:  # TimeoutError is an OSError
        yield f"torch is installed and does not answer: {one_line(error)}"
        return
    yield f"torch threads: {answer['threads']}"
    if answer["devices"]:
        yield f"cuda: {', '.join(answer['devices'])}"
        yield f"tf32 in matrix products: {'on' if answer['tf32'] else 'off'}"
    else:
        yield "cuda: no device"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_manifest(root: Path) -> int:
    """Compare every file under ``root`` with its manifest; returns how many there are.

    Raises:
        CheckpointError: a file is missing, changed, or not in the manifest.
    """
    manifest = root / MANIFEST
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CheckpointError(f"{manifest}: cannot be read ({error.strerror})") from error
    expected = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        expected[name] = digest
    present = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {
        MANIFEST
    }
    if missing := sorted(set(expected) - present):
        raise CheckpointError(f"{root}: missing: {', '.join(missing)}")
    if surplus := sorted(present - set(expected)):
        raise CheckpointError(f"{root}: not in {MANIFEST}: {', '.join(surplus)}")
    for name, digest in expected.items():
        if _sha256(root / name) != digest:
            raise CheckpointError(f"{root / name}: differs from {MANIFEST}")
    if not expected:
        raise CheckpointError(f"{manifest}: lists no file")
    return len(expected)


def check_default() -> str:
    """Verify the default checkpoint: its files, and that both of its formats hold the same bits.

    Raises:
        GptVerifyError: it is missing, damaged, or the two formats differ.
    """
    from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
    from gpt_verify.reference import parameter_count

    files = check_manifest(default_checkpoint().parent)
    ours = open_checkpoint(default_checkpoint("openai"))
    theirs = open_checkpoint(default_checkpoint("huggingface"))
    if ours.config != theirs.config:
        raise CheckpointError(f"{ours.path} and {theirs.path}: different sizes")
    for name in ours.tensors:
        if ours.tensors[name].tobytes() != theirs.tensors[name].tobytes():
            raise CheckpointError(f"{theirs.path}: {name} differs from {ours.path}")
    return f"intact ({files} files, {parameter_count(ours.config):,} parameters, both formats)"


def doctor() -> tuple[list[str], bool]:
    """``(lines to print, whether all is well)``."""
    from gpt_verify import __version__

    lines = [f"gpt-verify {__version__}", f"python {platform.python_version()} ({sys.executable})"]
    well = True
    for name in _DISTRIBUTIONS:
        found = version(name)
        lines.append(f"{name} {found or 'not installed'}")
        well = well and (found is not None or name not in _REQUIRED)
    lines.append(f"platform: {platform.platform()}, {platform.machine()}, {sys.byteorder}-endian")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    omp = os.environ.get("OMP_NUM_THREADS")
    lines.append(
        f"processors: {usable} usable of {os.cpu_count()}, OMP_NUM_THREADS {omp or 'unset'}"
    )
    if version("torch") is not None:
        lines.extend(_torch_lines())
    try:
        lines.append(f"default checkpoint: {check_default()}")
    except GptVerifyError as error:
        lines.append(f"default checkpoint: DAMAGED: {one_line(error)}")
        well = False
    return lines, well
