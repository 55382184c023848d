"""Tying by graph: one variable at both ends, of the graph that is run and of a stored one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tying_faults as faults
from models import CONFIG, finding, judged
from subjects import hold, port

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.findings import Finding, Status, Verdict
from gpt_verify.laws.tying.check import with_stored_graph
from gpt_verify.port import TYING, NotExamined

Alter = Callable[[Any], None]
LAW = "tying.graph"


def found(made: Any) -> Finding:
    (one,) = hold(LAW, made)
    return one


class TestTorch:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_one_parameter(self, attention: str, dtype: Any) -> None:
        one = found(port(attention=attention, dtype=dtype))
        assert (one.status, one.site) == (Status.PASSED, "logits")
        assert "transformer.wte.weight = lm_head.weight" in one.message

    @pytest.mark.parametrize(
        ("alter", "says"),
        [
            (faults.head_copied, "two matrices"),
            (faults.head_drawn_anew, "reads lm_head.weight"),
            (faults.head_detached, "the head is detached"),
            (faults.head_in_a_buffer, "reads something that is no parameter"),
            (faults.lookup_detached, "no lookup leads back to"),
            (faults.lookup_copied, "no lookup leads back to"),
        ],
    )
    def test_refuted(self, alter: Alter, says: str) -> None:
        one = found(port(alter))
        assert one.status is Status.FAILED
        assert says in one.message

    def test_no_graph(self) -> None:
        made = port()
        made.withdraw(TYING)
        assert found(made).message == "no graph"

    def test_a_graph_that_cannot_be_seen(self) -> None:
        made = port()

        def tying() -> tuple[bool, str]:
            raise NotExamined("no graph: it is compiled")

        made.offer(TYING, tying)
        one = found(made)
        assert (one.status, one.message) == (Status.NOT_EXAMINED, "no graph: it is compiled")


@dataclass(frozen=True)
class Stored:
    """What a stored graph turned out to be."""

    found: bool
    tied: bool | None
    description: str
    logits: None = None


class TestBothGraphs:
    OWN = Finding(LAW, Status.PASSED, "one variable", "logits")
    UNTIED = Finding(LAW, Status.FAILED, "two variables", "logits")
    UNSEEN = Finding(LAW, Status.NOT_EXAMINED, "no graph", "logits")
    OTHER = Finding("tying.value", Status.PASSED, "equal", "logits")

    @pytest.mark.parametrize(
        ("own", "tied", "status"),
        [
            (OWN, True, Status.PASSED),
            (OWN, False, Status.FAILED),
            (UNTIED, True, Status.FAILED),
            (UNTIED, False, Status.FAILED),
            (UNSEEN, True, Status.PASSED),
            (UNSEEN, False, Status.FAILED),
        ],
    )
    def test_both_must_be_tied(self, own: Finding, tied: bool, status: Status) -> None:
        together = with_stored_graph([self.OTHER, own], Stored(True, tied, "a gather, a product"))
        assert together[0] == self.OTHER
        (one,) = together[1:]
        assert (one.id, one.site, one.status) == (LAW, "logits", status)
        assert one.message.endswith("stored graph: a gather, a product")
        if own is not self.UNSEEN:
            assert one.message.startswith(f"{own.message}; ")

    def test_one_without_a_forward_pass_changes_nothing(self) -> None:
        findings = [self.OTHER, self.OWN]
        assert with_stored_graph(findings, Stored(False, None, "no forward graph")) == findings


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TensorFlow's Saver; its .meta is the published graph."""
    c = CONFIG
    size = f"{c.n_vocab},{c.n_ctx},{c.n_embd},{c.n_head},{c.n_layer}"
    directory = tmp_path_factory.mktemp("openai")
    assert main(["synth", "--size", size, "--format", "openai", str(directory)]) == 0
    return directory


class TestOpenAI:
    """The graph that TensorFlow runs, and the one that lies in ``.meta``."""

    def test_tied(self, written: Path) -> None:
        report = judged("openai-tf", open_checkpoint(written))
        one = finding(report, LAW, "logits")
        assert one.status is Status.PASSED
        assert "read the one variable model/wte" in one.message
        for law in ("tying.value", "tying.storage", "tying.gradient"):
            assert finding(report, law, "logits").status is Status.PASSED

    def test_a_meta_whose_last_product_reads_another_variable(
        self, written: Path, tmp_path: Path
    ) -> None:
        directory = Path(shutil.copytree(written, tmp_path / "untied"))
        script = Path(__file__).with_name("untied_meta.py")
        shape = [str(CONFIG.n_vocab), str(CONFIG.n_embd)]
        subprocess.run([sys.executable, str(script), str(directory), *shape], check=True)
        report = judged("openai-tf", open_checkpoint(directory))
        assert report.verdict is Verdict.REFUTED
        one = finding(report, LAW, "logits")
        assert one.status is Status.FAILED
        assert "stored graph: " in one.message
        assert "reads another variable, model/head" in one.message
        # The port's own graph is tied as before, and what it computes is right.
        assert {f.id for f in report.findings if f.status is Status.FAILED} == {LAW}
