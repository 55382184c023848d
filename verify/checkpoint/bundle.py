"""A reader of TensorFlow's tensor bundles (checkpoint format V2) that needs no TensorFlow.

    PREFIX.index                   a table: tensor name → type, shape, shard, offset, size, checksum
    PREFIX.data-00000-of-00001     the tensors, raw, one after the other

The format is defined by tensorflow/core/util/tensor_bundle/tensor_bundle.cc and
tensorflow/core/protobuf/tensor_bundle.proto; the table by tensorflow/core/lib/io/format.cc.

Protected: every byte of the index, and every byte of the data that belongs to a tensor. Not
protected by the format: bytes of a data file that belong to none (alignment padding, or whatever
follows the last tensor). They are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpt_verify.checkpoint.protobuf as protobuf
from gpt_verify.checkpoint.files import Malformed, MappedFile, read_bytes, refusal
from gpt_verify.checkpoint.protobuf import decode, last
from gpt_verify.checkpoint.table import mask, read_table, varint
from gpt_verify.text import listing

#: About 160,000 tensors; the 580 of the 1558M model take 40 kB.
LARGEST_INDEX = 1 << 24
#: NumPy's own limit; TensorFlow's is 254.
MOST_DIMENSIONS = 64
#: tensorflow/core/util/tensor_bundle/tensor_bundle.h, ``kTensorBundleVersion``.
VERSION = 1
#: tensorflow/core/framework/types.proto: number → (name, how NumPy reads it). What has None is
#: listed but not read: its elements have no fixed width, or NumPy has no such type.
DTYPES: dict[int, tuple[str, str | None]] = {
    1: ("float32", "f4"),
    2: ("float64", "f8"),
    3: ("int32", "i4"),
    4: ("uint8", "u1"),
    5: ("int16", "i2"),
    6: ("int8", "i1"),
    7: ("string", None),
    8: ("complex64", "c8"),
    9: ("int64", "i8"),
    10: ("bool", "b1"),
    11: ("qint8", "i1"),
    12: ("quint8", "u1"),
    13: ("qint32", "i4"),
    14: ("bfloat16", "u2"),
    15: ("qint16", "i2"),
    16: ("quint16", "u2"),
    17: ("uint16", "u2"),
    18: ("complex128", "c16"),
    19: ("float16", "f2"),
    20: ("resource", None),
    21: ("variant", None),
    22: ("uint32", "u4"),
    23: ("uint64", "u8"),
    24: ("float8_e5m2", None),
    25: ("float8_e4m3fn", None),
    26: ("float8_e4m3fnuz", None),
    27: ("float8_e4m3b11fnuz", None),
    28: ("float8_e5m2fnuz", None),
    29: ("int4", None),
    30: ("uint4", None),
    31: ("int2", None),
    32: ("uint2", None),
    33: ("float4_e2m1fn", None),
}
READABLE = {name: code for name, code in DTYPES.values() if code}
#: Checksums are computed over pieces that stay in the processor's cache.
PIECE = 1 << 18


@dataclass(frozen=True)
class Entry:
    """The index's entry for one tensor.

    Attributes:
        dtype: TensorFlow's name, for example ``float32``.
        shape: as stored; ``()`` for a scalar.
        shard: which data file.
        offset: first byte in that file.
        size: length in bytes.
        crc: masked CRC-32C of those bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle:
    """The tensors of ``prefix.index`` and its data files.

    Opening reads the index alone and verifies all of it, against its checksums and against the
    lengths of the data files. A tensor's own checksum is verified when it is first read.

    Attributes:
        entries: name → Entry, sorted by name.
        index: the index file.
        files: the index and every data file.

    Raises:
        CheckpointError: a file is missing, cut off or damaged; or the bundle has something that is
            not read: compressed blocks, partitioned variables, an unknown type or field.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.index = Path(f"{prefix}.index")
        data = read_bytes(self.index, LARGEST_INDEX)
        try:
            shards, self._order, self.entries = _parse_index(data)
        except Malformed as error:
            raise refusal(self.index, error) from None
        # One by one, and the first that is missing ends it: the number may be absurd.
        self._shards: list[MappedFile] = []
        for shard in range(shards):
            self._shards.append(MappedFile(Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")))
        self.files = (self.index, *(shard.path for shard in self._shards))
        self._verified: set[str] = set()
        for name, entry in self.entries.items():
            file = self._shards[entry.shard]
            if entry.offset + entry.size > file.size:
                raise refusal(
                    file.path,
                    f"cut off: {file.size} bytes, but {name} occupies bytes {entry.offset} … "
                    f"{entry.offset + entry.size}",
                )

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, read-only, of the stored shape.

        A view of the mapped file, without a copy, except that bfloat16 is widened to float32 and
        that the other byte order is swapped. The view may be unaligned where the file is.
        Quantised types (``qint8`` …) are returned as the integers that they store.

        Raises:
            CheckpointError: no such tensor, its checksum is wrong, the file has changed, or its
                type is not read (string, resource, variant, and types narrower than a byte or
                that NumPy does not have).
        """
        array = self._array(name, self._checked(name))
        array.setflags(write=False)
        return array

    def own(self, name: str) -> NDArray[Any]:
        """The same for somebody to keep and to change (``MappedFile.own``).

        Raises:
            CheckpointError: as for `read`.
        """
        self._checked(name)
        entry = self.entries[name]
        return self._array(name, self._shards[entry.shard].own(entry.offset, entry.size))

    def _checked(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, whose checksum is right."""
        entry = self.entries.get(name)
        if entry is None:
            raise refusal(self.index, f"has no tensor {name}")
        file = self._shards[entry.shard]
        code = READABLE.get(entry.dtype)
        if code is None:
            raise refusal(self.index, f"{name} has type {entry.dtype}, which is not read")
        raw = file.view(entry.offset, entry.size)
        if name not in self._verified:
            if (actual := checksum(raw)) != entry.crc:
                raise refusal(
                    file.path,
                    f"checksum of {name} (bytes {entry.offset} … {entry.offset + entry.size}) is "
                    f"{actual:#010x}, should be {entry.crc:#010x}: the data is damaged",
                )
            if code == "b1" and np.any(raw > 1):
                raise refusal(file.path, f"{name} is bool, but has bytes other than 0 and 1")
            self._verified.add(name)
        return raw

    def _array(self, name: str, raw: NDArray[np.uint8]) -> NDArray[Any]:
        entry = self.entries[name]
        code = np.dtype(READABLE[entry.dtype])
        array: NDArray[Any] = raw.view(code.newbyteorder(self._order))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if entry.dtype == "bfloat16":
            array = widen_bfloat16(array)
        return array.reshape(entry.shape)


def checksum(raw: NDArray[np.uint8]) -> int:
    """Masked CRC-32C of uint8[n]."""
    import google_crc32c

    crc = 0
    for start in range(0, raw.size, PIECE):
        crc = google_crc32c.extend(crc, raw[start : start + PIECE].tobytes())
    return mask(crc)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32: exact, NaN payloads included."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _parse_index(data: bytes) -> tuple[int, Any, dict[str, Entry]]:
    """Number of shards, byte order (``<`` or ``>``) and the entries of an index."""
    table = read_table(data)
    key, value = next(table, (None, b""))
    if key != b"":
        raise Malformed("the header is missing: this is not the index of a tensor bundle")
    try:
        shards, order = _parse_header(value)
    except Malformed as error:
        raise Malformed(f"bundle header: {error}") from None
    entries: dict[str, Entry] = {}
    partitioned: list[str] = []
    slices = 0
    for key, value in table:
        if key.startswith(b"\0"):  # a piece of a partitioned variable, which has its own entry
            slices += 1
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise Malformed(f"the name {key!r} is not UTF-8") from None
        try:
            entry = _parse_entry(value, shards)
        except Malformed as error:
            raise Malformed(f"{name}: {error}") from None
        if entry is None:
            partitioned.append(name)
        else:
            entries[name] = entry
    if partitioned:
        raise Malformed(f"partitioned variables are not read: {listing(partitioned)}")
    if slices:
        raise Malformed(f"{slices} pieces of partitioned variables without the variable")
    return shards, order, entries


def _parse_header(value: bytes) -> tuple[int, str]:
    numbers, parts = decode(value, protobuf.HEADER)
    for version in parts["version"]:
        versions, lists = decode(version, protobuf.VERSION)
        refused = b"".join(lists["bad_consumers"])
        at = 0
        while at < len(refused):
            number, at = varint(refused, at)
            if number == VERSION:
                raise Malformed(f"readers of version {VERSION} are told not to read it")
        if last(versions["min_consumer"]) > VERSION:
            raise Malformed(f"needs a reader of version {last(versions['min_consumer'])}")
    shards, endianness = last(numbers["num_shards"]), last(numbers["endianness"])
    if not 1 <= shards <= 99_999:
        raise Malformed(f"claims {shards} data files")
    if endianness not in (0, 1):
        raise Malformed(f"byte order {endianness} is not known")
    return shards, "<>"[endianness]


def _parse_entry(value: bytes, shards: int) -> Entry | None:
    """One entry, checked as far as the index alone allows; None for a partitioned variable."""
    numbers, parts = decode(value, protobuf.ENTRY)
    number = last(numbers["dtype"])
    if number not in DTYPES:
        raise Malformed(f"type {number} is not known")
    dtype, code = DTYPES[number]
    shape: list[int] = []
    for message in parts["shape"]:
        sizes, dims = decode(message, protobuf.SHAPE)
        if last(sizes["unknown_rank"]):
            raise Malformed("its shape is unknown")
        shape += [last(decode(dim, protobuf.DIM)[0]["size"]) for dim in dims["dim"]]
    if parts["slices"]:
        return None
    if len(shape) > MOST_DIMENSIONS:
        raise Malformed(f"{len(shape)} dimensions; at most {MOST_DIMENSIONS} are read")
    if min(shape, default=0) < 0 or math.prod(max(1, n) for n in shape) >= 1 << 56:
        raise Malformed(f"impossible shape {shape}")
    shard, offset, size = (last(numbers[field]) for field in ("shard_id", "offset", "size"))
    if not 0 <= shard < shards:
        raise Malformed(f"is in data file {shard} of {shards}")
    if offset < 0 or size < 0:
        raise Malformed(f"impossible place: {size} bytes from byte {offset}")
    if code and math.prod(shape) * np.dtype(code).itemsize != size:
        raise Malformed(f"{dtype}{shape} does not have {size} bytes")
    return Entry(dtype, tuple(shape), shard, offset, size, last(numbers["crc32c"]))
