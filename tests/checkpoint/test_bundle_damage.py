"""Damaged, impossible and arbitrary bundles: refused in one line, and never anything else."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bundles import (
    HEADER,
    assemble,
    block,
    chunk,
    entry,
    footer,
    framed,
    index,
    masked,
    number,
    table,
    varint,
    write_bundle,
    written_by_tensorflow,
)

from gpt_verify.checkpoint.bundle import Bundle
from gpt_verify.checkpoint.table import read_table
from gpt_verify.errors import CheckpointError

A = np.arange(4, dtype=np.float32)


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_by_tensorflow(tmp_path_factory)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A small bundle of two tensors."""
    write_bundle(tmp_path / "b", {"a": A, "a/b": np.array(7, np.int64)})
    return tmp_path / "b"


def with_index(directory: Path, data: bytes, tensors: bytes = A.tobytes()) -> Path:
    (directory / "b.index").write_bytes(data)
    (directory / "b.data-00000-of-00001").write_bytes(tensors)
    return directory / "b"


def message(prefix: Path) -> str:
    """What opening the bundle and reading all of it raises: one line, from CheckpointError."""
    with pytest.raises(CheckpointError) as caught:
        bundle = Bundle(prefix)
        for name in bundle.entries:
            bundle.read(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def good(dtype: int = 1, **fields: int) -> bytes:
    return entry(dtype, (4,), size=16, crc=masked(A.tobytes()), **fields)


# --- damage --------------------------------------------------------------------------------------


def test_an_index_cut_at_any_byte(prefix: Path) -> None:
    file = Path(f"{prefix}.index")
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert message(prefix).startswith(f"{file}: ")


def test_data_cut_at_any_byte(prefix: Path) -> None:
    file = Path(f"{prefix}.data-00000-of-00001")
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert message(prefix).startswith(f"{file}: cut off: {length} bytes, but a")


def flip(file: Path, bit: int) -> None:
    """Flip one bit in place."""
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0]
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_every_flipped_bit_is_noticed(prefix: Path, suffix: str) -> None:
    """No byte of these files is unprotected: every one belongs to a block or to a tensor."""
    file = Path(f"{prefix}{suffix}")
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        assert message(prefix).startswith(str(file)), bit
        flip(file, bit)
    Bundle(prefix).read("a")


def test_every_flipped_bit_of_tensorflows_own_index(tensorflow: Path, tmp_path: Path) -> None:
    for file in tensorflow.glob("small.*"):
        shutil.copy(file, tmp_path)
    for bit in range(8 * (tmp_path / "small.index").stat().st_size):
        flip(tmp_path / "small.index", bit)
        message(tmp_path / "small")
        flip(tmp_path / "small.index", bit)
    Bundle(tmp_path / "small").read("a")


def test_bytes_that_belong_to_no_tensor_are_not_protected_and_not_read(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes() + b"whatever")
    assert np.array_equal(Bundle(prefix).read("a"), A)


def test_missing_files_and_what_is_no_file(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    data.unlink()
    assert message(prefix) == f"{data}: no such file"
    os.mkfifo(data)
    assert message(prefix) == f"{data}: not a regular file"
    file = Path(f"{prefix}.index")
    file.unlink()
    assert message(prefix) == f"{file}: no such file"
    os.mkfifo(file)
    assert message(prefix) == f"{file}: not a regular file"
    assert "cannot be read" in message(Path("nul\0"))


# --- a valid table with invalid contents ---------------------------------------------------------


def beyond() -> bytes:
    """A table whose index claims more of one block than the file has."""
    meta, handles = framed(block([])), framed(block([(b"z", varint(0) + varint(1 << 30))]))
    return meta + handles + footer(0, len(meta) - 5, len(meta), len(handles) - 5)


INDICES = {
    "the file is empty": b"",
    "10 bytes; the footer of a table alone has 48": b"0123456789",
    "does not end in the magic number": bytes(60),
    "compressed (snappy); not read": assemble([(b"z", framed(block([(b"", HEADER)]), 1))]),
    "compressed (type 9); not read": assemble([(b"z", framed(block([(b"", HEADER)]), 9))]),
    "the footer is damaged: its blocks do not fill": footer(0, 1 << 60, 1 << 61, 1 << 62),
    "a number is not in its shortest form": b"\x80\x00".ljust(40, b"\0") + footer()[40:],
    "a number has more than 64 bits": b"\xff" * 40 + footer()[40:],
    "the data block at byte 0 (1073741824 bytes) does not fit in the file": beyond(),
    "has a metaindex (a filter or statistics)": assemble([], framed(block([(b"filter", b"")]))),
    "the header is missing": table([(b"a", good())]),
    "bundle header: claims 0 data files": index({}, b""),
    "bundle header: claims -1 data files": index({}, number(1, -1)),
    "bundle header: claims 100000 data files": index({}, number(1, 100_000)),
    "byte order 2 is not known": index({}, number(1, 1) + number(2, 2)),
    "needs a reader of version 7": index({}, number(1, 1) + chunk(3, number(2, 7))),
    "told not to read it": index({}, number(1, 1) + chunk(3, chunk(3, varint(1)))),
    "field 9 with wire type 0 is not known": index({"a": number(9, 1)}),
    "field 1 with wire type 2 is not known": index({"a": chunk(1, b"")}),
    "a: a field is cut off": index({"a": b"\x12\x7f"}),
    "a: a number is cut off": index({"a": b"\x08\xff"}),
    "a: type 77 is not known": index({"a": good(77)}),
    "a: type 101 is not known": index({"a": good(101)}),
    "a: is in data file 1 of 1": index({"a": good(shard=1)}),
    "a: is in data file -1 of 1": index({"a": good(shard=-1)}),
    "a: impossible place: 16 bytes from byte -8": index({"a": good(offset=-8)}),
    "a: impossible place: -16 bytes from byte 0": index({"a": entry(7, (4,), size=-16)}),
    "a: float32[4] does not have 12 bytes": index({"a": entry(1, (4,), size=12)}),
    "a: impossible shape [-4]": index({"a": entry(1, (-4,), size=16)}),
    "a: impossible shape [4294967296, 4294967296]": index({"a": entry(1, (1 << 32, 1 << 32))}),
    "a: impossible shape [0, 9223372036854775807": index(
        {"a": entry(1, (0, (1 << 63) - 1), size=0)}
    ),
    "a: 65 dimensions; at most 64": index({"a": entry(1, (1,) * 65)}),
    "a: its shape is unknown": index({"a": number(1, 1) + chunk(2, number(3, 1))}),
    "16 bytes, but a occupies bytes 1 … 17": index({"a": good(offset=1)}),
    "but a occupies bytes 0 … 4503599627370496": index({"a": entry(1, (1 << 50,), size=1 << 52)}),
    "but a occupies bytes 4611686018427387904": index({"a": good(offset=1 << 62)}),
    "checksum of a": index({"a": entry(1, (4,), size=16, crc=1)}),
    "a is bool, but has bytes other than 0 and 1": index(
        {"a": entry(10, (16,), size=16, crc=masked(A.tobytes()))}
    ),
    "pieces of partitioned variables without": table([(b"", HEADER), (b"\0a", good())]),
    "is not UTF-8": table([(b"", HEADER), (b"\xff", good())]),
    "keys are not in order at b'a'": table([(b"", HEADER), (b"b", good()), (b"a", good())]),
    "keys are not in order at b'c'": table([(b"", HEADER), (b"c", good()), (b"c", good())]),
    "keys are not in order at b'b'": assemble(
        [(b"a", framed(block([(b"", HEADER), (b"b", good())])))]
    ),
    "a name of 5000 bytes; at most 4096": table([(b"", HEADER), (b"n" * 5000, good())]),
    "a block has no restart points": assemble([(b"z", framed(b"ab"))]),
    "claims 4294967295 restart points": assemble([(b"z", framed(b"\xff" * 4))]),
    "an entry of a block claims more bytes": assemble(
        [(b"z", framed(b"\x00\x7f\x7f" + bytes(4) + b"\x01\0\0\0"))]
    ),
    "is not the start of an entry": assemble(
        [(b"z", framed(b"\x00\x00\x06" + HEADER + b"\x02\0\0\0" + b"\x01\0\0\0"))]
    ),
    "the same restart point twice": assemble([(b"z", framed(bytes(8) + b"\x02\0\0\0"))]),
}


@pytest.mark.parametrize("what", INDICES)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    prefix = with_index(tmp_path, INDICES[what])
    said = message(prefix)
    assert what in said
    assert said.startswith(str(prefix))


def test_blocks_must_tile_the_file(tmp_path: Path) -> None:
    first = framed(block([(b"", HEADER)]))
    whole = assemble([(b"a", first), (b"z", framed(block([(b"b", good())])))])
    assert "b" in Bundle(with_index(tmp_path, whole)).entries
    size = len(first) - 5
    for handles in ([(b"a", (0, size))], [(b"a", (0, size)), (b"z", (3, 8))], []):
        meta_start = whole.index(framed(block([])))
        meta_size = len(block([]))
        coded = [(key, varint(a) + varint(n)) for key, (a, n) in handles]
        body = framed(block(coded, interval=1))
        start = meta_start + meta_size + 5
        made = whole[:start] + body + footer(meta_start, meta_size, start, len(body) - 5)
        assert "overlap at byte" in message(with_index(tmp_path, made)), handles


def test_no_byte_lies_between_the_last_blocks_and_the_footer(tmp_path: Path) -> None:
    body, empty = framed(block([(b"", HEADER)])), framed(block([]))
    inner = framed(block([(b"z", varint(0) + varint(len(body) - 5))]))
    start, size = len(body) + len(empty), len(inner) - 5
    for before, after in (0, 0), (1, 0), (0, 1):
        made = body + empty + bytes(before) + inner + bytes(after)
        made += footer(len(body), len(empty) - 5, start + before, size)
        prefix = with_index(tmp_path, made)
        if before or after:
            assert "its blocks do not fill the file" in message(prefix)
        else:
            assert Bundle(prefix).entries == {}


def test_a_restart_point_that_shares_a_prefix(tmp_path: Path) -> None:
    """TensorFlow's reader, which starts at restart points, would find another name there."""
    plain = block([(b"", HEADER), (b"a", good()), (b"ab", good())])
    third = plain.index(b"\x01\x01")  # one byte shared, one of its own
    made = plain[:-4] + third.to_bytes(4, "little") + b"\x02\0\0\0"
    assert "a" in Bundle(with_index(tmp_path, assemble([(b"z", framed(plain))]))).entries
    said = message(with_index(tmp_path, assemble([(b"z", framed(made))])))
    assert "an entry of a block claims more bytes" in said


def test_an_index_that_is_too_large_is_not_read(prefix: Path) -> None:
    os.truncate(f"{prefix}.index", 1 << 40)  # sparse: it takes no space
    assert "1099511627776 bytes; at most 16777216 are read" in message(prefix)


def test_absurd_claims_take_no_memory(tmp_path: Path) -> None:
    """Prefix compression: each entry of 7 bytes claims a name of 4000 bytes, 700 MB in all."""
    key, body = b"k" * 4000, [b"\x00\xa0\x1f\x00" + b"k" * 4000]
    body += [varint(4000) + b"\x03\x00" + i.to_bytes(3, "big") for i in range(180_000)]
    restarts = bytes(4) + b"\x01\0\0\0"
    bomb = assemble([(b"z", framed(b"".join(body) + restarts))])
    tracemalloc.start()
    try:
        entries = 0
        with pytest.raises(ValueError, match="more than 262144 entries or 67108864 name bytes"):
            for entries, (name, _) in enumerate(read_table(bomb)):  # noqa: B007
                assert name.startswith(key)
        assert "1125899906842624" in message(
            with_index(tmp_path, index({"a": entry(1, (1 << 48,), size=1 << 50)}))
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert entries < 20_000
    assert peak < 8 * len(bomb)
