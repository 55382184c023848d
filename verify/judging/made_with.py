"""What a figure measures: the laws that there were, the numerics, the known faults.

Whoever writes figures down stores this beside them (``gpt_verify.judging.run.environment``). A
figure whose laws or numerics are not those of today is older than what it measures, and its page
says so (``scripts/figures.py``).
"""

from __future__ import annotations

import hashlib
from typing import Any

from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.table import expected_checks
from gpt_verify.numerics.version import VERSION
from gpt_verify.reference.config import Config

#: Any model has every law; this one is small.
_CONFIG = Config(n_vocab=3, n_ctx=2, n_embd=2, n_head=1, n_layer=1)


def made_with() -> dict[str, Any]:
    """Plain data: ids of all laws, the version of the numerics, a digest of the names of the faults
    that GPT-2 or GPT can have, of which the figures are."""
    of_gpt = [n for n, f in CATALOGUE.items() if f.inject is not None or f.in_family is None]
    names = "\n".join(sorted(of_gpt))
    return {
        "laws": sorted({law for law, _ in expected_checks(_CONFIG)}),
        "numerics": VERSION,
        "faults": hashlib.sha256(names.encode()).hexdigest()[:12],
    }
