"""What is compared when nobody says what: every built-in port that is installed."""

from __future__ import annotations

from pathlib import Path

from verify.errors import MissingDependency


def is_default(checkpoint: Path) -> bool:
    """Whether this directory is the checkpoint that ships with the package."""
    from verify.checkpoint import default_checkpoint

    return checkpoint.resolve() == default_checkpoint().resolve()


def default_ports(checkpoint: Path) -> tuple[list[str], list[str]]:
    """``(specifications to run, one line for each built-in port that cannot run)``.

    On the default checkpoint the Hugging Face directory beside it is a port too, with weights of
    its own, so that two sides are really loaded side by side.

    Raises:
        MissingDependency: no built-in port is installed, so that nothing would be compared.
    """
    from verify.checkpoint import default_checkpoint
    from verify.ports.registry import builtin_ports

    ports = builtin_ports()
    installed = [port.name for port in ports if port.missing is None]
    missing = [f"{port.name}: {port.missing}" for port in ports if port.missing is not None]
    if not installed:
        raise MissingDependency(f"no built-in port is installed ({'; '.join(missing)})")
    if is_default(checkpoint) and any(name.startswith("huggingface") for name in installed):
        installed.append(f"huggingface={default_checkpoint('huggingface')}")
    return installed, missing


def expand(spec: str) -> list[str]:
    """One specification for each port that this one stands for.

    ``huggingface`` stands for ``huggingface-eager`` and ``huggingface-sdpa``, and
    ``huggingface=DIR`` for both of them with weights of their own.
    """
    from verify.ports.registry import builtin_ports

    family, equals, weights = spec.partition("=")
    names = [port.name for port in builtin_ports()]
    if family in names:
        return [spec]
    members = [f"{name}{equals}{weights}" for name in names if name.startswith(f"{family}-")]
    return members or [spec]
