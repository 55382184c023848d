"""The few protocol-buffer messages of a bundle's index, decoded by hand.

Wire format: protobuf.dev/programming-guides/encoding. Messages:
tensorflow/core/protobuf/tensor_bundle.proto (``BundleHeaderProto``, ``BundleEntryProto``),
tensorflow/core/framework/tensor_shape.proto and versions.proto. A field that is not in the tables
below is refused rather than skipped: it may change what the others mean.
"""

from __future__ import annotations

from gpt_verify.checkpoint.files import Malformed
from gpt_verify.checkpoint.table import varint

VARINT, BYTES, FIXED32 = 0, 2, 5

Schema = dict[int, tuple[str, int]]
#: Field → its values, in order. A message or a string is bytes; everything else an integer.
Fields = dict[str, list[int]]
Parts = dict[str, list[bytes]]

HEADER: Schema = {1: ("num_shards", VARINT), 2: ("endianness", VARINT), 3: ("version", BYTES)}
VERSION: Schema = {
    1: ("producer", VARINT),
    2: ("min_consumer", VARINT),
    3: ("bad_consumers", BYTES),  # a packed list of varints
}
ENTRY: Schema = {
    1: ("dtype", VARINT),
    2: ("shape", BYTES),
    3: ("shard_id", VARINT),
    4: ("offset", VARINT),
    5: ("size", VARINT),
    6: ("crc32c", FIXED32),
    7: ("slices", BYTES),
}
SHAPE: Schema = {2: ("dim", BYTES), 3: ("unknown_rank", VARINT)}
DIM: Schema = {1: ("size", VARINT), 2: ("name", BYTES)}


def decode(message: bytes, schema: Schema) -> tuple[Fields, Parts]:
    """Split a message into its integers (signed 64-bit) and its byte strings.

    Raises:
        Malformed: cut off, or a field that ``schema`` does not have.
    """
    numbers: Fields = {name: [] for name, wire in schema.values() if wire != BYTES}
    parts: Parts = {name: [] for name, wire in schema.values() if wire == BYTES}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        name, wire = schema.get(tag >> 3, ("", -1))
        if wire != tag & 7:
            raise Malformed(f"field {tag >> 3} with wire type {tag & 7} is not known")
        if wire == VARINT:
            value, at = varint(message, at)
            numbers[name].append(value - (1 << 64) if value >> 63 else value)
        else:
            size = 4
            if wire == BYTES:
                size, at = varint(message, at)
            if size > len(message) - at:
                raise Malformed("a field is cut off")
            chunk, at = message[at : at + size], at + size
            if wire == BYTES:
                parts[name].append(chunk)
            else:
                numbers[name].append(int.from_bytes(chunk, "little"))
    return numbers, parts


def last(values: list[int]) -> int:
    """The value of a field that occurs at most once: the last one counts, and none is zero."""
    return values[-1] if values else 0
