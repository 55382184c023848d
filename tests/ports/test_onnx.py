"""ONNX files that are given: what is found in them, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIG, checkpoint, finding, judged

from gpt_verify.errors import PortError
from gpt_verify.findings import Status, Verdict
from gpt_verify.port import Port
from gpt_verify.ports.registry import build

if "onnx" not in os.environ.get("GPT_VERIFY_ADAPTERS", ""):
    pytest.skip("for tox's environment of onnx", allow_module_level=True)

import onnx
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a tiny model."""
    from gpt_verify.checkpoint.write import write_huggingface
    from gpt_verify.ports.engine import run_child

    folder = tmp_path_factory.mktemp("onnx")
    source = checkpoint()
    write_huggingface(folder, source.config, source.tensors)
    run_child("onnx", "gpt_verify.engines.onnx_export", str(folder), str(folder / "model.onnx"))
    return folder / "model.onnx"


def altered(file: Path, tmp_path: Path, alter: Any) -> str:
    model = onnx.load(file)
    alter(model.graph)
    onnx.save(model, tmp_path / "altered.onnx")
    return f"onnx={tmp_path / 'altered.onnx'}"


def test_every_site_but_the_scores(file: Path) -> None:
    report = judged(f"onnx={file}")
    assert report.verdict is Verdict.VERIFIED, report.error
    unseen = {
        f.site
        for f in report.findings
        if f.id == "activations.local" and f.status is Status.NOT_EXAMINED
    }
    assert unseen == {f"h.{i}.attn.scores" for i in range(CONFIG.n_layer)}


def test_names_mean_nothing(file: Path, tmp_path: Path) -> None:
    def rename(graph: Any) -> None:
        new = {old.name: f"x{i}" for i, old in enumerate(graph.initializer)}
        for initializer in graph.initializer:
            initializer.name = new[initializer.name]
        for node in graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = new.get(name, name)

    assert judged(altered(file, tmp_path, rename)).verdict is Verdict.VERIFIED


def test_a_wrong_epsilon_is_found_where_it_is(file: Path, tmp_path: Path) -> None:
    def epsilon(graph: Any) -> None:
        norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
        (attribute,) = (a for a in norms[1].attribute if a.name == "epsilon")
        attribute.f = 1e-3

    report = judged(altered(file, tmp_path, epsilon))
    assert report.verdict is Verdict.REFUTED
    assert report.first_divergence == "h.0.ln_2"


def test_a_wrong_weight_is_found_where_it_is(file: Path, tmp_path: Path) -> None:
    def weight(graph: Any) -> None:
        (one,) = (i for i in graph.initializer if i.name.endswith("h.1.mlp.c_fc.bias"))
        value = numpy_helper.to_array(one) * np.float32(1.001)
        one.CopyFrom(numpy_helper.from_array(value, one.name))

    report = judged(altered(file, tmp_path, weight))
    assert finding(report, "weights.values", "h.1.mlp.pre").status is Status.FAILED


def made(tmp_path: Path, inputs: list[Any]) -> str:
    graph = helper.make_graph(
        [helper.make_node("Cast", [inputs[0].name], ["y"], to=TensorProto.FLOAT)],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "made.onnx")
    return f"onnx={tmp_path / 'made.onnx'}"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([TensorProto.FLOAT], "takes a tensor(float); should take one tensor of integers"),
        ([TensorProto.INT64, TensorProto.INT64], "should take one tensor of integers"),
    ],
)
def test_other_inputs_are_refused(tmp_path: Path, kinds: list[int], words: str) -> None:
    inputs = [
        helper.make_tensor_value_info(name, kind, ["b", "t"])
        for name, kind in zip("ab", kinds, strict=False)
    ]
    with pytest.raises(PortError) as error:
        build(made(tmp_path, inputs), checkpoint(), None, "cpu")
    assert words in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="no such file"):
        build(f"onnx={tmp_path / 'x.onnx'}", checkpoint(), None, "cpu")


def test_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"hello")
    with pytest.raises(PortError, match="cannot be loaded"):
        build(f"onnx={tmp_path / 'x.onnx'}", checkpoint(), None, "cpu")


def test_float16_is_refused(file: Path) -> None:
    with pytest.raises(PortError, match="computes in float32 on the CPU"):
        build(f"onnx={file}", checkpoint(), "float16", "cpu")


def test_it_is_closed(file: Path) -> None:
    port: Port = build(f"onnx={file}", checkpoint(), None, "cpu")
    port.close()
    with pytest.raises(PortError, match="is closed"):
        port.logits(np.zeros((1, 1), np.int64))
