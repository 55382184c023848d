"""Graphs that others leave in ``.meta``: recognised, and run if they are arithmetic."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rounding import Noise

from gpt_verify.engines.tensorflow import start
from gpt_verify.errors import CheckpointError
from gpt_verify.numerics.precision import FLOAT32


@pytest.fixture(scope="module")
def worker():
    with start(error=CheckpointError) as worker:
        yield worker


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Checkpoints with graphs of other authors, written by another process."""
    root = tmp_path_factory.mktemp("graphs")
    script = Path(__file__).parents[1] / "tensorflow_graphs.py"
    subprocess.run([sys.executable, str(script), str(root)], check=True, capture_output=True)
    return root


@pytest.mark.parametrize("kind", ["reference", "resource"])
@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("only_variables", "no forward graph: no gather"),
        ("embedding_only", "no forward graph: no product"),
        ("constant_input", "no forward graph: no gather"),
        ("training", None),
        ("transposed", None),
        ("writes_a_file", "not run: more than arithmetic"),
    ],
)
def test_graphs_of_other_authors(worker, graphs, graph, kind, expected):
    tokens = np.array([[1], [4]], np.int32)
    frame = worker.call("meta", tokens, prefix=str(graphs / f"{graph}-{kind}"))
    if expected is not None:
        assert expected in frame.fields["description"]
        assert frame.fields["tied"] is (True if graph == "writes_a_file" else None)
        assert not frame.arrays
        assert not (graphs / "written").exists()
        return
    wte, _head = np.load(graphs / "tables.npy")
    assert frame.fields["found"] and frame.fields["tied"]
    assert "read the one variable model/wte" in frame.fields["description"]
    state = np.tanh(wte[tokens])
    assert (np.abs(frame.arrays[0] - state @ wte.T) <= bound(state, wte)).all()


def bound(state, table):
    """A dot product of n terms in float32 is off by at most n u Σ|x||w|, and tanh by a few u; here
    both sides are float32 (Higham 2002, equation 3.5)."""
    return 2 * (table.shape[1] + 8) * 2.0**-24 * (np.abs(state) @ np.abs(table).T)


@pytest.mark.parametrize("kind", ["reference", "resource"])
@pytest.mark.parametrize("graph", ["untied", "untied_training"])
def test_a_head_of_its_own_is_named(worker, graphs, graph, kind):
    tokens = np.array([[1], [4]], np.int32)
    frame = worker.call("meta", tokens, prefix=str(graphs / f"{graph}-{kind}"))
    assert frame.fields["found"] and frame.fields["tied"] is False
    assert "reads model/wte; " in frame.fields["description"]
    assert frame.fields["description"].endswith("reads another variable, model/head")
    wte, head = np.load(graphs / "tables.npy")

    def run(dtype, store):
        state = wte[tokens[:, 0]].astype(dtype)
        if graph == "untied_training":
            state = store(store(np.tanh(store(state @ head.T.astype(dtype)))) @ head.astype(dtype))
        yield "logits", store(state @ head.T.astype(dtype))

    # That it is this product and no other.
    Noise(run, FLOAT32).assert_holds("logits", frame.arrays[0][:, 0])


@pytest.mark.parametrize("suffixes", [["meta"], ["meta", "index"]])
def test_what_cannot_be_restored_is_described_and_not_run(worker, graphs, tmp_path, suffixes):
    for suffix in suffixes:
        shutil.copy(graphs / f"untied-reference.{suffix}", tmp_path / f"model.ckpt.{suffix}")
    frame = worker.call("meta", np.zeros((1, 1), np.int32), prefix=str(tmp_path / "model.ckpt"))
    assert frame.fields["tied"] is False and not frame.arrays
    assert "not run: it cannot be restored: " in frame.fields["description"]
    assert "\n" not in frame.fields["description"]


def test_a_meta_that_is_no_graph(worker, tmp_path):
    (tmp_path / "model.ckpt.meta").write_bytes(b"\xff" * 100)
    frame = worker.call("meta", np.zeros((1, 1), np.int32), prefix=str(tmp_path / "model.ckpt"))
    assert "cannot be imported" in frame.fields["description"]
    assert not frame.fields["found"] and frame.fields["tied"] is None
