"""The campaigns of hostile files and ports count what goes wrong, each in its way."""

from __future__ import annotations

import sys

import pytest
from command import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from hostile import complaints  # needs the path

LINE = "gpt-verify: x.json: not JSON\n"


def test_what_is_as_it_should_be() -> None:
    assert complaints(2, LINE, 10.0, (0, 2), 20.0) == []
    assert complaints(0, "", 10.0, (0, 2), 20.0) == []


@pytest.mark.parametrize(
    ("status", "text", "megabytes"),
    [
        (None, "", 1.0),
        (1, LINE, 1.0),
        (-9, "", 1.0),
        (2, "", 1.0),
        (2, LINE * 2, 1.0),
        (2, "something else\n", 1.0),
        (2, "gpt-verify: KeyError: this is a bug in gpt-verify\n", 1.0),
        (0, "Traceback (most recent call last):\n", 1.0),
        (2, "gpt-verify: \x1b[2J\n", 1.0),
        (2, f"gpt-verify: {'x' * 3000}\n", 1.0),
        (2, LINE, 21.0),
    ],
)
def test_what_is_not(status: int | None, text: str, megabytes: float) -> None:
    assert len(complaints(status, text, megabytes, (0, 2), 20.0)) == 1
