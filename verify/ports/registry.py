"""What a user writes after ``--port`` becomes ports that can be run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gpt_verify.checkpoint import Checkpoint, Tensors
from gpt_verify.checkpoint.handed import Handed, handed_out
from gpt_verify.errors import GptVerifyError, MissingDependency, PortError, located
from gpt_verify.ports.builtin import BUILTIN, only_float32_on_cpu
from gpt_verify.ports.builtin import PortInfo as PortInfo
from gpt_verify.ports.builtin import builtin_ports as builtin_ports
from gpt_verify.ports.named import require_named
from gpt_verify.text import nearest

if TYPE_CHECKING:
    from gpt_verify.port import Dtype, Port


@runtime_checkable
class Placed(Protocol):
    """A port that finds its parameters and sites by the tensors of a checkpoint."""

    @property
    def placed_by(self) -> Tensors: ...

    def place_by(self, tensors: Tensors) -> None: ...


@runtime_checkable
class BuiltAgain(Protocol):
    """A port that can be more where its factory is called again."""

    def build_again(self, make: Callable[[], Any]) -> None: ...


def expand(specs: list[str], architecture: str = "gpt2") -> list[str]:
    """``huggingface`` and ``huggingface=SOURCE`` stand for one port for each attention that
    transformers has for the architecture."""
    expanded = []
    for spec in specs:
        name, _, source = spec.partition("=")
        if name == "huggingface":
            suffix = f"={source}" if source else ""
            attentions = [f"huggingface-{attention}" for attention in ("eager", "sdpa")]
            have = [n for n in attentions if BUILTIN[n].has(architecture)]
            expanded += [f"{name}{suffix}" for name in have]
        else:
            expanded.append(spec)
    return expanded


def build(spec: str, checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    """One port from one spec: a built-in name, ``huggingface-eager=SOURCE``, ``process=COMMAND``,
    the address of a server, or a factory.

    Args:
        spec: what stands after ``--port``.
        checkpoint: what the port is a port of, and its weights where it has none of its own.
        dtype: the precision to run it in; its own where None.
        device: ``cpu`` or ``cuda``, as torch names it.

    Raises:
        UsageError: no such built-in port, or a spec of no known form.
        MissingDependency: what the port needs is not installed.
        PortError: the factory cannot be imported, raises, or returns something that is no port.
    """
    require_named(spec)
    name, _, source = spec.partition("=")
    if source and name.startswith("huggingface-") and name in BUILTIN:
        from gpt_verify.ports.huggingface import huggingface

        attention = name.removeprefix("huggingface-")
        return huggingface(checkpoint, attention, dtype, device, source)  # type: ignore[arg-type]
    if spec.startswith(("http://", "https://")):
        from gpt_verify.ports.remote.http import HttpPort

        return HttpPort(spec, dtype, vocabulary=checkpoint.config.n_vocab)
    if name == "process":
        from gpt_verify.ports.remote.process import ProcessPort

        return ProcessPort(source, checkpoint, spec, dtype)
    if name == "onnx" and source:
        from gpt_verify.ports.onnx_file import OnnxPort

        only_float32_on_cpu(spec, dtype, device)
        return OnnxPort(Path(source), checkpoint, spec, source)
    if spec in BUILTIN:
        adapter = BUILTIN[spec]
        if why := adapter.missing:
            raise MissingDependency(f"{spec}: {why}")
        if why := adapter.unfit(checkpoint.config):
            raise PortError(f"{spec}: {why}")
        return adapter.build(checkpoint, dtype, device)
    return _from_factory(spec, checkpoint, dtype, device)


def _from_factory(spec: str, checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    factory = _import_factory(spec)
    handed = handed_out(checkpoint)
    # A factory may want to know the precision that is asked for, and says so by its name.
    asked = {"dtype": dtype} if _takes(factory, "dtype") else {}
    port = port_of(spec, partial(factory, handed, **asked), checkpoint, dtype, device)
    # One of ours that the factory has made is judged by what it was not handed.
    if isinstance(port, Placed) and port.placed_by is handed.tensors:
        port.place_by(checkpoint.tensors)
    assert isinstance(handed.tensors, Handed)
    port.taken = handed.tensors.taken
    if isinstance(port, BuiltAgain) and checkpoint.config.own is not None:
        wide = {"dtype": "float32"} if dtype is not None and asked else asked
        port.build_again(lambda: factory(handed_out(checkpoint), **wide))
    # On the factory, because a function or a module has no place to say it.
    port.waivers = {**getattr(factory, "waivers", {}), **port.waivers}
    return port


def _takes(factory: Callable[..., Any], name: str) -> bool:
    """Whether it has a parameter of this name; of what is compiled, nobody knows."""
    try:
        parameter = inspect.signature(factory).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def port_of(
    spec: str,
    make: Callable[[], Any],
    checkpoint: Checkpoint,
    dtype: Dtype | None,
    device: str,
) -> Port:
    """Make a port of what a factory returns.

    Args:
        spec: its name.
        make: returns a ``Port``, a ``torch.nn.Module``, or a function from tokens to logits.
        checkpoint: what it is judged against.
        dtype: the precision to judge it in; None leaves it as it declares itself.
        device: where to run a module.

    Raises:
        PortError: the factory raises, or returns something that is no port, or a ``Port`` that
            computes in another precision.
    """
    from gpt_verify.port import Port

    try:
        made = make()
    except (GptVerifyError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        raise PortError(f"{spec}: the factory raised {located(e)}") from e
    if isinstance(made, Port):
        if not getattr(made, "name", ""):
            made.name = spec
        if dtype not in (None, made.dtype):
            raise PortError(f"{spec}: computes in {made.dtype}; {dtype} was asked for")
        return made
    # A module can only have come from an imported torch, which need not be imported to ask.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(made, torch.nn.Module):
        from gpt_verify.ports.torch.module import TorchModule

        return TorchModule(made, checkpoint, spec, dtype, device)
    if callable(made):
        from gpt_verify.ports.callable import CallablePort

        return CallablePort(made, spec, dtype)
    raise PortError(
        f"{spec}: the factory returned {type(made).__name__}; "
        "it should return a function, a torch.nn.Module or a Port"
    )


def _import_factory(spec: str) -> Callable[[Checkpoint], Any]:
    where, _, name = spec.rpartition(":")
    try:
        module = (
            _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        )
    except FileNotFoundError as e:
        raise PortError(f"{spec}: {where}: no such file") from e
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        raise PortError(f"{spec}: importing {where} raised {located(e)}{_a_file(where)}") from e
    factory = getattr(module, name, None)
    if not callable(factory):
        names = sorted(n for n, _ in _functions(module))
        offered = f"; it has {', '.join(names)}" if names else ""
        hint = nearest(name, names)
        raise PortError(f"{spec}: no function {name} in {where}{hint or offered}")
    return factory  # type: ignore[no-any-return]


def _a_file(where: str) -> str:
    """What was meant by a module of which there is a file of that name."""
    file = f"{where.replace('.', '/')}.py"
    return f"; did you mean {file}?" if Path(file).is_file() else ""


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"gpt_verify_port_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    # So that the port's file can import its neighbours, as it can when it is run.
    sys.path.insert(0, os.fspath(path.parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(os.fspath(path.parent))
    return module


def _functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_":
            yield name, value
