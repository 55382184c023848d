"""What the README promises in commands is what CI runs and what exists."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gpt_verify.command.arguments import build_parser
from gpt_verify.reference import Config, tensor_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def set_up_commands() -> list[str]:
    """The lines of the README that start from nothing and do all."""
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    return [line for line in lines if "tox" in line]


def test_two_commands_do_all_the_set_up() -> None:
    assert [line.split(" tox -e ")[-1].split("tox -e ")[-1] for line in set_up_commands()] == [
        "verify",
        "tests",
    ]


@pytest.mark.parametrize("environment", ["verify", "tests"])
def test_ci_finds_the_very_command(environment: str) -> None:
    """``command_of`` of ``.ci/run`` takes a line from the README; it is run as it stands there."""
    function = next(line for line in CI.splitlines() if line.startswith("command_of()"))
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{function}; command_of {environment}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert found == [line for line in set_up_commands() if line.endswith(f"-e {environment}")]
    assert len(found) == 1
    assert f'-c "$(command_of {environment})"' in CI


def test_environments_exist() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    for environment in ("verify", "tests", "lint", "types", "bench"):
        assert f"testenv:{environment}" in tox
    named = re.findall(r"tox -e ([\w,]+)", README + CI)
    assert named
    for environment in {name for names in named for name in names.split(",")}:
        assert f"testenv:{environment}" in tox


def test_the_failing_report_is_what_the_command_prints(tmp_path: Path) -> None:
    """But for its numbers, which depend on the machine."""
    block = README.split("<!-- failing report -->")[1].split("```")[1]
    command, *expected = block.strip().removeprefix("console\n").splitlines()
    source = (ROOT / "examples" / "python" / "modules.py").read_text(encoding="utf-8")
    wrong = source.replace('nn.GELU("tanh")', "nn.GELU()")
    assert wrong != source
    (tmp_path / "my_port.py").write_text(wrong, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "gpt_verify", *shlex.split(command.removeprefix("$ gpt-verify "))],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "110", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert [_masked(x) for x in done.stdout.rstrip().splitlines()] == [_masked(x) for x in expected]


def _masked(line: str) -> str:
    """Without measured numbers, and without the places where the largest of them were."""
    line = re.sub(r"-?\d+(\.\d+)?(e[+-]\d+)?", "#", re.sub(r"\bh\.\d\.[\w.]+\b", "SITE", line))
    return re.sub(r" +", " ", line)


def test_the_table_of_tensors_is_that_of_a_checkpoint() -> None:
    """Every tensor of a layer, and each outside of the layers, with its shape."""
    rows = README.split("| tensors, for each layer")[1].split("\n\n")[0].splitlines()[2:]
    shown: dict[str, tuple[str, ...]] = {}
    for row in rows:
        words, shapes = (cell.strip() for cell in row.strip("|").split("|"))
        last = ""
        names = []
        for name in re.findall(r"`([\w{}/…]+)`", words):
            last = name if "…" not in name else last.rsplit("/", 1)[0] + name.removeprefix("…")
            names.append(last)
        if "likewise" in words:  # `ln_2`, without the layer `h{i}/`, `ln_f`
            first = names[:2]
            names = first + [n.replace("ln_1", "ln_2") for n in first]
            names += [n.replace("h{i}/ln_1", "ln_f") for n in first]
        sizes = [tuple(shape.split(", ")) for shape in re.findall(r"\[(.*?)\]", shapes)]
        sizes = sizes * len(names) if len(sizes) == 1 else sizes
        shown |= dict(zip(names, sizes, strict=True))
    config = Config(n_vocab=101, n_ctx=19, n_embd=24, n_head=4, n_layer=1)
    letters = {"V": 101, "D": 24, "n_ctx": 19, "3 D": 72, "4 D": 96}
    assert {
        name.replace("{i}", "0"): tuple(letters[size] for size in shape)
        for name, shape in shown.items()
    } == {name: spec.shape for name, spec in tensor_table(config).items()}


def test_the_first_port_of_the_readme_is_verified() -> None:
    """Its five minutes, but for the installation."""
    block = README.split("## Five minutes")[1].split("```sh")[1].split("```")[0]
    command = block.strip().splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_verify", *shlex.split(command.removeprefix("gpt-verify "))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("verified: 1 port")


def test_commands_of_the_readme_are_understood() -> None:
    commands = re.findall(r"^(?:- run: )?gpt-verify (run .*)$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_what_the_package_needs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = [*project["dependencies"], "tox", "ruff", "mypy"]
    for extra in ("torch", "tensorflow", "test", "cluster"):
        wanted += project["optional-dependencies"][extra]
    assert "gpt-verify[cluster]" in wanted, "what the tests need"
    wanted.remove("gpt-verify[cluster]")
    names = {re.split(r"[<>=!~\[ ]", requirement)[0].lower() for requirement in wanted}
    assert "numpy" in names
    assert names - pins == set()
