"""Read OpenAI's directory, as ``download_model.py`` of openai/gpt-2 leaves it.

The files:

    checkpoint                          which bundle to read
    model.ckpt.{index,data-…,meta}      the bundle; the graph in .meta is not needed to read it
    hparams.json                        sizes
    encoder.json, vocab.bpe             the tokenizer, optional
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint.bundle import Bundle
from gpt_verify.checkpoint.files import Malformed, read_bytes, read_json, refusal, size_of
from gpt_verify.checkpoint.record import Checkpoint
from gpt_verify.checkpoint.tensors import Format, LazyTensors, Stored, check_tensors
from gpt_verify.reference import Config, ConfigError, tensor_table

#: gpt-2 ``src/model.py:149``: everything is in ``variable_scope("model")``.
SCOPE = "model/"
#: tensorflow/python/training/checkpoint_state.proto.
STATE_FIELDS = (
    "model_checkpoint_path",
    "all_model_checkpoint_paths",
    "all_model_checkpoint_timestamps",
    "last_preserved_timestamp",
)
LARGEST_STATE = 1 << 20
FIELD = re.compile(rb'\s*(\w+)\s*:\s*(?:"((?:[^"\\\n]|\\.)*)"|([-+.\w]+))[ \t\r]*(?:\n|$)|\s*$')
ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b'"': b'"', b"'": b"'", b"\\": b"\\"}

FORMAT = Format(
    stored_name=lambda name: SCOPE + name,
    leading_one=True,
    dtypes=("float32",),
    sizes={name: name for name in ("n_vocab", "n_ctx", "n_embd", "n_layer")},
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory in OpenAI's format; tensors are read when they are looked up.

    A looked-up tensor is a read-only float32 view of the mapped file, of the table's shape (the
    leading 1 of matrices is dropped); its checksum is verified when it is first read.

    Raises:
        CheckpointError: a file is missing or damaged; ``checkpoint`` leads outside the directory;
            ``hparams.json`` is not that of a GPT-2 or disagrees with the tensors; a tensor is
            missing, surplus, or of the wrong shape or type.
    """
    path = Path(path)
    hparams = path / "hparams.json"
    try:
        config = Config.from_mapping(read_json(hparams, floats=False))
    except ConfigError as error:
        raise refusal(hparams, error) from None
    state = path / "checkpoint"
    prefix = _bundle_prefix(path, state)
    _refuse_outside(path, state, Path(f"{prefix}.index"))
    bundle = Bundle(prefix)
    meta = Path(f"{prefix}.meta")
    companions = [meta] if os.path.lexists(meta) else []
    for file in (*bundle.files, *companions):
        _refuse_outside(path, state, file)
    found = {}
    for name, entry in bundle.entries.items():
        inner = name.removeprefix(SCOPE) if name.startswith(SCOPE) else name
        # A tensor outside the scope must not pass for the one inside it.
        found[inner if inner != name else f"/{name}"] = Stored(name, entry.dtype, entry.shape)
    check_tensors(found, config, bundle.index, hparams, FORMAT)
    table = tensor_table(config)

    def read(name: str) -> NDArray[np.float32]:
        return bundle.read(SCOPE + name).reshape(table[name].shape)

    def own(name: str) -> NDArray[np.float32]:
        return bundle.own(SCOPE + name).reshape(table[name].shape)

    encoder, merges = (_optional(path / name) for name in ("encoder.json", "vocab.bpe"))
    tokenizer = [file for file in (encoder, merges) if file]
    return Checkpoint(
        path=path,
        format="openai",
        config=config,
        tensors=LazyTensors(table, read, own),
        files=(state, hparams, *bundle.files, *companions, *tokenizer),
        encoder=encoder,
        merges=merges,
    )


def _optional(file: Path) -> Path | None:
    """The file, if there is one; something else under its name is refused."""
    if not os.path.lexists(file):
        return None
    size_of(file)
    return file


def _bundle_prefix(directory: Path, state: Path) -> Path:
    """Where ``checkpoint`` says that the bundle is."""
    try:
        stated = Path(parse_state(read_bytes(state, LARGEST_STATE)))
    except Malformed as error:
        raise refusal(state, error) from None
    if ".." in stated.parts:
        raise refusal(state, f"{str(stated)!r} leads outside its directory")
    return directory / stated  # an absolute path, which TensorFlow may write, replaces it


def _refuse_outside(directory: Path, state: Path, file: Path) -> None:
    """A checkpoint from a stranger must not make us read another file of the user's."""
    inside, actual = os.path.realpath(directory), os.path.realpath(file)
    if os.path.commonpath([inside, actual]) != inside:
        raise refusal(state, f"leads outside its directory: {file} is {actual}")


def parse_state(text: bytes) -> str:
    """``model_checkpoint_path`` of a ``checkpoint`` file, a CheckpointState in text form.

    Raises:
        Malformed: not such a file.
    """
    if not text.strip():
        raise Malformed("the file is empty")
    paths: list[bytes] = []
    at = 0
    while at < len(text):
        field = FIELD.match(text, at)
        if field is None:
            line = text.count(b"\n", 0, at) + 1
            raise Malformed(f'line {line} is not of the form `name: "value"`')
        at = field.end()
        name = (field[1] or b"").decode()
        if name and name not in STATE_FIELDS:
            raise Malformed(f"field {name} is not known")
        if name == "model_checkpoint_path":
            if field[2] is None:
                raise Malformed(f"{name} is not a string")
            paths.append(field[2])
    if len(paths) != 1:
        raise Malformed(f"has {len(paths)} times model_checkpoint_path, should have it once")
    path = ESCAPE.sub(_unescape, paths[0])
    if not path or b"\0" in path:
        raise Malformed("model_checkpoint_path is empty or has a NUL")
    return os.fsdecode(path)


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1] == b"x" and len(code) > 1:
        return bytes([int(code[1:], 16)])
    if code[:1] in b"01234567":
        return bytes([int(code, 8) & 0xFF])
    if code not in ESCAPES:
        raise Malformed(f"escape \\{code.decode(errors='replace')} is not known")
    return ESCAPES[code]
