"""Bundles of arbitrary bytes: read, or refused by CheckpointError, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundles import (
    HEADER,
    assemble,
    entry,
    footer,
    framed,
    index,
    masked,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_verify.checkpoint.bundle import DTYPES, Bundle
from gpt_verify.errors import CheckpointError

A = np.arange(4, dtype=np.float32)
LIMITED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def with_index(directory: Path, data: bytes, tensors: bytes = A.tobytes()) -> Path:
    (directory / "b.index").write_bytes(data)
    (directory / "b.data-00000-of-00001").write_bytes(tensors)
    return directory / "b"


# --- anything at all -----------------------------------------------------------------------------


def survive(prefix: Path) -> None:
    """Either it is read, or CheckpointError says in one line why not."""
    try:
        bundle = Bundle(prefix)
        for name in bundle.entries:
            bundle.read(name)
    except CheckpointError as error:
        assert "\n" not in str(error)


@LIMITED
@given(st.binary(max_size=200))
def test_random_bytes_as_index(tmp_path: Path, data: bytes) -> None:
    survive(with_index(tmp_path, data))
    survive(with_index(tmp_path, data + footer()[-8:]))


@LIMITED
@given(st.binary(max_size=120))
def test_random_bytes_with_a_valid_checksum_as_block(tmp_path: Path, data: bytes) -> None:
    survive(with_index(tmp_path, assemble([(b"\xff" * 9, framed(data))])))
    survive(with_index(tmp_path, assemble([(b"\xff" * 9, framed(data + bytes(4) + b"\1\0\0\0"))])))


WORDS = st.sampled_from([0, 1, 2, 4, 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, -1])


@LIMITED
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=4),
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                entry,
                dtype=st.integers(0, 40),
                shape=st.lists(WORDS, max_size=4),
                shard=WORDS,
                offset=WORDS,
                size=WORDS,
                crc=st.sampled_from([0, masked(b""), masked(A.tobytes())]),
                more=st.binary(max_size=4),
            ),
            st.builds(
                entry,
                dtype=st.sampled_from(sorted(DTYPES)),
                shape=st.lists(st.integers(0, 8), max_size=3),
                offset=st.integers(0, 16),
                size=st.integers(0, 16),
            ),
        ),
        max_size=4,
    ),
    st.one_of(st.just(HEADER), st.binary(max_size=12)),
)
def test_random_entries(tmp_path: Path, entries: dict[str, bytes], header: bytes) -> None:
    survive(with_index(tmp_path, index(entries, header)))
