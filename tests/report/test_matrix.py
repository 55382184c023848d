"""``gpt-verify report``: all reports of a matrix of versions in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command import complaint
from report_samples import broken, good, report, wrong

from gpt_verify.command.cli import main
from gpt_verify.findings import PortReport
from gpt_verify.report import json as json_report
from gpt_verify.report.matrix import FIXED, Matrix, html, terminal


def made(tmp_path: Path, name: str, *ports: PortReport, torch: str = "2.4", **more: Any) -> Path:
    environment = {"versions": {"python": "3.11", "torch": torch}, "platform": "Linux"}
    path = tmp_path / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    changed = dataclasses.replace(report(*ports), environment=environment, **more)
    path.write_text(json_report.render(changed))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        made(tmp_path, "old", good("port")),
        made(tmp_path, "new", good("port"), wrong("other"), torch="2.9"),
        made(tmp_path, "next", broken("port"), torch="3.0"),
    ]


def test_one_row_a_port_and_report(three: list[Path], capsys: Any) -> None:
    assert main(["report", *map(str, three)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "report",
        "port",
        "verdict",
        "passed",
        "failed",
        "not",
        "examined",
        "floors",
        "torch",
    ]
    assert [line.split() for line in lines[1:5]] == [
        ["old", "port", "verified", "8", "0", "2", "0.98", "2.4"],
        ["new", "port", "verified", "8", "0", "2", "0.98", "2.9"],
        ["new", "other", "refuted", "4", "4", "2", "196", "2.9"],
        ["next", "port", "unjudged", "0", "0", "1", "–", "3.0"],
    ]
    assert lines[5].startswith(
        "new: other: activations.local[h.0.mlp.act] (erf_gelu): h.0.mlp.act["
    )
    assert lines[6] == "next: port: port: the factory raised ValueError: no weights"
    assert lines[7] == "the same in all: python 3.11, platform Linux"
    assert lines[8:] == ["3 reports, 4 ports: 2 verified, 1 refuted, 1 unjudged"]


@pytest.mark.parametrize(
    ("which", "status"), [([0], 0), ([0, 2], 2), ([0, 1, 2], 1), ([2, 1], 1), ([2], 2)]
)
def test_the_status_is_the_worst(three: list[Path], which: list[int], status: int) -> None:
    assert main(["report", "--quiet", *(str(three[i]) for i in which)]) == status


def test_a_report_of_no_port_is_no_success(tmp_path: Path) -> None:
    assert main(["report", str(made(tmp_path, "none"))]) == 2


def test_the_page(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    assert main(["report", *map(str, three), "--html", str(out), "--quiet"]) == 1
    page = out.read_text(encoding="utf-8")
    assert page.count("<tr>") == 1 + 4
    assert all(f">{name}</th>" in page for name in (*FIXED, "torch"))
    assert "<h1>3 reports, 4 ports: 2 verified, 1 refuted, 1 unjudged</h1>" in page


def test_what_a_port_says_is_text(tmp_path: Path) -> None:
    nasty = dataclasses.replace(broken("<script>alert(1)</script>[red]"), error="[bold]\n<b>no")
    matrix = Matrix.read([made(tmp_path, "a", nasty)])
    assert "<script>" not in html(matrix) and "<b>" not in html(matrix)
    assert "[bold] <b>no" in terminal(matrix) and "<script>alert(1)</script>[red]" in terminal(
        matrix
    )


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    other = {"seed": 1, "shapes": {"length 5": [1, 5]}, "tokens_in_all": 5}
    paths = [made(tmp_path, "a", good()), made(tmp_path, "b", good(), inputs=other)]
    matrix = Matrix.read(paths)
    (line,) = matrix.apart
    assert "ran on different inputs (seed)" in line
    assert f"not comparable: {line}" in terminal(matrix)
    assert "Not comparable: " in html(matrix)
    assert Matrix.read(paths[:1]).apart == []


def test_names_that_are_alike_keep_their_directories(tmp_path: Path) -> None:
    paths = [made(tmp_path / name, "report", good()) for name in ("a", "b")]
    assert [row.report for row in Matrix.read(paths).rows] == list(map(str, paths))


def test_refusals(three: list[Path], tmp_path: Path, capfd: Any) -> None:
    assert main(["report", str(tmp_path / "odl.json")]) == 2
    assert f"did you mean {three[0]}?" in complaint(capfd.readouterr().err)
    assert main(["report", str(three[0]), "--html", str(three[0])]) == 2
    assert "would replace an input" in complaint(capfd.readouterr().err)
    three[1].write_text("[]")
    assert main(["report", *map(str, three)]) == 2
    assert str(three[1]) in complaint(capfd.readouterr().err)
