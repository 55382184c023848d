"""transformers' model of an architecture, with weights of its own or with the checkpoint's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.files import LARGEST_POINTER, read_bytes, size_of
from gpt_verify.errors import MissingDependency, PortError, install, shortened
from gpt_verify.port import FLOAT64_COPY, TOKENIZERS
from gpt_verify.ports.huggingface_family import Altered, again, family_model, model_class_of
from gpt_verify.ports.quiet import quiet
from gpt_verify.ports.tokenizers import tokenizers
from gpt_verify.reference.weights import tensor_table
from gpt_verify.text import listing

if TYPE_CHECKING:
    from gpt_verify.port import Dtype
    from gpt_verify.ports.torch.module import TorchModule

Attention = Literal["eager", "sdpa"]


@dataclass(frozen=True)
class _Classes:
    """What transformers calls an architecture.

    Attributes:
        config, model: its classes.
        attention: what it can compute attention with.
        tables: parameters that are called otherwise than the checkpoint's.
    """

    config: str
    model: str
    attention: tuple[str, ...] = ("eager", "sdpa")
    tables: Mapping[str, str] = field(default_factory=dict)


_CLASSES = {
    "gpt2": _Classes("GPT2Config", "GPT2LMHeadModel"),
    "openai-gpt": _Classes(
        "OpenAIGPTConfig",
        "OpenAIGPTLMHeadModel",
        ("eager",),
        {"wte": "tokens_embed", "wpe": "positions_embed"},
    ),
}


#: What all of transformers' configurations call a size that GPT-2's calls otherwise.
_GENERAL = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def huggingface(
    checkpoint: Checkpoint,
    attention: Attention,
    dtype: Dtype | None = None,
    device: str = "cpu",
    source: str | None = None,
    altered: Altered | None = None,
) -> TorchModule:
    """The model of transformers as a port.

    Args:
        checkpoint: what it is judged against.
        attention: transformers' ``attn_implementation``.
        dtype: precision to load it in; float32 where None.
        device: ``cpu`` or ``cuda``.
        source: a directory or hub id whose own weights *and* configuration are loaded. None
            converts the checkpoint's tensors.
        altered: of a family, how the model is made otherwise than the checkpoint says.

    Raises:
        MissingDependency: transformers or torch is not installed.
        PortError: the source cannot be loaded, or its sizes are not the checkpoint's; or this
            architecture has no such attention.
    """
    try:
        import torch
        import transformers
    except ImportError as e:
        raise MissingDependency(f"{e.name} is not installed: {install('torch')}") from None
    from gpt_verify.ports.torch.families import float64_copy
    from gpt_verify.ports.torch.module import TorchModule

    of_family = checkpoint.config.own is not None
    if of_family:
        model_class = model_class_of(transformers, checkpoint.config)
    else:
        classes = _CLASSES[checkpoint.config.architecture]
        if attention not in classes.attention:
            raise PortError(
                f"huggingface-{attention}: transformers' {classes.model} has no {attention}"
            )
        model_class = getattr(transformers, classes.model)
    options: dict[str, Any] = {
        "attn_implementation": attention,
        "dtype": getattr(torch, dtype or "float32"),
    }
    with quiet(transformers):
        if source is None and of_family:
            model = family_model(transformers, checkpoint, options, altered)
        elif source is None:
            made = getattr(transformers, classes.config)
            config = made(**_sizes(checkpoint), tie_word_embeddings=checkpoint.config.tied)
            model = model_class.from_pretrained(
                None, config=config, state_dict=_state_dict(checkpoint), **options
            )
        else:
            model = _load(model_class, source, options)
            _same_sizes(model.config, checkpoint, source)
    for parameter in model.parameters():
        # Not the tables: rotary frequencies are float32 whatever the weights are.
        parameter.data = parameter.data.to(options["dtype"])
    if getattr(model, "loss_type", "") is None:
        # What it takes by itself as well, after a line on the screen: its class's name has no loss.
        model.loss_type = "ForCausalLM"
    name = f"huggingface-{attention}" if source is None else f"huggingface-{attention}={source}"
    port = TorchModule(
        model,
        checkpoint,
        name=altered.name if altered is not None else name,
        device=device,
        weights_from="checkpoint" if source is None else source,
        call=lambda module, ids: module(ids, use_cache=False),
    )
    if of_family:
        port.offer(FLOAT64_COPY, lambda: float64_copy(port, lambda: again(model, altered)))
    own = source is not None and checkpoint.config.architecture == "gpt2"
    if checkpoint.has_vocabulary or own:
        kept = cache(partial(tokenizers, checkpoint, source))
        port.offer(TOKENIZERS, lambda: kept())
    return port


def parameter_name(tensor: str, architecture: str = "gpt2") -> str:
    """``h0/attn/c_attn/w`` → ``transformer.h.0.attn.c_attn.weight``."""
    *scope, leaf = tensor.split("/")
    if tensor == "lm_head":
        return "lm_head.weight"
    if not scope:
        return f"transformer.{_CLASSES[architecture].tables.get(leaf, leaf)}.weight"
    if scope[0] != "ln_f":
        scope[:1] = ["h", scope[0].removeprefix("h")]
    return ".".join(["transformer", *scope, "bias" if leaf == "b" else "weight"])


def _state_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """A copy of every tensor: the port's memory is its own, and the checkpoint's stays as it is."""
    import torch

    architecture = checkpoint.config.architecture
    return {
        parameter_name(name, architecture): torch.from_numpy(np.array(checkpoint.tensors[name]))
        for name in tensor_table(checkpoint.config)
    }


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    sizes = checkpoint.config.as_dict()
    return {
        "vocab_size": sizes["n_vocab"],
        "n_positions": sizes["n_ctx"],
        "n_embd": sizes["n_embd"],
        "n_head": sizes["n_head"],
        "n_layer": sizes["n_layer"],
        # The ids that the defaults name do not exist in a small vocabulary.
        "bos_token_id": sizes["n_vocab"] - 1,
        "eos_token_id": sizes["n_vocab"] - 1,
    }


def _load(model_class: Any, source: str, options: dict[str, Any]) -> Any:
    is_directory = os.path.isdir(source)
    if not is_directory and source.startswith((".", "/", "~")):
        raise PortError(f"{source}: no such directory")
    if is_directory:
        # transformers opens whatever has the right name, and would wait for ever for a pipe.
        for file in sorted(Path(source).iterdir()):
            if not file.is_dir() and size_of(file) <= LARGEST_POINTER:
                read_bytes(file, LARGEST_POINTER)  # which says so of a Git LFS pointer
    try:
        # Sizes that differ are reported below; transformers would raise, and point to a table that
        # it has printed.
        model, report = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except pickle.UnpicklingError:
        # Its words advise to load the file all the same, which would run whatever is in it.
        why = "its weights are damaged, or more than tensors; save them as model.safetensors"
        raise PortError(f"huggingface={source}: {why}") from None
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        reason = shortened((str(e).strip().splitlines() or [type(e).__name__])[0])
        kind = "cannot be loaded" if is_directory else "cannot be loaded from the hub"
        raise PortError(f"huggingface={source}: {kind}: {reason}") from e
    if wrong := sorted(report.get("mismatched_keys", ())):
        name, stored, made = wrong[0]
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise PortError(
            f"huggingface={source}: mismatched keys: {name} is {list(stored)} in the file, and "
            f"config.json makes it {list(made)}{more}"
        )
    if missing := sorted(map(str, report.get("missing_keys", ()))):
        # transformers fills these with random numbers and goes on.
        raise PortError(f"huggingface={source}: missing keys: {listing(missing)}")
    return model


def _same_sizes(config: Any, checkpoint: Checkpoint, source: str) -> None:
    names = _GENERAL if checkpoint.config.own is not None else {}
    for key, size in _sizes(checkpoint).items():
        key = names.get(key, key)
        if key.endswith("_token_id") or (names and key == "n_positions"):
            continue
        if (own := getattr(config, key, None)) != size:
            raise PortError(f"huggingface={source}: {key} is {own}, the checkpoint's is {size}")
