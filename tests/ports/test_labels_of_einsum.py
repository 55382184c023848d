"""``torch.einsum`` sums over labels in alphabetical order, and lays out copies of a matrix and of
what is multiplied with it accordingly. What a label is called is no business of the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from families import written
from hypothesis import given
from hypothesis import strategies as st
from models import judged, statuses

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.ports.torch.roles import Memory, Role, strided

TESTS = Path(__file__).resolve().parents[1]
OUT = "        return self.wo((pattern @ v).transpose(1, 2).reshape(batch, length, -1))\n"
MADE = '        self.wv, self.wo = linear(stored("v")), linear(stored("o"))\n'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(written(tmp_path_factory.mktemp("llama"), "llama"))


def report(source: Checkpoint, folder: Path, equation: str, kernel: str = "") -> PortReport:
    """The Llama of the tests, whose attention ends with this equation."""
    text = (TESTS / "llama_port.py").read_text(encoding="utf-8")
    assert text.count(OUT) == text.count(MADE) == 1
    text = text.replace(OUT, f"        y = (pattern @ v).transpose(1, 2)\n{KERNEL}{kernel}{SUM}")
    file = folder / "altered.py"
    file.write_text(text.replace("EQUATION", equation), encoding="utf-8")
    inputs = [seeded(source.config, n, 0) for n in (1, 9)]
    return judged(f"{file}:llama", source, inputs, laws=())


# [D, heads · K] in the checkpoint's layout of a linear layer; by head, and [heads, K, D].
KERNEL = "        w = self.wo.weight.view(-1, self.heads, y.shape[-1]).permute(1, 2, 0)\n"
SUM = '        return torch.einsum("EQUATION", y, w)\n'


@pytest.mark.parametrize(("head", "channel"), list(permutations("hkn", 2)))
def test_the_letters_do_not_matter(
    source: Checkpoint, tmp_path: Path, head: str, channel: str
) -> None:
    equation = f"bt{head}{channel},{head}{channel}d->btd"
    found = report(source, tmp_path, equation)
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    for law in ("activations.local", "architecture"):
        assert set(statuses(found, law).values()) == {Status.PASSED}, equation


@pytest.mark.parametrize(("head", "channel"), [("h", "k"), ("n", "h")])
def test_heads_in_another_order_are_seen(
    source: Checkpoint, tmp_path: Path, head: str, channel: str
) -> None:
    equation = f"bt{head}{channel},{head}{channel}d->btd"
    found = report(source, tmp_path, equation, "        w = w.flip(0)\n")
    assert found.verdict is Verdict.REFUTED
    assert (found.first_divergence or "").startswith("h.0.")


def test_a_copy_with_rows_in_another_order_says_so() -> None:
    weight = torch.arange(24.0).view(2, 3, 4)  # H, K, D
    memory = Memory()
    rows, columns = np.indices((6, 4), dtype=np.int32).reshape(2, -1)
    memory.put(weight, Role("h0/attn/o/w", cells=lambda: (rows, columns)))

    def copied(view: torch.Tensor) -> Role | None:
        copy = view.clone(memory_format=torch.contiguous_format)
        memory.carry(view, copy, as_it_lies=False)
        return memory.get(copy)

    exchanged = copied(weight.transpose(0, 1))
    assert exchanged is not None
    assert exchanged.rows == (0, 3, 1, 4, 2, 5)
    by_out = copied(weight.permute(2, 1, 0))
    assert by_out is not None
    assert by_out.rows == exchanged.rows
    for plain in (weight, weight.flatten(0, 1).t(), weight.permute(2, 0, 1)):
        role = copied(plain)
        assert role is not None
        assert role.rows is None


@given(st.permutations(range(3)), st.sampled_from([(2, 3, 4), (2, 3, 6), (3, 1, 3)]), st.booleans())
def test_the_order_of_a_copy_is_read_off_its_elements(
    axes: Sequence[int], sizes: tuple[int, int, int], transposed: bool
) -> None:
    """[H, K, D] or [D, H, K], whose rows are H · K, in every order of the axes."""
    heads, size, width = sizes
    rows, columns = np.indices((heads * size, width), dtype=np.int32)
    weight = torch.arange(rows.size).view(heads * size, width)
    if transposed:
        rows, columns, weight = rows.T, columns.T, weight.t().contiguous()
    memory = Memory()
    held = (rows.reshape(-1), columns.reshape(-1))
    memory.put(weight, Role("h0/attn/o/w", (), cells=lambda: held))
    by_head = weight.view(width, heads, size) if transposed else weight.view(heads, size, width)
    view = by_head.permute(*axes)
    copy = view.clone(memory_format=torch.contiguous_format)
    memory.carry(view, copy, as_it_lies=False)
    role = memory.get(copy)
    assert role is not None
    # What the copy says of itself, by its numbers.
    of_weight = {int(n): at for at, n in np.ndenumerate(weight.numpy())}
    found = [of_weight[int(n)] for n in copy.flatten()]
    lies = [(c, r) if transposed else (r, c) for r, c in found]  # row, column
    by_rows = list(dict.fromkeys(r for r, _ in lies))
    whole = lies in (
        [(r, c) for r in by_rows for c in range(width)],
        [(r, c) for c in range(width) for r in by_rows],
    )
    if whole and role.rows is not None:
        assert list(role.rows) == by_rows
    elif whole and len(strided(view)) > 2:
        assert by_rows == list(range(heads * size))
    assert role.columns is None


@pytest.mark.parametrize(("head", "channel"), list(permutations("hkn", 2)))
def test_a_square_matrix(tmp_path: Path, head: str, channel: str) -> None:
    """As many heads times channels as the model is wide: shapes do not tell rows from columns."""
    square = open_checkpoint(written(tmp_path / "square", "llama", head_dim=6))
    assert square.config.n_head * square.config.head_size == square.config.n_embd
    equation = f"bt{head}{channel},{head}{channel}d->btd"
    found = report(square, tmp_path, equation)
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    assert set(statuses(found, "activations.local").values()) == {Status.PASSED}, equation


def test_a_matrix_that_is_read_in_another_order_is_named(tmp_path: Path) -> None:
    """What is multiplied with it is not in that order: nothing but the matrix is wrong."""
    square = open_checkpoint(written(tmp_path / "square", "llama", head_dim=6))
    kernel = "        w = w.transpose(0, 1).reshape(w.shape[0] * w.shape[1], -1)\n"
    wrong = "        return y.flatten(2) @ w\n"
    text = (TESTS / "llama_port.py").read_text(encoding="utf-8")
    altered = f"        y = (pattern @ v).transpose(1, 2)\n{KERNEL}{kernel}{wrong}"
    file = tmp_path / "altered.py"
    file.write_text(text.replace(OUT, altered), encoding="utf-8")
    inputs = [seeded(square.config, n, 0) for n in (1, 9)]
    found = judged(f"{file}:llama", square, inputs, laws=())
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == "h.0.attn.out"


VALUES = "        v = self.wv(x).view(batch, length, self.shared, -1)\n"
SUMMED = '        v = torch.einsum("EQUATION", x, self.kernel)\n'
#: [heads, D, K], as Keras' EinsumDense keeps it for Gemma.
STORED = """        self.wo = linear(stored("o"))
        by_head = stored("v").unflatten(0, (self.shared, -1)).transpose(1, 2)
        self.kernel = nn.Parameter(by_head.contiguous())
"""


@pytest.mark.parametrize(("head", "channel"), list(permutations("ahkz", 2)))
def test_a_kernel_that_is_kept_by_head(
    source: Checkpoint, tmp_path: Path, head: str, channel: str
) -> None:
    text = (TESTS / "llama_port.py").read_text(encoding="utf-8")
    assert text.count(VALUES) == text.count(MADE) == 1
    text = text.replace(VALUES, SUMMED).replace(MADE, STORED)
    file = tmp_path / "by_head.py"
    equation = f"btd,{head}d{channel}->bt{head}{channel}"
    file.write_text(text.replace("EQUATION", equation), encoding="utf-8")
    inputs = [seeded(source.config, n, 0) for n in (1, 9)]
    found = judged(f"{file}:llama", source, inputs, laws=())
    assert found.verdict is Verdict.VERIFIED, (found.error, found.first_divergence)
    for law in ("activations.local", "architecture"):
        status = statuses(found, law)
        for layer in range(source.config.n_layer):
            for kind in ("attn.v", "attn.mix", "attn.out"):
                assert status[f"h.{layer}.{kind}"] is Status.PASSED, (law, kind)
