"""Write a checkpoint as a Hugging Face directory, one tensor in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.hf_names import PREFIX, stored_name
from gpt_verify.checkpoint.safetensors_file import ToWrite, replacing, write_tensors
from gpt_verify.checkpoint.tensorflow import write_openai as write_openai
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import Config, TensorSpec, tensor_table

END_OF_TEXT = "<|endoftext|>"
#: Architecture → what its ``config.json`` says and that of another does not.
_KINDS: dict[str, dict[str, object]] = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_inner": None,
    },
    "openai-gpt": {"architectures": ["OpenAIGPTLMHeadModel"], "afn": "gelu"},
}


def write_huggingface(
    directory: str | Path,
    config: Config,
    tensors: Mapping[str, NDArray[np.float32]],
    encoder: Path | None = None,
    merges: Path | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json`` and, where given, the two vocabulary files.

    A head that is wte is stored once, as transformers itself stores a tied model. Each file is
    written under a temporary name and then renamed, ``config.json`` last, so that an interrupted
    run leaves no directory that opens.

    Args:
        directory: made if need be; files of the same names are replaced.
        config: sizes.
        tensors: the names and shapes of ``reference.tensor_table``; float32; looked up once each.
        encoder: ``encoder.json`` of OpenAI, copied to ``vocab.json``.
        merges: ``vocab.bpe`` of OpenAI, copied to ``merges.txt``.

    Raises:
        CheckpointError: a tensor is missing, surplus, or of the wrong shape or type.
        OSError: the directory cannot be written.
    """
    directory = Path(directory)
    table = tensor_table(config)
    if wrong := sorted(set(table) ^ set(tensors)):
        kind = "missing" if wrong[0] in table else "surplus"
        raise CheckpointError(f"{directory}: nothing written: {kind} tensor {wrong[0]}")
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / "model.safetensors") as file:
        write_tensors(file, _stored(directory, table, tensors, config.architecture))
    for source, name in ((encoder, "vocab.json"), (merges, "merges.txt")):
        if source is not None:
            with replacing(directory / name) as file, source.open("rb") as original:
                shutil.copyfileobj(original, file)
    end = None if encoder is None else json.loads(encoder.read_bytes()).get(END_OF_TEXT)
    with replacing(directory / "config.json") as file:
        file.write((json.dumps(_config_json(config, end), indent=2) + "\n").encode())


def _stored(
    directory: Path,
    table: Mapping[str, TensorSpec],
    tensors: Mapping[str, NDArray[np.float32]],
    architecture: str,
) -> list[ToWrite]:
    def make(name: str) -> NDArray[np.float32]:
        value, spec = tensors[name], table[name]
        if value.shape != spec.shape or value.dtype != np.float32:
            raise CheckpointError(
                f"{directory}: nothing written: {name} is {value.dtype}{list(value.shape)}, "
                f"should be float32{list(spec.shape)}"
            )
        return value

    return [
        ToWrite(
            ("" if name == "lm_head" else PREFIX) + stored_name(name, architecture),
            spec.shape,
            partial(make, name),
        )
        for name, spec in table.items()
    ]


def _config_json(config: Config, end_of_text: int | None) -> dict[str, object]:
    """What transformers 4 and 5 read as a model with a head; dropouts as in the released files."""
    return {
        **_KINDS[config.architecture],
        "model_type": config.architecture,
        "attn_pdrop": 0.1,
        "bos_token_id": end_of_text,
        "embd_pdrop": 0.1,
        "eos_token_id": end_of_text,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": config.n_ctx,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "n_positions": config.n_ctx,
        "resid_pdrop": 0.1,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.n_vocab,
    }
