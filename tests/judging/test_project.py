"""``[tool.gpt-verify]`` in pyproject.toml: read, refused in one line, and used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import PORTS, ROOT, Run, complaint

from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.judging.project import Project, read_project

pytest_plugins = ["pytester"]

Write = Callable[..., Path]
EVERYTHING = """
ports = ["mine.py:factory", "package.module:factory", "huggingface=weights"]
checkpoint = "models/tiny"
dtype = "bfloat16"
lengths = [5, 8]
require = ["logits", "90%"]
[tool.gpt-verify.waivers]
"cache.equal" = "it has none"
[tool.gpt-verify.waivers."mine.py:factory"]
tokenizer = "nor that"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A project with such a table, and the shell in its directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, head: str = "[tool.gpt-verify]\n") -> Path:
        path = tmp_path / "pyproject.toml"
        path.write_text(head + text, encoding="utf-8")
        return path

    return write


def a_law() -> str:
    from gpt_verify.laws.table import PARTS

    return next(part.id for part in PARTS if part.id.startswith("cache"))


def everything() -> str:
    return EVERYTHING.replace("cache.equal", a_law())


class TestReading:
    def test_every_key(self, write: Write, tmp_path: Path) -> None:
        write(everything())
        for name in ("models/tiny", "weights"):
            (tmp_path / name).mkdir(parents=True)
        found = read_project(tmp_path)
        both = {a_law(): "it has none"}
        assert found == Project(
            ports=("mine.py:factory", "package.module:factory", "huggingface=weights"),
            checkpoint=Path("models/tiny"),
            dtype="bfloat16",
            lengths=(5, 8),
            require=("logits", "90%"),
            waivers={
                "mine.py:factory": both | {"tokenizer": "nor that"},
                "package.module:factory": both,
                "huggingface-eager=weights": both,
                "huggingface-sdpa=weights": both,
            },
        )

    def test_from_a_directory_below(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write('ports = ["mine.py:factory", "/abs/port.py:f"]\ncheckpoint = "./models"\n')
        (tmp_path / "tests").mkdir()
        monkeypatch.chdir(tmp_path / "tests")
        found = read_project(Path.cwd())
        assert found.ports == (f"..{os.sep}mine.py:factory", "/abs/port.py:f")
        assert found.checkpoint == Path("../models")

    def test_a_model_of_the_hub_is_no_directory(self, write: Write, tmp_path: Path) -> None:
        write('checkpoint = "openai-community/gpt2"')
        assert read_project(tmp_path).checkpoint == Path("openai-community/gpt2")

    @pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n", "[tool.ruff]\n"])
    def test_without_a_table_nothing_is_said(self, write: Write, text: str, tmp_path: Path) -> None:
        write(text, head="")
        assert read_project(tmp_path) == Project()

    def test_the_nearest_file_counts(self, write: Write, tmp_path: Path) -> None:
        write('dtype = "float16"')
        inner = tmp_path / "inner"
        inner.mkdir()
        assert read_project(inner).dtype == "float16"
        (inner / "pyproject.toml").write_text("")
        assert read_project(inner) == Project()


REFUSED = [
    ('prots = ["a.py:f"]', "prots: no such key; did you mean ports?"),
    ("length = [5]", "length: no such key; did you mean lengths?"),
    ("x = 1", "x: no such key"),
    ('ports = "a.py:f"', "ports: 'a.py:f'; it should be a list of texts, as after --port"),
    ("ports = []", "ports: []; it should be a list of texts"),
    ("ports = [3]", "ports: 3; it should be a text"),
    ("checkpoint = 3", "checkpoint: 3; it should be a text"),
    ('checkpoint = ""', "checkpoint: ''; it should be a text"),
    (
        'dtype = "bfloat"',
        "dtype: 'bfloat'; it should be one of float32, bfloat16, float16; did you mean bfloat16?",
    ),
    ("dtype = 16", "dtype: 16; it should be one of"),
    ("dtype = ['float32']", "it should be one of"),
    ("lengths = 5", "lengths: 5; it should be a list of whole numbers"),
    ("lengths = [0]", "lengths: 0; it should be whole numbers of at least 1"),
    ("lengths = [5.0]", "lengths: 5.0; it should be whole numbers"),
    ("lengths = [true]", "lengths: True; it should be whole numbers"),
    ('require = "all"', "require: 'all'; it should be a list of texts: all, N%, or a law"),
    (
        'require = ["chache"]',
        "--require chache: not all, N%, or a law (docs/laws.md); did you mean",
    ),
    ('waivers = ["cache"]', "waivers: ['cache']; it should be a table"),
    ("waivers = {cache = 1}", "waivers.cache: 1; it should be a reason, as text"),
    ('waivers = {cache = " "}', "waivers.cache: ' '; it should be a reason, as text"),
    ('waivers = {chache = "no"}', "waivers: no such law: chache; did you mean cache?"),
    ('waivers = {cache = "no"}', "waivers: there are no ports that they could be of"),
    (
        'ports = ["a.py:f"]\nwaivers = {"b.py:f" = {cache = "no"}}',
        "waivers: b.py:f is no port of the project, and no law with a reason; did you mean a.py:f?",
    ),
    ("dtype = ", "Invalid value"),
]


class TestRefusals:
    @pytest.mark.parametrize(("text", "says"), REFUSED, ids=[text for text, _ in REFUSED])
    def test_one_line_that_names_the_key(
        self, write: Write, tmp_path: Path, text: str, says: str
    ) -> None:
        path = write(text)
        with pytest.raises(UsageError) as refused:
            read_project(tmp_path)
        line = str(refused.value)
        assert line.startswith(f"{path}: ")
        assert says in line and "\n" not in line

    def test_no_table(self, write: Write, tmp_path: Path) -> None:
        write('[tool]\n"gpt-verify" = 3', head="")
        with pytest.raises(UsageError, match="is no table"):
            read_project(tmp_path)

    def test_no_text(self, write: Write, tmp_path: Path) -> None:
        write("").write_bytes(b"\xff")
        with pytest.raises(UsageError, match=r"pyproject\.toml: "):
            read_project(tmp_path)

    def test_the_command_says_it(self, write: Write, capfd: pytest.CaptureFixture[str]) -> None:
        write('prots = ["a.py:f"]')
        assert main(["run"]) == 2
        assert "did you mean ports?" in complaint(capfd.readouterr().err)


class TestTheCommand:
    def test_without_arguments(
        self, write: Write, tiny: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write(f'ports = ["{PORTS}:good"]\ncheckpoint = "{tiny}"\nlengths = [5]\nrequire = ["2%"]')
        assert main(["run", "--json", "out.json"]) == 0
        assert "verified: " in capfd.readouterr().out
        made = json.loads(Path("out.json").read_text())
        words = f"gpt-verify run --checkpoint {tiny} --port {PORTS}:good --length 5 --require 2%"
        assert made["repeat"] == words

    def test_an_option_comes_before_it(self, write: Write, run: Run, tiny: Path) -> None:
        write(f'ports = ["{PORTS}:twice_too_large"]\ncheckpoint = "none"\nrequire = ["all"]')
        assert run("--require", "2%", port="good")[0] == 0
        assert run("--require", "2%", port=None)[0] == 1
        assert run(port="good")[0] == 2

    def test_waivers_are_those_of_its_ports(self, write: Write, run: Run) -> None:
        port = f"{PORTS}:good"
        write(f'ports = ["{port}"]\nwaivers = {{cache = "the port has none"}}')
        status, out, _ = run(port=None)
        assert status == 0
        assert "1 waiver" in out and "the port has none" in out
        # Of another port it says nothing.
        assert "waiver" not in run(port="chatty")[1]
        # What excuses nothing is an error, as it is of the port's own.
        write(f'ports = ["{port}"]\nwaivers = {{batch = "it is not"}}')
        assert run(port=None)[0] == 2


class TestPytest:
    @pytest.fixture
    def user(
        self, pytester: pytest.Pytester, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., pytest.RunResult]:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytester.makepyfile(test_own="def test_own(port_report): assert port_report.findings")
        pytester.makepyprojecttoml(
            "[tool.gpt-verify]\n"
            f'ports = ["{PORTS}:good"]\ncheckpoint = "{tiny}"\nlengths = [5]\nrequire = ["2%"]\n'
        )
        return lambda *words: pytester.runpytest_subprocess("-p", "gpt_verify.plugin", *words)

    def test_it_is_used(self, user: Callable[..., pytest.RunResult]) -> None:
        result = user("-v")
        assert result.ret == 0
        lines = result.outlines
        assert any("::verdict PASSED" in line for line in lines)
        assert any(re.search(r"test_own\[.*good\] PASSED", line) for line in lines)

    def test_whoever_names_tests_gets_those(self, user: Callable[..., pytest.RunResult]) -> None:
        result = user("test_own.py")
        assert result.parseoutcomes() == {"passed": 1}

    def test_a_mistake_is_one_line(
        self, user: Callable[..., pytest.RunResult], pytester: pytest.Pytester
    ) -> None:
        pytester.makepyprojecttoml("[tool.gpt-verify]\nlenghts = [5]\n")
        result = user()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "did you mean lengths?" in result.stderr.str()
        assert "Traceback" not in result.stderr.str()
