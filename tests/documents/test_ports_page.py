"""docs/ports.md as it stands: each of its ports is verified, and examined in what it adds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from models import INPUTS, checkpoint

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.port import Port

PAGE = (Path(__file__).parents[2] / "docs" / "ports.md").read_text(encoding="utf-8")
ONE_LINE, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

#: Port → laws that are examined because of what it adds; all of them pass but those that it waives.
ADDED = {
    "Mine": {"logits", "causality.bits", "batch", "positions.beyond"},
    "Weights": {"weights.values", "tying.value", "tying.storage", "symmetry.heads"},
    "Activations": {"activations.local", "architecture", "causality.pattern", "precision"},
    "Loss": {"loss.value", "loss.ignored", "loss.batch", "loss.reference"},
    "Cached": {"cache"},
    "Generating": {f"generation.{part}" for part in ("greedy", "padded", "end", "limit")},
    "HandsOut": {"outputs.states", "outputs.patterns"},
    "Trained": {"gradient", "symmetry.gradient"},
    "Speaking": {"tokenizer.encode", "tokenizer.decode"},
    "Served": {"tying.value"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "my_ports.py"
    made.write_text("\n\n".join(BLOCKS), encoding="utf-8")
    return made


def report(file: Path, name: str) -> PortReport:
    source: Checkpoint = checkpoint()
    inputs = INPUTS
    if name == "Speaking":  # the only one that needs a vocabulary
        source = open_checkpoint(default_checkpoint())
        inputs = [seeded(source.config, 3, 0)]
    laws = ADDED[name]
    return judge(f"{file}:{name}", source, inputs, None, "cpu", Silent(), laws=laws)


@pytest.mark.parametrize("name", ADDED)
def test_verified_and_examined(file: Path, name: str) -> None:
    found = report(file, name)
    assert found.error is None
    assert found.verdict is Verdict.VERIFIED
    for law in ADDED[name]:
        statuses = {f.status for f in found.findings if f.id == law}
        assert statuses == {Status.PASSED}, law


def test_every_port_of_the_page_is_run() -> None:
    assert set(
        re.findall(r"^class (\w+)\((?:Mine|Weights|Port)\)", "\n".join(BLOCKS), re.M)
    ) == set(ADDED)


def test_the_waiver_is_printed_and_needed(file: Path) -> None:
    found = judge(
        f"{file}:Served", checkpoint(), INPUTS, None, "cpu", Silent(), laws={"tying.storage"}
    )
    assert found.verdict is Verdict.VERIFIED
    assert [(w.law, w.failures) for w in found.waived] == [("tying", 1)]


def test_every_optional_member_is_on_the_page() -> None:
    optional = {name for name in Port.__annotations__ if not name.startswith("_")} - {
        "name",
        "dtype",
        "device",
        "weights_from",
        "taken",  # no port says it: it is told of one
    }
    assert {name for name in optional if f"`{name}" not in PAGE} == set()


def test_a_function_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of the page, with a model to import."""
    lines = [line for line in ONE_LINE.splitlines() if line]
    assert len([line for line in lines if not line.startswith("from ")]) == 1
    example = Path(__file__).parents[2] / "examples" / "python" / "numpy_only.py"
    model = f"{example.read_text(encoding='utf-8')}\n\nfrom models import checkpoint\n\n"
    (tmp_path / "my_gpt2.py").write_text(model + "logits = factory(checkpoint())\n", "utf-8")
    (tmp_path / "my_port.py").write_text(ONE_LINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    spec = f"{tmp_path / 'my_port.py'}:factory"
    found = judge(spec, checkpoint(), INPUTS, None, "cpu", Silent(), laws={"causality.bits"})
    assert found.error is None
    assert found.verdict is Verdict.VERIFIED
