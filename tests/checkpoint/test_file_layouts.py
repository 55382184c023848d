"""Each directory that people have is opened, or refused with the message that the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from file_layouts import OPENED_HF, TABLES, Layout
from huggingface_directory import tensors

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.errors import CheckpointError
from gpt_verify.findings import Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent

ROOT = Path(__file__).resolve().parents[2]


CASES = [
    pytest.param(layout, id=f"{name}: {layout.what}")
    for name, table in TABLES.items()
    for layout in table
]


@pytest.mark.parametrize("layout", CASES)
def test_layout(tmp_path: Path, layout: Layout) -> None:
    directory = tmp_path / "it"
    directory.mkdir()
    given = layout.make(directory) or directory
    if not layout.opened:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(given, layout.ignore)
        said = str(caught.value).replace(str(directory), "DIR")
        assert said.replace(str(tmp_path / "elsewhere"), "ELSEWHERE") == layout.said
        return
    checkpoint = open_checkpoint(given, layout.ignore)
    assert "\n".join(checkpoint.remarks) == layout.said
    assert checkpoint.config == layout.config
    expected = tensors(layout.config)
    assert list(checkpoint.tensors) == list(expected)
    for name, value in expected.items():
        found = checkpoint.tensors[name]
        assert found.dtype == np.float32
        assert not found.flags.writeable
        if layout.rounded:
            value = (value.astype(np.float64) + 1e-9).astype(np.float32)
        assert np.array_equal(found, value)
    assert all(file.is_file() for file in checkpoint.files)


def test_the_page_shows_them() -> None:
    script = ROOT / "scripts" / "checkpoints_page.py"
    done = subprocess.run([sys.executable, os.fspath(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_opening_is_lazy(tmp_path: Path) -> None:
    """A model of 124M in less than 50 ms, before the first tensor is read: its data are a hole."""
    import json

    from gpt_verify.checkpoint.hf_names import stored_name
    from gpt_verify.reference import RELEASED, tensor_table

    header, end = {}, 0
    for name, spec in tensor_table(RELEASED["124M"]).items():
        offsets = [end, end := end + 4 * spec.size]
        header[stored_name(name)] = {
            "dtype": "F32",
            "shape": list(spec.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    open_checkpoint(tmp_path)  # what is imported is imported once
    taken = []
    for _ in range(5):
        start = time.process_time()
        assert open_checkpoint(tmp_path).config == RELEASED["124M"]
        taken.append(time.process_time() - start)
    assert min(taken) < 0.050


@pytest.mark.parametrize(
    "layout",
    [layout for layout in OPENED_HF if "of the hub" in layout.what or "shards" in layout.what],
    ids=lambda layout: layout.what,
)
def test_transformers_opens_the_same(tmp_path: Path, layout: Layout) -> None:
    """By its own reader, from the same files: what the two have read is one model."""
    layout.make(tmp_path)
    source, spec = open_checkpoint(tmp_path), f"huggingface-eager={tmp_path}"
    report = judge(spec, source, [seeded(layout.config, 5, 0)], None, "cpu", Silent(), laws=())
    assert report.error is None
    assert report.verdict is Verdict.VERIFIED
    assert report.weights_from == str(tmp_path)
