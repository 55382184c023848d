"""Our reader of tensor bundles, against TensorFlow's and against everything that can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import (
    chunk,
    entry,
    index,
    masked,
    number,
    write_bundle,
    written_by_tensorflow,
)

from gpt_verify.checkpoint.bundle import DTYPES, Bundle
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


def with_index(directory: Path, data: bytes, tensors: bytes) -> Path:
    (directory / "b.index").write_bytes(data)
    (directory / "b.data-00000-of-00001").write_bytes(tensors)
    return directory / "b"


# --- equal to TensorFlow -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtypes", "many", "shards"])
def test_equals_tensorflow_bit_for_bit(tensorflow: Path, name: str) -> None:
    listed = json.loads((tensorflow / f"{name}.json").read_text())
    expected = np.load(tensorflow / f"{name}.npz")
    bundle = Bundle(tensorflow / name)
    found = [(n, e.dtype, list(e.shape)) for n, e in bundle.entries.items()]
    assert found == [tuple(line) for line in listed]
    assert len(found) == {"dtypes": 100, "many": 4000, "shards": 4}[name]
    for i, (tensor, dtype, shape) in enumerate(listed):
        value = bundle.read(tensor)
        assert list(value.shape) == shape
        assert not value.flags.writeable
        if dtype == "bfloat16":  # widened: the lower half must be empty, the upper half is equal
            bits = value.view(np.uint32)
            assert not np.any(bits & 0xFFFF)
            value = (bits >> 16).astype(np.uint16)
        assert value.tobytes() == expected[f"arr_{i}"].tobytes(), tensor


def test_every_fixed_width_type_is_covered(tensorflow: Path) -> None:
    covered = {entry.dtype for entry in Bundle(tensorflow / "dtypes").entries.values()}
    assert covered == {name for name, code in DTYPES.values() if code}


def test_many_has_several_blocks_and_shards_has_two_files(tensorflow: Path) -> None:
    assert (tensorflow / "many.index").stat().st_size > 2 * 262144
    shards = Bundle(tensorflow / "shards")
    assert {entry.shard for entry in shards.entries.values()} == {0, 1}
    names = [file.name for file in shards.files]
    assert names == ["shards.index", "shards.data-00000-of-00002", "shards.data-00001-of-00002"]


def test_the_writer_of_these_tests_writes_what_tensorflow_writes(
    tensorflow: Path, tmp_path: Path
) -> None:
    small = {"a": np.array([1, 2], np.float32), "ab": np.array(3, np.int64)}
    write_bundle(tmp_path / "small", small)
    for suffix in (".index", ".data-00000-of-00001"):
        ours, theirs = (Path(f"{d / 'small'}{suffix}") for d in (tmp_path, tensorflow))
        assert ours.read_bytes() == theirs.read_bytes()


def test_partitioned_variables_are_refused_by_name(tensorflow: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"sliced\.index: partitioned variables are not read: table"
    ):
        Bundle(tensorflow / "sliced")


def test_types_without_a_fixed_width_are_listed_but_not_read(tensorflow: Path) -> None:
    bundle = Bundle(tensorflow / "unread")
    assert bundle.read("plain") == 1.5
    for name, dtype in (("text", "string"), ("list", "variant")):
        with pytest.raises(CheckpointError, match=f"{name} has type {dtype}, which is not read"):
            bundle.read(name)


# --- how it reads --------------------------------------------------------------------------------


def test_tensors_are_views_of_the_file(prefix: Path) -> None:
    bundle = Bundle(prefix)
    first, again = bundle.read("a"), bundle.read("a")
    assert np.shares_memory(first, again)
    assert not first.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_opening_reads_no_tensor_and_a_checksum_is_verified_at_the_first_read(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    bundle = Bundle(prefix)
    assert np.array_equal(bundle.read("a"), A)
    with pytest.raises(CheckpointError, match=r"00001: checksum of a/b \(bytes 16 … 24\) is 0x"):
        bundle.read("a/b")
    with pytest.raises(CheckpointError, match="damaged"):  # a failed check is not remembered
        bundle.read("a/b")


def test_reading_every_tensor_occupies_the_memory_of_one(tmp_path: Path) -> None:
    mebi = np.zeros(1 << 20, np.float32)
    write_bundle(tmp_path / "b", {f"t{i}": mebi + np.float32(i) for i in range(16)})

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0]) << 10

    bundle, before = Bundle(tmp_path / "b"), resident()
    for i in range(16):
        assert bundle.read(f"t{i}")[-1] == i
    assert resident() - before < 3 * mebi.nbytes


def test_big_endian_is_read(tmp_path: Path) -> None:
    data = A.astype(">f4").tobytes()
    header = number(1, 1) + number(2, 1) + chunk(3, number(1, 1))
    made = index({"a": entry(1, (4,), size=16, crc=masked(data))}, header)
    value = Bundle(with_index(tmp_path, made, data)).read("a")
    assert value.dtype.isnative
    assert np.array_equal(value, A)


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", {"a": np.array(True), "b": A})
    assert np.array_equal(Bundle(tmp_path / "b").read("b"), A)


def test_a_file_that_changes_its_length_after_opening(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    mapped, unmapped = Bundle(prefix), Bundle(prefix)
    mapped.read("a")
    os.truncate(data, 3)
    for bundle in (mapped, unmapped):
        with pytest.raises(CheckpointError, match="no longer 24 bytes long: it was changed"):
            bundle.read("a/b")


def test_an_unknown_tensor(prefix: Path) -> None:
    with pytest.raises(CheckpointError, match=r"b\.index: has no tensor nobody"):
        Bundle(prefix).read("nobody")


def test_no_framework_is_imported() -> None:
    modules = "bundle, openai, huggingface, hf_config, hf_weights, tensors, files, table, write"
    code = (
        f"import sys, verify; from gpt_verify.checkpoint import {modules}; "
        "print(*{'torch', 'tensorflow', 'transformers', 'jax'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)
