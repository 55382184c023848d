"""Is this checkpoint one that OpenAI released? Only there are claims about weights asserted."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.reference.config import RELEASED

#: sha256 of the vocabulary files that all four released models came with. (Those of the weights
#: are recorded in each report; a synthetic model of the same size has no such vocabulary.)
VOCABULARY = {
    "encoder": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def released(checkpoint: Checkpoint) -> str | None:
    """``124M`` … ``1558M``, by its sizes and its vocabulary files; None for any other."""
    size = next((name for name, sizes in RELEASED.items() if sizes == checkpoint.config), None)
    files = {"encoder": checkpoint.encoder, "merges": checkpoint.merges}
    if size is None or any(_sha256(file) != VOCABULARY[name] for name, file in files.items()):
        return None
    return size


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
