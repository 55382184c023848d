"""The law of the batch."""

from __future__ import annotations

from gpt_verify.laws.batch.check import check_batch, check_sizes
from gpt_verify.laws.batch.faults import FAULTS
from gpt_verify.laws.law import Law, Part

LAW = Law(
    "Batch",
    60,
    (
        Part(
            "batch",
            check_batch,
            "a sequence has the same logits alone, in a batch, and in another order",
        ),
        Part(
            "batch.sizes",
            check_sizes,
            "the same in batches of up to 33 rows, where kernels change their tiles",
        ),
    ),
    FAULTS,
)
