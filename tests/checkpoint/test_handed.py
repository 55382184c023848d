"""What a port is handed is its own: no write reaches the reference, whatever the weights come from,
and nothing is copied where nobody writes."""

from __future__ import annotations

import gc
import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_directory import CONFIG, MINIMAL, state, tensors
from models import checkpoint as in_memory
from models import failures, finding, judged
from safetensors.torch import save_file

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, files, open_checkpoint
from gpt_verify.checkpoint.handed import handed_out
from gpt_verify.checkpoint.hf_pickled import SINGLE
from gpt_verify.checkpoint.hf_weights import PICKLED, SHARDED
from gpt_verify.checkpoint.synthetic import synthesize, synthetic_tensors
from gpt_verify.findings import Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.reference import tensor_table

HERE = Path(__file__)
Make = Callable[[Path], Checkpoint]


def _directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(MINIMAL))
    return path


def _opened(path: Path, save: Callable[[Path], object]) -> Checkpoint:
    save(_directory(path))
    return open_checkpoint(path)


def _sharded(path: Path) -> None:
    values = list(state().items())
    parts = {"a.safetensors": dict(values[::2]), "b.safetensors": dict(values[1::2])}
    for name, part in parts.items():
        save_file(part, path / name)
    places = {key: name for name, part in parts.items() for key in part}
    (path / SHARDED).write_text(json.dumps({"weight_map": places}))


def _cast(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) for name, value in state().items()}


def _transposed() -> dict[str, torch.Tensor]:
    return {n: v.T.contiguous().T if v.ndim == 2 else v for n, v in state().items()}


def _old_pickle(path: Path) -> None:
    torch.save(state(), path / PICKLED, _use_new_zipfile_serialization=False)


#: Everything that tensors come from.
SOURCES: dict[str, Make] = {
    "openai": lambda path: open_checkpoint(default_checkpoint("openai")),
    "safetensors": lambda p: _opened(p, lambda d: save_file(state(), d / SINGLE)),
    "float16": lambda p: _opened(p, lambda d: save_file(_cast(torch.float16), d / SINGLE)),
    "bfloat16": lambda p: _opened(p, lambda d: save_file(_cast(torch.bfloat16), d / SINGLE)),
    "shards": lambda p: _opened(p, _sharded),
    "bin": lambda p: _opened(p, lambda d: torch.save(state(), d / PICKLED)),
    "bin float16": lambda p: _opened(p, lambda d: torch.save(_cast(torch.float16), d / PICKLED)),
    "bin transposed": lambda p: _opened(p, lambda d: torch.save(_transposed(), d / PICKLED)),
    "old bin": lambda p: _opened(p, _old_pickle),
    "arrays": lambda p: Checkpoint(p, "openai", CONFIG, tensors()),
    "synthetic": lambda p: Checkpoint(p, "openai", CONFIG, synthetic_tensors(CONFIG, 3)),
}


@pytest.fixture(params=[0, files.SMALLEST_MAPPING], ids=["mapped", "by size"])
def smallest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with every tensor mapped, however small."""
    monkeypatch.setattr(files, "SMALLEST_MAPPING", request.param)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path, smallest: None) -> Checkpoint:
    return SOURCES[request.param](tmp_path / "checkpoint")


def _bits(source: Checkpoint) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in source.tensors.items()}


def test_no_write_reaches_the_reference(source: Checkpoint) -> None:
    """Through NumPy, through torch, while the reference holds a view and while it holds none."""
    before = _bits(source)
    handed = handed_out(source)
    for name in handed.tensors:
        read = source.tensors[name]
        kept = handed.tensors[name]
        assert not np.shares_memory(read, kept)
        torch.from_numpy(kept).mul_(1.5)
        kept.reshape(-1)[:] += 1
        assert read.tobytes() == before[name]
        assert kept.tobytes() != before[name]
    assert _bits(source) == before


def test_it_is_what_the_reference_reads(source: Checkpoint) -> None:
    handed = handed_out(source)
    assert list(handed.tensors) == list(source.tensors) == list(tensor_table(source.config))
    assert len(handed.tensors) == len(source.tensors)
    for name, value in source.tensors.items():
        found = handed.tensors[name]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
        assert found.flags.writeable
    assert "wte" in handed.tensors
    assert "h0/nothing" not in handed.tensors
    with pytest.raises(KeyError):
        handed.tensors["h0/nothing"]


def test_what_was_written_stays_as_long_as_it_is_held(source: Checkpoint) -> None:
    """The pages that the reference gives back after use are not the port's."""
    handed = handed_out(source)
    column = handed.tensors["wte"][:, 1]
    column[:] = 7
    neighbour = handed.tensors["wpe"][0]
    for name in source.tensors:
        assert source.tensors[name].tobytes()
    gc.collect()
    assert (column == 7).all()
    assert (handed.tensors["wte"][:, 1] == 7).all()
    assert neighbour.tobytes() == source.tensors["wpe"][0].tobytes()


def test_two_look_ups_are_one_memory_while_one_is_held(source: Checkpoint) -> None:
    """A head that is looked up as wte is tied, a view of a view included."""
    handed = handed_out(source)
    kept = handed.tensors["wte"].T[1:].T
    again = handed.tensors["wte"]
    assert np.shares_memory(kept, again)
    assert handed_out(source).tensors["wte"].ctypes.data != again.ctypes.data
    again[:] = 7
    del kept, again
    gc.collect()
    assert handed.tensors["wte"].tobytes() == source.tensors["wte"].tobytes()


def test_two_ports_are_handed_memory_of_their_own(source: Checkpoint) -> None:
    one, other = handed_out(source), handed_out(source)
    first, second = one.tensors["wte"], other.tensors["wte"]
    first[:] = 7
    assert second.tobytes() == source.tensors["wte"].tobytes()


def _mapped(path: Path, permissions: str) -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(path) in line and permissions in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
class TestMappings:
    def test_a_mapping_ends_with_what_was_made_from_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "SMALLEST_MAPPING", 0)
        source = SOURCES["safetensors"](tmp_path / "checkpoint")
        handed = handed_out(source)
        path = source.path / SINGLE
        source.tensors["wte"]
        (read,) = _mapped(path, "rw-p")  # through which all of it is read
        kept = torch.from_numpy(handed.tensors["wte"])[1:]
        assert len(_mapped(path, "rw-p")) == 2
        gc.collect()
        assert len(_mapped(path, "rw-p")) == 2
        del kept
        gc.collect()
        assert _mapped(path, "rw-p") == [read]

    @pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # once in a process
    def test_what_torch_writes_outlives_a_neighbour(self, tmp_path: Path) -> None:
        """They may share a page, which is given back whole or not at all."""
        file = tmp_path / "file"
        file.write_bytes(bytes(4 * mmap.PAGESIZE))
        mapped = files.MappedFile(file)
        middle = mmap.PAGESIZE + 100
        left, right = mapped.view(0, middle), mapped.view(middle, 2 * mmap.PAGESIZE)
        written = torch.from_numpy(right)
        written[:] = 7
        del left
        gc.collect()
        assert bool((written == 7).all())
        assert file.read_bytes() == bytes(4 * mmap.PAGESIZE)

    def test_small_ones_are_copied(self, tmp_path: Path) -> None:
        source = SOURCES["safetensors"](tmp_path / "checkpoint")
        kept = dict(handed_out(source).tensors)
        assert kept
        assert len(_mapped(source.path / SINGLE, "rw-p")) == 1  # through which all of it is read

    def test_copied_where_no_more_can_be_mapped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "SMALLEST_MAPPING", 0)
        source = SOURCES["safetensors"](tmp_path / "checkpoint")
        before = _bits(source)
        mmap = files.mmap.mmap

        def exhausted(*given: object, access: int, **more: object) -> object:
            if access == files.mmap.ACCESS_COPY:
                raise OSError(24, "Too many open files")
            return mmap(*given, access=access, **more)

        monkeypatch.setattr(files.mmap, "mmap", exhausted)
        kept = handed_out(source).tensors["wte"]
        kept[:] = 7
        assert _bits(source) == before


def test_read_where_no_memory_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private page for each of the file's is more than some machines have."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(200)))
    mmap = files.mmap.mmap

    def exhausted(*given: object, access: int, **more: object) -> object:
        if access == files.mmap.ACCESS_COPY:
            raise OSError(12, "Cannot allocate memory")
        return mmap(*given, access=access, **more)

    monkeypatch.setattr(files.mmap, "mmap", exhausted)
    assert files.MappedFile(file).view(3, 4).tolist() == [3, 4, 5, 6]


def test_bytes_outside_of_a_file_are_refused(tmp_path: Path) -> None:
    """Beyond its end a look would end the process."""
    file = tmp_path / "file"
    file.write_bytes(bytes(8))
    mapped = files.MappedFile(file)
    for offset, size in ((3, 6), (-1, 2), (9, 0), (3, -1)):
        with pytest.raises(files.CheckpointError, match="lie outside its 8 bytes"):
            mapped.view(offset, size)


def test_a_file_that_is_gone_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8))
    mapped = files.MappedFile(file)
    file.unlink()
    with pytest.raises(files.CheckpointError, match=r"file: cannot be mapped: .*No such file"):
        mapped.view(0, 8)


def test_a_file_that_was_replaced_is_not_mixed_with_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SMALLEST_MAPPING", 0)
    source = SOURCES["safetensors"](tmp_path / "checkpoint")
    assert source.tensors["wte"].size
    path = source.path / SINGLE
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(files.CheckpointError, match="was replaced while it was being read"):
        handed_out(source).tensors["wte"]


# Ports: wpe is scaled where it was handed out, or used where it lies.


def _module(checkpoint: Checkpoint) -> torch.nn.Module:
    return huggingface(checkpoint, "eager").module


def damaged_in_place(checkpoint: Checkpoint) -> torch.nn.Module:
    model = _module(checkpoint)
    model.transformer.wpe.weight.data = torch.from_numpy(checkpoint.tensors["wpe"])
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(1.5)
    return model


def damaged_before(checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    """One of our own ports, made of what was damaged before."""
    damaged_before.kept = checkpoint.tensors["wpe"]  # type: ignore[attr-defined]
    torch.from_numpy(damaged_before.kept).mul_(1.5)  # type: ignore[attr-defined]
    return huggingface(checkpoint, "eager")


def zero_copy(checkpoint: Checkpoint) -> torch.nn.Module:
    model = _module(checkpoint)
    model.transformer.wte.weight.data = torch.from_numpy(checkpoint.tensors["wte"])
    model.lm_head.weight = model.transformer.wte.weight
    model.transformer.wpe.weight.data = torch.from_numpy(checkpoint.tensors["wpe"])
    return model


SIZES = replace(in_memory().config, n_layer=1)


@pytest.fixture(params=["safetensors", "bin", "arrays"])
def whole(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Checkpoint]:
    """A model that can be judged, every tensor mapped where it can be."""
    monkeypatch.setattr(files, "SMALLEST_MAPPING", 0)
    if request.param == "arrays":
        yield in_memory(SIZES)
        return
    path = tmp_path / "model"
    synthesize(path, SIZES, 0, format="huggingface")
    if request.param == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(path / SINGLE), path / PICKLED)
        (path / SINGLE).unlink()
    yield open_checkpoint(path)


@pytest.mark.parametrize("port", ["damaged_in_place", "damaged_before"])
def test_damage_to_what_was_handed_out_is_refuted(whole: Checkpoint, port: str) -> None:
    report = judged(f"{HERE}:{port}", whole, [seeded(whole.config, 5, 0)])
    assert report.error is None
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == "embed"
    assert finding(report, "weights.values", "embed").status is Status.FAILED


def test_what_is_used_where_it_lies_is_verified(whole: Checkpoint) -> None:
    report = judged(f"{HERE}:zero_copy", whole, [seeded(whole.config, 5, 0)])
    assert report.error is None
    assert failures(report) == []
    assert report.verdict is Verdict.VERIFIED
