"""The command that a reader of a refutation wants next."""

from __future__ import annotations

import shlex


def diagnosis(repeat: str) -> str | None:
    """The command that says what else is wrong with a port, if anything is; None where the run was
    not one of the command line.

    Args:
        repeat: the command that judges this port alone.
    """
    # A line of Python need not have the quotes of a shell.
    if not repeat.startswith("gpt-verify run"):
        return None
    kept = iter(shlex.split(repeat)[2:])
    asked = [word for word in kept if word != "--require" or not next(kept, None)]
    return shlex.join(["gpt-verify", "diagnose", *asked])
