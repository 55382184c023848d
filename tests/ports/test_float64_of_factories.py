"""Modules of families that somebody wrote, in float64: their factory is called again for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from families import family, written
from models import judged

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.ports.torch.float64 import cast_to
from gpt_verify.ports.torch.trace import SiteTrace
from gpt_verify.ports.torch.widening import on_weights_of, only_wide, widening

TESTS = Path(__file__).resolve().parents[1]
Sources = Callable[[str], Checkpoint]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda name: open_checkpoint(written(folder / name, name)))


def llama(folder: Path, old: str, new: str, first: str = "") -> str:
    """The Llama of the tests with a part of it otherwise, as a factory."""
    text = (TESTS / "llama_port.py").read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file = folder / "altered.py"
    text = text.replace(old, new)
    if first:
        begin = "def settings("
        text = text.replace(begin, f"{textwrap.dedent(first)}\n\n{begin}", 1)
    file.write_text(text, encoding="utf-8")
    return f"{file}:llama"


def examined(report: PortReport) -> tuple[bool, str]:
    """Whether the architecture was, and what is said where it was not."""
    found = [f for f in report.findings if f.id == "architecture"]
    why = {f.message for f in found if f.status is Status.NOT_EXAMINED}
    return not why, "; ".join(sorted(why))


def report(spec: str, source: Checkpoint, dtype: str | None = None) -> PortReport:
    return judged(spec, source, [seeded(source.config, n, 0) for n in (1, 3, 9)], dtype)


def test_what_half_a_precision_hides_is_seen_in_float64(sources: Sources, tmp_path: Path) -> None:
    """An epsilon is less than bfloat16 tells."""
    spec = llama(tmp_path, "+ self.epsilon)", "+ 0.3 * self.epsilon)")
    found = report(spec, sources("llama"), "bfloat16")
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == "h.0.ln_1"
    assert {f.id for f in found.findings if f.status is Status.FAILED} == {"architecture"}


OUTSIDE = {
    # NumPy's float32, which no mode of torch reaches.
    "numpy": (
        "    return torch.polar(torch.ones_like(angles), angles)",
        "    return torch.from_numpy(np.exp(1j * angles.numpy()).astype(np.complex64))",
        "",
        "in complex64 is computed with",
    ),
    # One for all modules of the file: the first that runs makes it, in its own format.
    "shared": (
        "    return torch.polar(torch.ones_like(angles), angles)",
        "    if size not in TABLES:\n"
        "        TABLES[size] = torch.polar(torch.ones_like(angles), angles)\n"
        "    return TABLES[size]",
        "TABLES = {}",
        "in complex64 is computed with",
    ),
    "the same module again": (
        "def llama(checkpoint: Checkpoint) -> nn.Module:\n",
        "@functools.cache\ndef made(path):\n    from gpt_verify.checkpoint import open_checkpoint\n"
        "    return Llama(open_checkpoint(path)).eval()\n\n\n"
        "def llama(checkpoint: Checkpoint) -> nn.Module:\n    return made(checkpoint.path)\n\n\n"
        "def unused(checkpoint: Checkpoint) -> nn.Module:\n",
        "import functools",
        "returns the same module",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_made_in_float64_is_said(sources: Sources, name: str, tmp_path: Path) -> None:
    """The port is correct, and a copy that rounds as float32 does would not be."""
    old, new, first, said = OUTSIDE[name]
    found = report(llama(tmp_path, old, new, first), sources("llama"))
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    done, why = examined(found)
    assert not done
    assert said in why


def test_a_constant_in_float32_stands_for_itself(sources: Sources, tmp_path: Path) -> None:
    """As GPT-J has it in transformers 4: √K is made in float32, whatever is asked for."""
    root = "torch.from_numpy(np.sqrt(np.float32([q.shape[-1]])))"
    found = report(llama(tmp_path, "math.sqrt(q.shape[-1])", root), sources("llama"))
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    assert examined(found) == (True, "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_complex_tables_stay_complex(sources: Sources, dtype: str, tmp_path: Path) -> None:
    old = """self.rotations = rotations(
            keys["head_dim"], self.longest, keys["rope_theta"], keys["rope_scaling"]
        )"""
    new = old.replace("self.rotations = ", 'self.register_buffer("rotations", ') + ")"
    spec = llama(tmp_path, old, new)
    found = report(spec, sources("llama"), dtype)
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    assert examined(found) == (True, "")


def test_a_cast_keeps_what_is_imaginary() -> None:
    module = torch.nn.Linear(2, 3)
    module.register_buffer("table", torch.tensor([1j, 2.0]))
    module.register_buffer("numbers", torch.tensor([1, 2]))
    cast = cast_to(module, torch.bfloat16)
    assert cast.weight.dtype is torch.bfloat16
    assert cast.table.dtype is torch.complex64
    assert cast.numbers.dtype is torch.int64


def test_the_bytes_of_a_file_are_not_widened() -> None:
    stored = torch.tensor([1.5, -2.0, 3.25])
    with widening():
        read = stored.view(torch.uint8).clone().view(torch.float32)
    assert torch.equal(read, stored)


def test_short_numbers_are_the_same_in_every_format() -> None:
    module = torch.nn.Linear(3, 3, dtype=torch.float32)
    wide = torch.ones(3, dtype=torch.float64)
    hidden = torch.finfo(torch.float32).min
    with only_wide(module):
        for short in ([0.0, 1.0, -torch.inf], [0.5, 255.0, hidden], [3.0, 16.0, 0.125]):
            assert (wide * torch.tensor(short)).dtype is torch.float64
        assert (module.weight[0] + wide).dtype is torch.float64  # a weight is what it is
        with pytest.raises(Exception, match=r"\[3\] in float32 is computed with"):
            wide * torch.tensor([0.1, 1.0, 1.0])


def test_another_module_that_differs_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"weight is \[?\(?3, 2"):
        on_weights_of(lambda: torch.nn.Linear(2, 3), torch.nn.Linear(3, 3), loads=True)


def test_memory_that_a_converted_tensor_takes_over_is_no_value_of_the_run() -> None:
    """A weight was cast to where an activation had been, and its products were taken for something
    else: which sites a port showed changed from run to run."""
    config = family("mixtral")
    trace = SiteTrace([], config, 1, 3, lambda site, value, narrowest=None: None)
    assert trace._flow is not None
    value = torch.zeros(3, config.n_embd)
    trace._flow.is_site("h.0.ln_2", value)
    assert trace._flow.names(value) == {"h.0.ln_2"}
    trace.stands_for(value, torch.zeros_like(value))
    assert trace._flow.names(value) == set()
