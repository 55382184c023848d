"""docs/api.md is what the docstrings say, leaves nothing out, and shows what its examples give."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import gpt_verify as gv

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import api_page  # noqa: E402  # after the line above

PAGE = api_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_made_from_the_docstrings() -> None:
    assert api_page.written() == PAGE


def test_every_public_name_has_an_entry() -> None:
    assert sorted(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)) == sorted(gv.__all__)


def test_another_docstring_makes_another_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gv.UsageError, "__doc__", "Something else.")
    assert api_page.written() != PAGE


def test_a_name_without_a_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gv, "__all__", [*gv.__all__, "another"])
    with pytest.raises(SystemExit, match="another"):
        api_page.written()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "no docstring"),
        ("Do.\n\nArgs:\n    first: one.\n", r"Args: \['second'\]"),
        ("Do.\n\nArgs:\n    first, second: both.\n    third: none.\n", r"Args: \['third'\]"),
        ("Do.\n\nArgs:\n    first\n    second: one.\n", "no “name: words”"),
    ],
)
def test_a_docstring_that_leaves_something_out_is_seen(words: str, complaint: str) -> None:
    def do(first: int, second: int) -> None: ...

    do.__doc__ = words
    with pytest.raises(SystemExit, match=complaint):
        list(api_page.function(do, "do"))


def test_whoever_reads_it_is_told_what_is_raised_and_in_which_units() -> None:
    for name in ("run", "lens", "claims", "compare", "open_checkpoint"):
        text = api_page.Docstring(getattr(gv, name), name)
        assert "UsageError" in text.named("Raises")
        for error in text.named("Raises"):
            assert issubclass(getattr(gv, error), gv.GptVerifyError)
    lens = api_page.entry("Lens")
    assert "in nats" in "\n".join(lens)


#: The functions that have an example.
WITH = [
    name
    for name in gv.__all__
    if inspect.isfunction(thing := getattr(gv, name)) and ">>>" in (thing.__doc__ or "")
]


class TestExamples:
    @pytest.fixture
    def names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What the page says that the examples are about, in a clone where files may be written."""
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "modules", raising=False)
        assert f"```python\n{api_page.PREAMBLE}```" in PAGE
        made: dict[str, Any] = {}
        exec(api_page.PREAMBLE, made)
        return made

    def test_there_are_some(self) -> None:
        assert {"run", "lens", "claims", "compare", "html", "json"} <= set(WITH)
        shown = re.findall(r"^```python\n(>>> .*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        assert len(shown) == len(WITH)

    @pytest.mark.parametrize("name", WITH)
    def test_it_gives_what_it_shows(self, name: str, names: dict[str, Any]) -> None:
        example = api_page.Docstring(getattr(gv, name), name).example
        test = doctest.DocTestParser().get_doctest(example + "\n", names, name, None, 0)
        said: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        failed, tried = runner.run(test, out=said.append, clear_globs=False)
        assert tried > 0
        assert failed == 0, "".join(said)
