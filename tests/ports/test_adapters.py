"""Built-in ports that need more than torch and TensorFlow; each in a tox environment of its own.

``GPT_VERIFY_ADAPTERS`` names those that must be there: ``tox -e onnx`` sets it. The others are
skipped, visibly.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Options, Silent, run
from gpt_verify.ports.registry import build

HERE = [name for name in os.environ.get("GPT_VERIFY_ADAPTERS", "").split(",") if name]
#: Adapter → what it must show beside the logits: laws that pass at least once.
SHOWN = {
    "compiled": {"weights.values", "tying.value", "tying.storage", "loss.value"},
    "onnx": {"weights.values", "activations.local", "tying.value", "causality.pattern"},
    "transformer-lens": {"weights.values", "architecture", "tying.storage", "gradient"},
    "transformer-lens-processed": set(),
    "ctranslate2": set(),
    "keras-hub": set(),
}

pytestmark = [
    pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                name,
                marks=pytest.mark.skipif(
                    name not in HERE, reason=f"for tox's environment of {name}"
                ),
            )
            for name in SHOWN
        ],
    ),
    # torch's compiler warns of torch's own code.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


def test_verified_on_the_default_checkpoint(name: str) -> None:
    (report,) = run(None, [name], Options(lengths=(1, 33, 256))).ports
    assert report.verdict is Verdict.VERIFIED, report.error
    passed = {finding.id for finding in report.findings if finding.status is Status.PASSED}
    assert SHOWN[name] | {"logits", "determinism", "batch", "causality.bits"} <= passed


@pytest.mark.parametrize("tensor", ["h2/mlp/c_fc/w", "h1/attn/c_attn/b", "wpe"])
def test_one_wrong_weight(name: str, tensor: str) -> None:
    """The port is made of another checkpoint, in which one tensor has been through bfloat16."""
    right = open_checkpoint(default_checkpoint())
    report = _judged(name, right, _rounded(right, tensor))
    assert report.verdict is Verdict.REFUTED
    if "weights.values" in SHOWN[name]:
        wrong = {f.message for f in report.findings if f.status is Status.FAILED}
        assert any(tensor in message for message in wrong)


def _judged(name: str, right: Checkpoint, wrong: Checkpoint) -> PortReport:
    return judge(
        name,
        right,
        [seeded(right.config, 33, 0)],
        None,
        "cpu",
        Silent(),
        build=lambda: build(name, wrong, None, "cpu"),
        laws=(),
    )


def _rounded(source: Checkpoint, tensor: str) -> Checkpoint:
    value = np.array(source.tensors[tensor])
    bits = value.view(np.uint32)
    value = ((bits + 0x8000) & 0xFFFF0000).view(np.float32)
    return replace(source, tensors=MappingProxyType({**source.tensors, tensor: value}))
