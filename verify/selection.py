"""What is compared when nobody says what: every built-in port that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verify.errors import GptVerifyError, MissingDependency

if TYPE_CHECKING:
    from reference.config import Config


def is_default(checkpoint: Path) -> bool:
    """Whether this directory is the checkpoint that ships with the package."""
    from verify.checkpoint import default_checkpoint

    return checkpoint.resolve() == default_checkpoint().resolve()


def config_of(checkpoint: Path) -> Config | None:
    """None of a checkpoint that cannot be read: whoever runs a port on it says why."""
    from verify.checkpoint import open_checkpoint

    try:
        return open_checkpoint(checkpoint).config
    except GptVerifyError:
        return None


def default_ports(checkpoint: Path, dtype: str | None) -> tuple[list[str], list[str]]:
    """``(specifications to run, one line for each built-in port that cannot run)``.

    On the default checkpoint the Hugging Face directory beside it is a port too, with weights of
    its own, so that two sides are really loaded side by side.

    Raises:
        MissingDependency: no built-in port can run, so that nothing would be compared.
    """
    from verify.checkpoint import default_checkpoint
    from verify.ports.registry import builtin_ports

    installed, missing, extras = [], [], []
    for port in builtin_ports(config_of(checkpoint)):
        if not port.by_default:
            continue
        why = port.missing
        if why is None and port.name == "openai-tf" and dtype not in (None, "float32"):
            why = f"computes in float32, and {dtype} was asked for"
        if why is None:
            installed.append(port.name)
        elif port.extra not in ("torch", "tensorflow"):  # nobody has all of these
            extras.append(port.name)
        else:
            missing.append(f"{port.name}: {why}")
    if not installed:
        raise MissingDependency(f"no built-in port can run ({'; '.join(missing)})")
    if extras:
        missing.append(f"{', '.join(extras)}: not installed (gpt-verify ports)")
    if is_default(checkpoint) and any(name.startswith("huggingface") for name in installed):
        installed.append(f"huggingface={default_checkpoint('huggingface')}")
    return installed, missing
