"""What a user asks for becomes a request: the checkpoint, opened once, and the ports to run on it.

Every command and the pytest plugin come this way, so that the same words mean the same ports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_verify.errors import MissingDependency
from gpt_verify.judging.options import Options
from gpt_verify.judging.repeat import repeat_call, repeat_command

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint
    from gpt_verify.port import Port


@dataclass(frozen=True)
class Request:
    """The request of a run: the checkpoint, the ports, and the options.

    Attributes:
        checkpoint: opened.
        specs: the ports, each specification of exactly one.
        options: what to run them on, and how.
        path: the directory of the checkpoint as it was given; None where the default one is taken.
        ports: the specifications as they were given; empty where the default ones are taken.
        missing: a line for each default port that cannot run.
        held: name → what is judged under it, of ports that were handed over as objects.
    """

    checkpoint: Checkpoint
    specs: tuple[str, ...]
    options: Options
    path: Path | None = None
    ports: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    held: Mapping[str, Any] = field(default_factory=dict)

    def alone(self, spec: str) -> Request:
        """The same for one port."""
        return replace(self, specs=(spec,), ports=(spec,), missing=())

    @property
    def in_memory(self) -> bool:
        """Whether one of the ports is an object, which no command line can name."""
        return not self.held.keys().isdisjoint(self.ports)

    def repeat(self, command: str = "run", **more: object) -> str:
        """The command line that asks for the same. It is as short as what was typed: ports that
        were chosen for the user are chosen again. What is in memory has none, and is asked for in
        Python."""
        if self.in_memory:
            held = self.held.keys()
            return repeat_call(self.path, self.ports, held, self.options, command, **more)
        return repeat_command(self.path, self.ports, self.options, command)

    def repeats(self) -> list[str]:
        """The command line of each port alone."""
        return [self.alone(spec).repeat() for spec in self.specs]

    def builder(self, spec: str) -> Callable[[], Port]:
        """How to make one of the ports, from its specification or from what was handed over."""
        from gpt_verify.ports import registry

        dtype: Any = self.options.dtype
        if spec not in self.held:
            return partial(registry.build, spec, self.checkpoint, dtype, self.options.device)
        held, device = self.held[spec], self.options.device
        return lambda: registry.port_of(spec, lambda: held, self.checkpoint, dtype, device)


def request(
    path: Path | None,
    ports: Sequence[Any],
    options: Options,
    *,
    by_default: bool = True,
    opened: Checkpoint | None = None,
) -> Request:
    """Open the checkpoint and choose the ports.

    Args:
        path: a directory of either format; None takes the one that ships with the package.
        ports: as after ``--port``, where a specification may stand for several ports; or objects:
            a port, a module or a function.
        options: what to run them on, and how.
        by_default: whether no port stands for the default ones.
        opened: the checkpoint in that directory, where it has been opened before.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        MissingDependency: no port was given, and no built-in one can run.
        UsageError: something is required that cannot be.
    """
    from gpt_verify.checkpoint import open_checkpoint
    from gpt_verify.checkpoint.finite import need_finite
    from gpt_verify.judging.requirements import requirements
    from gpt_verify.ports.registry import expand
    from gpt_verify.process.scratch import sweep

    requirements(options.require)
    sweep()  # what earlier runs that were killed have left
    if opened is None:
        opened = open_checkpoint(path, options.ignore_keys)
        need_finite(opened)
    chosen, missing = list(ports), list[str]()
    if by_default and not ports:
        chosen, missing = default_ports(opened, options.dtype)
    words = [port for port in chosen if isinstance(port, str)]
    meant = {word: expand([word], opened.config.architecture) for word in words}
    taken = {*words, *(spec for each in meant.values() for spec in each)}
    held = _named([port for port in chosen if not isinstance(port, str)], taken)
    names = iter(held)
    specs: list[str] = []
    for port in chosen:
        # What is handed over is never a specification, whatever it is called.
        specs += meant[port] if isinstance(port, str) else [next(names)]
    names = iter(held)
    given = [port if isinstance(port, str) else next(names) for port in ports]
    return Request(opened, tuple(specs), options, path, tuple(given), tuple(missing), held)


def _named(objects: Sequence[Any], taken: Set[str]) -> dict[str, Any]:
    """Each under a name of its own: that of the port, the function or the class; numbered where
    it is ``taken`` by a specification, or by another one."""
    named: dict[str, Any] = {}
    for held in objects:
        called = (getattr(held, attribute, None) for attribute in ("name", "__name__"))
        # A module's ``name`` may be a part of it.
        own = next((n for n in called if n and isinstance(n, str)), type(held).__name__)
        names = (f"{own} {n}" if n > 1 else own for n in count(1))
        named[next(name for name in names if name not in named and name not in taken)] = held
    return named


def is_default(checkpoint: Path) -> bool:
    """Whether this directory is the checkpoint that ships with the package."""
    from gpt_verify.checkpoint import default_checkpoint

    return checkpoint.resolve() == default_checkpoint().resolve()


def default_ports(checkpoint: Checkpoint, dtype: str | None) -> tuple[list[str], list[str]]:
    """``(specifications to run, one line for each built-in port that cannot run)``.

    On the default checkpoint the Hugging Face directory beside it is a port too, with weights of
    its own, so that two sides are really loaded side by side.

    Raises:
        MissingDependency: no built-in port can run, so that nothing would be compared.
    """
    from gpt_verify.checkpoint import default_checkpoint
    from gpt_verify.ports.registry import builtin_ports

    installed, missing, extras = [], [], []
    for port in builtin_ports(checkpoint.config):
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
    if is_default(checkpoint.path) and any(name.startswith("huggingface") for name in installed):
        installed.append(f"huggingface={default_checkpoint('huggingface')}")
    return installed, missing
