"""What the faults would do to the logits of the one checkpoint is computed once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpt_verify.diagnosis.logits import deviations_kept


@pytest.fixture(scope="session", autouse=True)
def shared_deviations() -> Iterator[None]:
    with deviations_kept():
        yield
