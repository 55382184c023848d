"""What is asked of a command that met something hostile, whatever it met."""

from __future__ import annotations

from collections.abc import Collection

#: Seconds that one may take.
LONGEST = 60


def complaints(
    status: int | None, text: str, megabytes: float, statuses: Collection[int], allowed: float
) -> list[str]:
    """What is not as it should be; empty where all is.

    Args:
        status: of the command; None where it was ended for taking too long.
        text: its standard error.
        megabytes: the most that it had resident.
        statuses: with which it may end.
        allowed: how many megabytes it may take.
    """
    wrong, lines = [], text.splitlines()
    if status is None:
        wrong.append(f"ran for more than {LONGEST} s")
    elif status not in statuses:
        wrong.append(f"status {status}")
    elif status == 2 and (len(lines) != 1 or not lines[0].startswith("gpt-verify: ")):
        wrong.append(f"{len(lines)} lines on standard error")
    if any("bug in gpt-verify" in line or "Traceback" in line for line in lines):
        wrong.append("an error of the tool")
    if lines and (len(lines[-1]) > 2000 or not lines[-1].isprintable()):
        wrong.append("a line that no terminal should see")
    if megabytes > allowed:
        wrong.append(f"{megabytes:.0f} MB, of {allowed:.0f}")
    return wrong
