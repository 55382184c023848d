"""Figures that are older than what they measure say so, on every page, and no others do."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import figures  # noqa: E402  # of the scripts, not installed

from gpt_verify.judging.made_with import made_with  # noqa: E402  # after the one above
from gpt_verify.judging.run import environment  # noqa: E402  # after the one above
from gpt_verify.laws.table import CHECKS  # noqa: E402  # after the one above
from gpt_verify.numerics.version import SOURCE, VERSION  # noqa: E402  # after the one above

RESULTS = ROOT / "docs" / "results"
NOW = made_with()
PAGE = "# Page\n\n<!-- figures: a.json -->\n\n| 1.36 |\n"


def test_every_page_says_how_old_its_figures_are() -> None:
    """``python scripts/figures.py --write`` puts it right."""
    assert list(figures.mistakes()) == []
    anchors = [figures.anchored(page.read_text()) for page in figures.pages(ROOT)]
    assert sum(map(bool, anchors)) >= 7


#: A path from the root of a file system, devices apart.
_OF_A_MACHINE = re.compile(r"(?<![\w.:/-])/(?!dev/|proc/)\w[\w.-]*/\w")


@pytest.mark.parametrize("path", sorted(RESULTS.iterdir()), ids=lambda path: path.name)
def test_no_result_names_a_directory_of_the_machine_that_made_it(path: Path) -> None:
    found = _OF_A_MACHINE.search(path.read_text(encoding="utf-8"))
    assert found is None, found


def test_the_numerics_are_of_the_recorded_version() -> None:
    """Where the code that decides numbers was changed, somebody has said what that means for the
    figures: ``python scripts/figures.py --numerics changed``, or ``same``."""
    assert figures.digest() == SOURCE


def test_what_a_report_says_that_it_was_made_with() -> None:
    assert environment()["made_with"] == NOW
    assert NOW["numerics"] == VERSION
    assert {law.id for law in CHECKS} | {"logits", "activations.local"} <= set(NOW["laws"])
    assert json.loads(json.dumps(NOW)) == NOW


# On pages and results of its own


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Readme\n")
    (tmp_path / "docs" / "page.md").write_text(PAGE)
    write(tmp_path, NOW)
    return tmp_path


def write(root: Path, made: Any, name: str = "a.json") -> None:
    result = {"environment": {} if made is None else {"made_with": made}}
    (root / "docs" / "results" / name).write_text(json.dumps(result))


def put_right(root: Path) -> str:
    page = root / "docs" / "page.md"
    page.write_text(figures.marked(root, page.read_text(), NOW))
    assert list(figures.mistakes(root, NOW)) == []
    return page.read_text()


def test_figures_of_today_have_no_mark(root: Path) -> None:
    assert list(figures.mistakes(root, NOW)) == []
    assert put_right(root) == PAGE


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "They were made before results recorded the laws and the version of the numerics."),
        ({**NOW, "laws": NOW["laws"][1:]}, f"They were made without {NOW['laws'][0]}."),
        (
            {**NOW, "laws": NOW["laws"][9:]},
            "They were made when 9 checks of today did not exist yet.",
        ),
        ({**NOW, "laws": [*NOW["laws"], "z"]}, "made with z, which is no law any more."),
        ({**NOW, "numerics": VERSION - 1}, f"with numerics {VERSION - 1}, today {VERSION}."),
    ],
    ids=["unknown", "a new law", "many new laws", "a law that is gone", "numerics"],
)
def test_what_is_older_must_say_so(root: Path, made: Any, says: str) -> None:
    write(root, made)
    (found,) = figures.mistakes(root, NOW)
    assert found.startswith("docs/page.md: should say '> **These figures are older")
    assert says in found
    text = put_right(root)
    at = text.splitlines().index("<!-- figures: a.json -->")
    assert text.splitlines()[at + 1].startswith(figures.MARK)
    # And when they are made again, the mark must go.
    write(root, NOW)
    (found,) = figures.mistakes(root, NOW)
    assert found.startswith("docs/page.md: should not say")
    assert put_right(root) == PAGE


def test_a_mark_elsewhere_does_not_count(root: Path) -> None:
    write(root, None)
    page = root / "docs" / "page.md"
    mark = put_right(root).splitlines()[3]
    page.write_text(f"{PAGE}\n{mark}\n")
    assert list(figures.mistakes(root, NOW)) == [
        "docs/page.md: its marks are not under their comments"
    ]


def test_a_catalogue_of_more_faults_makes_figures_of_power_older_and_no_others(root: Path) -> None:
    write(root, {**NOW, "faults": "other"})
    assert list(figures.mistakes(root, NOW)) == []
    write(root, {**NOW, "faults": "other"}, "power.json")
    page = root / "docs" / "page.md"
    page.write_text(PAGE.replace("a.json", "a.json power.json"))
    (found,) = figures.mistakes(root, NOW)
    assert "`power.json`: made with another catalogue of faults." in found


def test_a_result_that_no_page_shows(root: Path) -> None:
    write(root, NOW, "b.json")
    assert list(figures.mistakes(root, NOW)) == [
        "docs/results/b.json: no page shows it under <!-- figures: … -->"
    ]


def test_a_page_that_mentions_a_result_without_its_comment(root: Path) -> None:
    (root / "README.md").write_text("1.36 × ([a](docs/results/a.json))\n")
    assert list(figures.mistakes(root, NOW)) == [
        "README.md: mentions a.json without <!-- figures: … -->"
    ]


def test_a_comment_that_names_no_result(root: Path) -> None:
    (root / "docs" / "results" / "a.json").unlink()
    assert list(figures.mistakes(root, NOW)) == [
        "docs/page.md: shows a.json, which docs/results has not"
    ]


def test_a_page_may_say_itself_what_it_was_made_with(root: Path) -> None:
    for made, marks in ((NOW, 0), ({**NOW, "numerics": 0}, 1), ({}, 1)):
        (root / "README.md").write_text(f"<!-- figures: {json.dumps(made)} -->\n")
        assert len(list(figures.mistakes(root, NOW))) == marks


# The digest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for package in figures.DECIDE:
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT_FLOORS = 10.0", "LIMIT_FLOORS = 12.0"),
        ("floor += budget**2", "floor += budget**3"),
        ("np.mean(noise**2, axis=0)", "np.max(noise**2, axis=0)"),
    ],
)
def test_what_is_computed_counts(source: Path, old: str, new: str) -> None:
    path = source / "verify" / "graph" / "cascade.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert figures.digest(source) != figures.digest()


def test_how_it_reads_does_not(source: Path) -> None:
    assert figures.digest(source) == figures.digest()
    path = source / "verify" / "graph" / "cascade.py"
    text = path.read_text()
    text = text.replace('"""Squared error and squared floor', '"""Other words for squared floor')
    text = text.replace("LIMIT_FLOORS = 10.0", "# A comment.\nLIMIT_FLOORS = 10.0")
    text = text.replace("-> float:", "-> int:").replace("import math\n", "")
    path.write_text(text)
    assert figures.digest(source) == figures.digest()
    # Nor does the file that a function is in.
    path.rename(source / "verify" / "laws" / "moved.py")
    assert figures.digest(source) == figures.digest()


def test_code_that_is_not_there_is_no_code_of_no_consequence(source: Path) -> None:
    shutil.rmtree(source / "verify" / "laws")
    with pytest.raises(SystemExit, match="verify/laws: no code there"):
        figures.digest(source)
