"""Graphs that others leave in ``.meta``: recognised, and run if they are arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verify.errors import CheckpointError
from verify.tensorflow import start


@pytest.fixture(scope="module")
def worker():
    with start(error=CheckpointError) as worker:
        yield worker


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Checkpoints with graphs of other authors, written by another process."""
    root = tmp_path_factory.mktemp("graphs")
    script = Path(__file__).with_name("tensorflow_graphs.py")
    subprocess.run([sys.executable, str(script), str(root)], check=True, capture_output=True)
    return root


@pytest.mark.parametrize("kind", ["reference", "resource"])
@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("only_variables", "no forward graph: no gather"),
        ("embedding_only", "no forward graph: no product"),
        ("untied", "no forward graph: no product"),
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
        assert not frame.arrays
        assert not (graphs / "written").exists()
        return
    wte = np.load(graphs / "wte.npy")
    assert frame.fields["found"], frame.fields["description"]
    state = np.tanh(wte[tokens])
    # A dot product of n terms in float32 is off by at most n u Σ|x||w|, and tanh by a few u; here
    # both sides are float32 (Higham 2002, equation 3.5).
    bound = 2 * (wte.shape[1] + 8) * 2.0**-24 * (np.abs(state) @ np.abs(wte).T)
    assert (np.abs(frame.arrays[0] - state @ wte.T) <= bound).all()


def test_a_meta_that_is_no_graph(worker, tmp_path):
    (tmp_path / "model.ckpt.meta").write_bytes(b"\xff" * 100)
    frame = worker.call("meta", np.zeros((1, 1), np.int32), prefix=str(tmp_path / "model.ckpt"))
    assert "cannot be imported" in frame.fields["description"]
    assert not frame.fields["found"]
