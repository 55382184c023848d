"""From what a user writes after ``--port`` to ports that can be run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verify.checkpoint import Checkpoint
from verify.errors import GptVerifyError, MissingDependency, PortError, UsageError

if TYPE_CHECKING:
    from verify.ports.port import Dtype, Port


@dataclass(frozen=True)
class PortInfo:
    """A built-in port.

    Attributes:
        name: what ``--port`` takes.
        summary: one line.
        missing: why it cannot be used here, or None.
        by_default: ``run`` compares it when no port is named.
        extra: of ``pip install 'gpt-verify[extra]'``, that brings what it needs.
    """

    name: str
    summary: str
    missing: str | None
    by_default: bool = True
    extra: str = "all"


Build = Callable[[Checkpoint, "Dtype | None", str], "Port"]


@dataclass(frozen=True)
class _Adapter:
    """How a built-in port comes about.

    Attributes:
        summary: one line.
        packages: modules that it needs; ``c++`` is a compiler.
        extra: of ``pip install 'gpt-verify[extra]'``.
        build: makes it.
        by_default: it is among the ports that ``run`` compares when none is named.
    """

    summary: str
    packages: tuple[str, ...]
    extra: str
    build: Build
    by_default: bool = True

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here, found without importing anything."""
        for package in self.packages:
            if package == "c++":
                if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
                    return "there is no C++ compiler"
            elif importlib.util.find_spec(package) is None:
                name = package.replace("_", "-")
                return f"{name} is not installed: pip install 'gpt-verify[{self.extra}]'"
        return None


def _openai_tf(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from verify.ports.openai_tf import openai_tf

    if dtype not in (None, "float32"):
        raise PortError(f"openai-tf: computes in float32; {dtype} was asked for")
    return openai_tf(checkpoint, device)


def _huggingface(attention: str) -> Build:
    def build(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
        from verify.ports.huggingface import huggingface

        return huggingface(checkpoint, attention, dtype, device)  # type: ignore[arg-type]

    return build


def _compiled(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from verify.ports.compiled import compiled

    return compiled(checkpoint, dtype, device)


def _onnx(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from verify.ports.onnx_file import exported

    _only_float32_on_cpu("onnx", dtype, device)
    return exported(checkpoint)


def _only_float32_on_cpu(name: str, dtype: Dtype | None, device: str) -> None:
    if dtype not in (None, "float32") or device != "cpu":
        raise PortError(f"{name}: computes in float32 on the CPU; {dtype}, {device} was asked for")


def _ctranslate2(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from verify.ports.engine import ctranslate2

    return ctranslate2(checkpoint, dtype, device)


def _keras_hub(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from verify.ports.engine import keras_hub

    _only_float32_on_cpu("keras-hub", dtype, device)
    return keras_hub(checkpoint, dtype, device)


def _transformer_lens(processed: bool) -> Build:
    def build(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
        from verify.ports import transformer_lens

        make = transformer_lens.processed if processed else transformer_lens.transformer_lens
        return make(checkpoint, dtype, device)

    return build


_BUILTIN: dict[str, _Adapter] = {
    "huggingface-eager": _Adapter(
        "transformers' GPT2LMHeadModel, attention written out",
        ("torch", "transformers"),
        "torch",
        _huggingface("eager"),
    ),
    "huggingface-sdpa": _Adapter(
        "transformers' GPT2LMHeadModel, torch's fused attention",
        ("torch", "transformers"),
        "torch",
        _huggingface("sdpa"),
    ),
    "compiled": _Adapter(
        "the same, compiled by torch.compile, which takes a minute or more",
        ("torch", "transformers", "c++"),
        "torch",
        _compiled,
        by_default=False,
    ),
    "transformer-lens": _Adapter(
        "TransformerLens' bridge to transformers' model",
        ("transformer_lens",),
        "transformer-lens",
        _transformer_lens(processed=False),
    ),
    "transformer-lens-processed": _Adapter(
        "the same with layer norms folded and weights centred",
        ("transformer_lens",),
        "transformer-lens",
        _transformer_lens(processed=True),
    ),
    "onnx": _Adapter(
        "transformers' model, exported by torch and run by ONNX Runtime",
        ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
        "onnx",
        _onnx,
    ),
    "ctranslate2": _Adapter(
        "CTranslate2, with transformers' model as its converter leaves it",
        ("torch", "transformers", "ctranslate2"),
        "ctranslate2",
        _ctranslate2,
    ),
    "keras-hub": _Adapter(
        "KerasHub's GPT-2 on TensorFlow, as its converter loads it",
        ("keras_hub", "tensorflow"),
        "keras-hub",
        _keras_hub,
    ),
    # Last: its process imports TensorFlow while the others are judged.
    "openai-tf": _Adapter(
        "the published architecture as a TensorFlow graph, restored by TensorFlow's Saver",
        ("tensorflow",),
        "tensorflow",
        _openai_tf,
    ),
}


def builtin_ports() -> list[PortInfo]:
    """Every built-in port, without importing what it needs."""
    return [
        PortInfo(name, adapter.summary, adapter.missing, adapter.by_default, adapter.extra)
        for name, adapter in _BUILTIN.items()
    ]


def expand(specs: list[str]) -> list[str]:
    """``huggingface`` and ``huggingface=SOURCE`` stand for one port for each attention."""
    expanded = []
    for spec in specs:
        name, _, source = spec.partition("=")
        if name == "huggingface":
            suffix = f"={source}" if source else ""
            expanded += [f"huggingface-{a}{suffix}" for a in ("eager", "sdpa")]
        else:
            expanded.append(spec)
    return expanded


def build(spec: str, checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    """One port from one spec: a built-in name, ``huggingface-eager=SOURCE``, ``process=COMMAND``,
    the address of a server, or a factory.

    Raises:
        UsageError: no such built-in port, or a spec of no known form.
        MissingDependency: what the port needs is not installed.
        PortError: the factory cannot be imported, raises, or returns something that is no port.
    """
    name, _, source = spec.partition("=")
    if source and name.startswith("huggingface-") and name in _BUILTIN:
        from verify.ports.huggingface import huggingface

        attention = name.removeprefix("huggingface-")
        return huggingface(checkpoint, attention, dtype, device, source)  # type: ignore[arg-type]
    if spec.startswith(("http://", "https://")):
        from verify.ports.remote.http import HttpPort

        return HttpPort(spec, dtype)
    if name == "process":
        from verify.ports.remote.process import ProcessPort

        return ProcessPort(source, checkpoint, spec, dtype)
    if name == "onnx" and source:
        from verify.ports.onnx_file import OnnxPort

        _only_float32_on_cpu(spec, dtype, device)
        if not Path(source).is_file():
            raise PortError(f"{spec}: no such file")
        return OnnxPort(Path(source), checkpoint, spec, source)
    if spec in _BUILTIN:
        adapter = _BUILTIN[spec]
        if why := adapter.missing:
            raise MissingDependency(f"{spec}: {why}")
        return adapter.build(checkpoint, dtype, device)
    if ":" not in spec:
        known = ", ".join(["huggingface", *_BUILTIN])
        raise UsageError(
            f"--port {spec}: not FILE.py:factory, package.module:factory, process=COMMAND, "
            f"http://…, or one of {known}"
        )
    return _from_factory(spec, checkpoint, dtype, device)


def _from_factory(spec: str, checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    factory = _import_factory(spec)
    port = _made(spec, factory, checkpoint, dtype, device)
    # On the factory, because a function or a module has no place to say it.
    port.waivers = {**getattr(factory, "waivers", {}), **port.waivers}
    return port


def _made(
    spec: str,
    factory: Callable[[Checkpoint], Any],
    checkpoint: Checkpoint,
    dtype: Dtype | None,
    device: str,
) -> Port:
    from verify.ports.port import Port

    try:
        made = factory(checkpoint)
    except GptVerifyError:
        raise
    except Exception as e:
        raise PortError(f"{spec}: the factory raised {_one_line(e)}") from e
    if isinstance(made, Port):
        if not getattr(made, "name", ""):
            made.name = spec
        return made
    # A module can only have come from an imported torch, which need not be imported to ask.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(made, torch.nn.Module):
        from verify.ports.torch_module import TorchModule

        return TorchModule(made, checkpoint, spec, dtype, device)
    if callable(made):
        from verify.ports.callable import CallablePort

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
    except Exception as e:
        raise PortError(f"{spec}: importing {where} raised {_one_line(e)}") from e
    factory = getattr(module, name, None)
    if not callable(factory):
        names = sorted(n for n, _ in _functions(module))
        offered = f"; it has {', '.join(names)}" if names else ""
        raise PortError(f"{spec}: no function {name} in {where}{offered}")
    return factory  # type: ignore[no-any-return]


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


def _one_line(e: BaseException) -> str:
    first = (str(e).strip().splitlines() or [""])[0]
    return f"{type(e).__name__}: {first}" if first else type(e).__name__
