"""What TensorFlow says in a page, in a line."""

from __future__ import annotations


def reason(message: str) -> str:
    """The sentence of a message that says what happened.

    TensorFlow puts it after the place in our code (``Node: …``) and before the stack.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    after = [i + 1 for i, line in enumerate(lines) if line.startswith("Node:")]
    chosen = lines[after[0]] if after and after[0] < len(lines) else lines[0] if lines else ""
    return chosen
