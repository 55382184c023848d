"""A writer of tensor bundles for tests: small, and willing to write what no writer should.

TensorFlow's own bundles, for comparison, come from ``tensorflow_bundles.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

Pairs = list[tuple[bytes, bytes]]
MAGIC = 0xDB4775248B80FB57
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}
HEADER = bytes.fromhex("08011a020801")  # one shard, little-endian, version 1


def written_by_tensorflow(factory: pytest.TempPathFactory) -> Path:
    """The directory that ``tensorflow_bundles.py`` fills; once a session, for all modules."""
    base = factory.getbasetemp() / "tensorflow"
    if not (base / "gpt2.npz").exists():  # what it writes last
        _run_tensorflow(base)
    return base


def _run_tensorflow(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(here.parent),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, str(here / "tensorflow_bundles.py"), str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def entry(
    dtype: int = 1,
    shape: Iterable[int] = (),
    shard: int = 0,
    offset: int = 0,
    size: int = 4,
    crc: int = 0,
    more: bytes = b"",
) -> bytes:
    """A BundleEntryProto; zeros are left out, as proto3 does."""
    dims = b"".join(chunk(2, number(1, n) if n else b"") for n in shape)
    fields = ((3, shard), (4, offset), (5, size))
    rest = b"".join(number(field, value) for field, value in fields if value)
    end = varint(6 << 3 | 5) + crc.to_bytes(4, "little")
    return number(1, dtype) + chunk(2, dims) + rest + end + more


def framed(body: bytes, compression: int = 0) -> bytes:
    """A block with its trailer."""
    body += bytes([compression])
    return body + masked(body).to_bytes(4, "little")


def block(pairs: Pairs, interval: int = 16) -> bytes:
    body, restarts, previous = b"", [0], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % interval:
            while key[shared : shared + 1] == previous[shared : shared + 1] != b"":
                shared += 1
        elif i:
            restarts.append(len(body))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body, previous = body + key[shared:] + value, key
    return body + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def footer(*numbers: int) -> bytes:
    handles = b"".join(map(varint, numbers))
    return handles.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def successor(key: bytes) -> bytes:
    """A short key that is not less: what TensorFlow's writer puts at the end of the index."""
    for i, byte in enumerate(key):
        if byte != 0xFF:
            return key[:i] + bytes([byte + 1])
    return key


def assemble(blocks: list[tuple[bytes, bytes]], meta: bytes | None = None) -> bytes:
    """A table from framed data blocks, each with its key in the index."""
    out, handles = b"", []
    for bound, body in blocks:
        handles.append((bound, varint(len(out)) + varint(len(body) - 5)))
        out += body
    meta = framed(block([])) if meta is None else meta
    index = framed(block(handles, interval=1))
    numbers = (len(out), len(meta) - 5, len(out) + len(meta), len(index) - 5)
    return out + meta + index + footer(*numbers)


def table(pairs: Pairs) -> bytes:
    return assemble([(successor(pairs[-1][0]), framed(block(pairs)))])


def index(entries: Mapping[str, bytes], header: bytes = HEADER) -> bytes:
    named = sorted((name.encode(), value) for name, value in entries.items())
    return table([(b"", header), *named])


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One shard, little-endian."""
    data, entries = b"", {}
    for name, value in sorted(tensors.items()):
        raw = value.tobytes()
        dtype = NUMBERS[value.dtype.name]
        entries[name] = entry(dtype, value.shape, 0, len(data), len(raw), masked(raw))
        data += raw
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    Path(f"{prefix}.index").write_bytes(index(entries))
