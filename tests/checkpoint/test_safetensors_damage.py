"""Damaged and arbitrary safetensors files: refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from huggingface_directory import (
    refused,
    state,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.hf_pickled import SINGLE
from gpt_verify.errors import CheckpointError

# --- damaged safetensors -------------------------------------------------------------------------


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    file = write(tmp_path, state()) / SINGLE
    whole = file.read_bytes()
    for length in [*range(0, 3000, 7), len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert refused(tmp_path).startswith(f"{file}: ")


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes; the length of the header alone has 8"),
        (
            raw(b"{}", length=1 << 60),
            "claims a header of 1152921504606846976 bytes in a file",
        ),
        (raw(b"[]"), "not a safetensors file, or damaged: "),
        (raw(b"[" * 90_000), "not a safetensors file, or damaged: "),
        (
            raw(b'{"a":{"dtype":"F32","shape":[1125899906842624],"data_offsets":[0,4]}}', bytes(4)),
            "not a safetensors file, or damaged: ",
        ),
        (
            raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
            "not a safetensors file, or damaged: ",
        ),
        (
            raw(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"b":{}}', bytes(4)
            ),
            "",
        ),
    ],
)
def test_headers_that_are_damaged(tmp_path: Path, data: bytes, what: str) -> None:
    (write(tmp_path, state()) / SINGLE).write_bytes(data)
    assert refused(tmp_path).startswith(f"{tmp_path}/{SINGLE}: {what}")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=99), st.integers(0, 2000), st.integers(0, 255))
def test_any_bytes(tmp_path: Path, data: bytes, at: int, byte: int) -> None:
    file = write(tmp_path, state()) / SINGLE
    whole = bytearray(file.read_bytes())
    for made in (data, raw(data), raw(b'{"' + data + b'"}')):
        file.write_bytes(made)
        refused(tmp_path)
    whole[at] = byte  # in the header, where it can also be harmless: a changed space
    file.write_bytes(whole)
    try:
        checkpoint = open_checkpoint(tmp_path)
        for name in checkpoint.tensors:
            checkpoint.tensors[name].sum()
    except CheckpointError as error:
        assert "\n" not in str(error)
