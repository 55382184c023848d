"""The file ``checkpoint`` of a TensorFlow directory: which bundle is meant.

It has the path under which the bundle was written, which may be that of another machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpt_verify.checkpoint.files import Malformed, read_bytes, refusal
from gpt_verify.checkpoint.links import need_within, within

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


def bundle_prefix(directory: Path) -> tuple[Path, list[str]]:
    """What the names of the bundle's files have in common, and a remark where they were moved.

    Raises:
        CheckpointError: there is no such bundle in the directory, or it is of a form that is not
            read.
    """
    state = directory / "checkpoint"
    need_within(directory, state)
    try:
        stated = Path(parse_state(read_bytes(state, LARGEST_STATE)))
    except Malformed as error:
        raise refusal(state, error) from None
    if ".." in stated.parts or not stated.name:
        raise refusal(state, f"{str(stated)!r} leads outside its directory")
    prefix, here = directory / stated, directory / stated.name  # an absolute path replaces it
    there = within(directory, prefix.parent) and os.path.lexists(f"{prefix}.index")
    if there or prefix == here:
        _need_index(directory, prefix)
        return prefix, []
    if not os.path.lexists(f"{here}.index"):
        what = f"names {stated}, which leads outside its directory"
        if within(directory, prefix.parent):
            what = f"names {stated}, which is not there"
        raise refusal(state, f"{what}, and {here.name}.index is not beside it")
    if os.path.islink(_first_inside(directory, prefix)):
        raise refusal(state, f"names {stated}, which leads outside its directory")
    remark = f"checkpoint: names {stated}; {here.name} beside it is read, as of a moved directory"
    return here, [remark]


def _first_inside(directory: Path, prefix: Path) -> Path:
    """The entry of the directory through which a relative path leads."""
    if directory not in prefix.parents:
        return directory / prefix.name
    return directory / prefix.relative_to(directory).parts[0]


def _need_index(directory: Path, prefix: Path) -> None:
    """CheckpointError where there is none because the checkpoint is in TensorFlow's first format.

    tensorflow/core/util/tensor_slice_writer.cc: one file, or ``-00000-of-00002`` and so on, each a
    table of its own.
    """
    if os.path.lexists(f"{prefix}.index"):
        return
    first = sorted(prefix.parent.glob(f"{prefix.name}-?????-of-?????"))
    if prefix.is_file() or first:
        raise refusal(
            prefix if prefix.is_file() else first[0],
            "a V1 checkpoint of TensorFlow, which is not read: restore it with "
            "tf.compat.v1.train.Saver and save it again, which writes V2",
        )


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
