"""The built-in ports: what each is called, what it needs, and of which models it is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.errors import PortError, install
from gpt_verify.reference.config import Config

if TYPE_CHECKING:
    from gpt_verify.port import Dtype, Port


@dataclass(frozen=True)
class PortInfo:
    """A built-in port.

    Attributes:
        name: what ``--port`` takes.
        summary: one line.
        missing: why it cannot be used here, or None.
        by_default: ``run`` compares it when no port is named.
        extra: of ``pip install '.[extra]'``, that brings what it needs.
    """

    name: str
    summary: str
    missing: str | None
    by_default: bool = True
    extra: str = "all"


Build = Callable[[Checkpoint, "Dtype | None", str], "Port"]


@dataclass(frozen=True)
class Adapter:
    """The record of a built-in port: what it needs, and who makes it.

    Attributes:
        summary: one line.
        packages: modules that it needs; ``c++`` is a compiler.
        extra: of ``pip install '.[extra]'``.
        build: makes it.
        by_default: it is among the ports that ``run`` compares when none is named.
        architectures: those that it has, of ``reference.config.ARCHITECTURES``.
        untied: it can have a head of its own.
        attention: what it asks the families of transformers for, of which it has those that have
            it; nothing where it has none.
    """

    summary: str
    packages: tuple[str, ...]
    extra: str
    build: Build
    by_default: bool = True
    architectures: tuple[str, ...] = ("gpt2",)
    untied: bool = False
    attention: str = ""

    def has(self, architecture: str) -> bool:
        """Whether it has models of such a kind."""
        if architecture in FAMILIES:
            return self.attention in FAMILIES[architecture].attention
        return architecture in self.architectures

    def unfit(self, config: Config) -> str | None:
        """The reason why it is no port of such a model."""
        if not self.has(config.architecture):
            return f"has no {config.architecture}, which the checkpoint is"
        if not (config.tied or self.untied or config.own is not None):
            return "has no head of its own, as the checkpoint does"
        return None

    @property
    def missing(self) -> str | None:
        """The reason why it cannot be used here, found without importing anything."""
        for package in self.packages:
            if package == "c++":
                if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
                    return "there is no C++ compiler"
            elif importlib.util.find_spec(package) is None:
                name = package.replace("_", "-")
                return f"{name} is not installed: {install(self.extra)}"
        return None


def _openai_tf(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from gpt_verify.ports.openai_tf import openai_tf

    if dtype not in (None, "float32"):
        raise PortError(f"openai-tf: computes in float32; {dtype} was asked for")
    return openai_tf(checkpoint, device)


def _huggingface(attention: str) -> Build:
    def build(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
        from gpt_verify.ports.huggingface import huggingface

        return huggingface(checkpoint, attention, dtype, device)  # type: ignore[arg-type]

    return build


def _compiled(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from gpt_verify.ports.compiled import compiled

    return compiled(checkpoint, dtype, device)


def _onnx(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from gpt_verify.ports.onnx_file import exported

    only_float32_on_cpu("onnx", dtype, device)
    return exported(checkpoint)


def only_float32_on_cpu(name: str, dtype: Dtype | None, device: str) -> None:
    if dtype not in (None, "float32") or device != "cpu":
        raise PortError(f"{name}: computes in float32 on the CPU; {dtype}, {device} was asked for")


def _ctranslate2(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from gpt_verify.ports.engine import ctranslate2

    return ctranslate2(checkpoint, dtype, device)


def _keras_hub(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
    from gpt_verify.ports.engine import keras_hub

    only_float32_on_cpu("keras-hub", dtype, device)
    return keras_hub(checkpoint, dtype, device)


def _transformer_lens(processed: bool) -> Build:
    def build(checkpoint: Checkpoint, dtype: Dtype | None, device: str) -> Port:
        from gpt_verify.ports import transformer_lens

        make = transformer_lens.processed if processed else transformer_lens.transformer_lens
        return make(checkpoint, dtype, device)

    return build


BUILTIN: dict[str, Adapter] = {
    "huggingface-eager": Adapter(
        "transformers' GPT2LMHeadModel or OpenAIGPTLMHeadModel, attention written out",
        ("torch", "transformers"),
        "torch",
        _huggingface("eager"),
        architectures=("gpt2", "openai-gpt"),
        untied=True,
        attention="eager",
    ),
    "huggingface-sdpa": Adapter(
        "transformers' GPT2LMHeadModel, torch's fused attention",
        ("torch", "transformers"),
        "torch",
        _huggingface("sdpa"),
        untied=True,
        attention="sdpa",
    ),
    "compiled": Adapter(
        "the same, compiled by torch.compile, which takes a minute or more",
        ("torch", "transformers", "c++"),
        "torch",
        _compiled,
        by_default=False,
        untied=True,
    ),
    "transformer-lens": Adapter(
        "TransformerLens' bridge to transformers' model",
        ("transformer_lens",),
        "transformer-lens",
        _transformer_lens(processed=False),
    ),
    "transformer-lens-processed": Adapter(
        "the same with layer norms folded and weights centred",
        ("transformer_lens",),
        "transformer-lens",
        _transformer_lens(processed=True),
    ),
    "onnx": Adapter(
        "transformers' model, exported by torch and run by ONNX Runtime",
        ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
        "onnx",
        _onnx,
    ),
    "ctranslate2": Adapter(
        "CTranslate2, with transformers' model as its converter leaves it",
        ("torch", "transformers", "ctranslate2"),
        "ctranslate2",
        _ctranslate2,
    ),
    "keras-hub": Adapter(
        "KerasHub's GPT-2 on TensorFlow, as its converter loads it",
        ("keras_hub", "tensorflow"),
        "keras-hub",
        _keras_hub,
    ),
    # Last: its process imports TensorFlow while the others are judged.
    "openai-tf": Adapter(
        "the published architecture as a TensorFlow graph, restored by TensorFlow's Saver",
        ("tensorflow",),
        "tensorflow",
        _openai_tf,
    ),
}


def builtin_ports(config: Config | None = None) -> list[PortInfo]:
    """Every built-in port, without importing what it needs; of such a model, where one is given."""
    return [
        PortInfo(name, adapter.summary, adapter.missing, adapter.by_default, adapter.extra)
        for name, adapter in BUILTIN.items()
        if config is None or adapter.unfit(config) is None
    ]
