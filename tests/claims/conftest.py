"""What the tests of the ledger share: the checkpoint in use, and the models that are asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.claims.case import Case


@pytest.fixture(scope="session")
def case(checkpoint: Checkpoint) -> Iterator[Case]:
    with Case(checkpoint) as made:
        yield made
