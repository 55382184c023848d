"""Of large tables of tests a run of everything takes a part, and the parts are all of them."""

from __future__ import annotations

import cases
import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import sys
sys.path.insert(0, {folder!r})
import cases

def pytest_addoption(parser):
    cases.add_option(parser)

def pytest_collection_modifyitems(config, items):
    cases.choose(config, items)
"""
TESTS = """
import pytest

@pytest.mark.parametrize("case", range(20))
def test_large(case): pass

@pytest.mark.parametrize("case", range(5))
def test_small(case): pass

def test_alone(): pass

def test_long(): pass

@pytest.mark.parametrize("case", range(4))
def test_longer(case): pass
"""
LONG = "test_many.py::test_long\ntest_many.py::test_longer\n"
EVERY = {
    *(f"test_large[{case}]" for case in range(20)),
    *(f"test_small[{case}]" for case in range(5)),
    "test_alone",
    "test_long",
    *(f"test_longer[{case}]" for case in range(4)),
}


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.format(folder=str(cases.ROOT / "tests")))
    pytester.makepyfile(test_many=TESTS)
    monkeypatch.setattr(cases, "LONG", pytester.maketxtfile(long=LONG))
    return pytester


def _run(project: pytest.Pytester, *words: str) -> set[str]:
    lines = project.runpytest("--collect-only", "-q", *words).outlines
    return {line.partition("::")[2] for line in lines if "::" in line}


def test_the_parts_are_all(project: pytest.Pytester) -> None:
    parts = [_run(project, "--cases", str(part)) for part in range(cases.PARTS)]
    assert set.union(*parts) == EVERY
    always = {name for name in EVERY if "large" not in name and "long" not in name}
    for part in parts:
        assert always < part
        assert sum("large" in name for name in part) == 20 // cases.PARTS
        assert sum("long" in name for name in part) <= 1  # they are one table
    assert sum(len(part - always) for part in parts) == 20 + 5  # none is in two


def test_the_commit_decides_and_all_can_be_asked_for(project: pytest.Pytester) -> None:
    assert _run(project) == _run(project, "--cases", str(cases._of_commit()))
    assert _run(project, "--cases", "all") == EVERY


def test_what_is_named_is_run_whole(project: pytest.Pytester) -> None:
    assert _run(project, "test_many.py") == EVERY


def test_the_tests_that_are_listed_as_long_exist() -> None:
    for line in cases.LONG.read_text(encoding="utf-8").split():
        file, *_, name = line.split("::")
        assert f"def {name}(" in (cases.ROOT / file).read_text(encoding="utf-8"), line
