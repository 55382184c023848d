"""A reader of LevelDB-style tables, the format of a bundle's ``.index``.

The format is fixed by tensorflow/core/lib/io/format.cc (footer, block handles, block trailer),
block.cc and block_builder.cc (prefix-compressed entries and restart points) and table_builder.cc
(the order of the blocks); it is that of LevelDB, ``doc/table_format.md``.

    data block 0 | … | data block n | metaindex block | index block | footer

Every byte is accounted for: the blocks must tile the file without a gap, each is covered by its
checksum, and the footer is checked against them, so that no flipped bit goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt_verify.checkpoint.files import Malformed

FOOTER = 48
MAGIC = 0xDB4775248B80FB57
#: Compression type (1 byte) and masked CRC-32C (4 bytes) after each block.
TRAILER = 5
COMPRESSIONS = {1: "snappy"}
#: A prefix-compressed key can be far longer than the bytes that it takes in the file; without
#: these bounds a small file could claim gigabytes. Real names have tens of bytes.
LONGEST_KEY = 4096
MOST_KEY_BYTES = 1 << 26
MOST_ENTRIES = 1 << 18


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned 64-bit varint in its shortest form: ``(value, position after it)``.

    tensorflow/core/lib/core/coding.cc. A longer form of the same number is refused: no writer
    emits one, and a flipped bit can.
    """
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise Malformed("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or value >= 1 << 64:
                raise Malformed("a number is not in its shortest form")
            return value, at
    raise Malformed("a number has more than 64 bits")


def masked_crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C, rotated and offset as stored: tensorflow/core/lib/hash/crc32c.h, ``Mask``."""
    import google_crc32c

    return mask(google_crc32c.extend(crc, data))


def mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every ``(key, value)`` of the table, in order.

    Raises:
        Malformed: cut off, damaged, compressed, or not a table. One line; the file is not named.
    """
    if not data:
        raise Malformed("the file is empty")
    if len(data) < FOOTER:
        raise Malformed(f"{len(data)} bytes; the footer of a table alone has {FOOTER}")
    footer = data[-FOOTER:]
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise Malformed("does not end in the magic number of a table: damaged or cut off")
    end = len(data) - FOOTER
    (meta_start, meta_size), at = _handle(footer, 0)
    (index_start, index_size), at = _handle(footer, at)
    if any(footer[at:-8]):
        raise Malformed("the footer is damaged: its padding is not zero")
    meta_end = meta_start + meta_size + TRAILER
    if meta_end != index_start or index_start + index_size + TRAILER != end:
        raise Malformed("the footer is damaged: its blocks do not fill the file")
    if list(_entries(_block(data, "metaindex", meta_start, meta_size, end))):
        raise Malformed("the table has a metaindex (a filter or statistics), which is not read")

    start, count, key_bytes, last = 0, 0, 0, b""
    for bound, value in _entries(_block(data, "index", index_start, index_size, end)):
        (block_start, block_size), at = _handle(value, 0)
        if at != len(value) or block_start != start:
            raise Malformed(f"the index block is damaged: a gap or an overlap at byte {start}")
        start += block_size + TRAILER
        for key, entry in _entries(_block(data, "data", block_start, block_size, meta_start)):
            if (count and key <= last) or key > bound:
                raise Malformed(f"keys are not in order at {key!r}")
            last, count, key_bytes = key, count + 1, key_bytes + len(key)
            if count > MOST_ENTRIES or key_bytes > MOST_KEY_BYTES:
                raise Malformed(f"more than {MOST_ENTRIES} entries or {MOST_KEY_BYTES} name bytes")
            yield key, entry
    if start != meta_start:
        raise Malformed(f"the index block is damaged: a gap or an overlap at byte {start}")


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    start, at = varint(data, at)
    size, at = varint(data, at)
    return (start, size), at


def _block(data: bytes, what: str, start: int, size: int, end: int) -> bytes:
    """Contents of one block, its checksum verified, which must lie before ``end``."""
    if start + size + TRAILER > end:
        raise Malformed(f"the {what} block at byte {start} ({size} bytes) does not fit in the file")
    stop = start + size + 1  # the checksum covers the compression type as well
    stated = int.from_bytes(data[stop : stop + 4], "little")
    if (actual := masked_crc32c(data[start:stop])) != stated:
        raise Malformed(
            f"checksum of the {what} block at byte {start} is {actual:#010x}, should be "
            f"{stated:#010x}: the file is damaged"
        )
    if kind := data[stop - 1]:
        name = COMPRESSIONS.get(kind, f"type {kind}")
        raise Malformed(f"the {what} block at byte {start} is compressed ({name}); not read")
    return data[start : stop - 1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Entries of a block: ``shared | unshared | length | key bytes | value`` and restart points."""
    if len(block) < 4:
        raise Malformed("a block has no restart points")
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * count
    if end < 0 or count == 0:
        raise Malformed(f"a block of {len(block)} bytes claims {count} restart points")
    restarts = {int.from_bytes(block[i : i + 4], "little") for i in range(end, len(block) - 4, 4)}
    if len(restarts) != count:
        raise Malformed("a block has the same restart point twice")
    key, at, body = b"", 0, block[:end]
    while at < end:
        is_restart = at in restarts
        restarts.discard(at)
        shared, at = varint(body, at)
        unshared, at = varint(body, at)
        length, at = varint(body, at)
        if shared > len(key) or (is_restart and shared) or unshared + length > end - at:
            raise Malformed("an entry of a block claims more bytes than there are")
        if shared + unshared > LONGEST_KEY:
            raise Malformed(f"a name of {shared + unshared} bytes; at most {LONGEST_KEY} are read")
        key = key[:shared] + body[at : at + unshared]
        at += unshared + length
        yield key, body[at - length : at]
    if restarts - {0}:
        raise Malformed("a restart point of a block is not the start of an entry")
