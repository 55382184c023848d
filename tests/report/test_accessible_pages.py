"""The pages for somebody who uses a keyboard, a screen reader, or eyes that need contrast.

What a page without a browser shows is checked here, on every page that this tool writes; what its
script does, in ``test_html_…_in_browser.py``. Each rule is also run on what breaks it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import lens_samples
import pytest
from report_samples import broken, good, report, wrong

from gpt_verify.claims.claim import Claim, Decided, Kind, Measured, Verdict
from gpt_verify.claims.run import ClaimsReport
from gpt_verify.findings import Waiver
from gpt_verify.report import html as report_html
from gpt_verify.report.claims import html as claims_html
from gpt_verify.report.history.course import History
from gpt_verify.report.history.html import render as history_html
from gpt_verify.report.lens import html as lens_html
from gpt_verify.report.lens.picture import PROBABILITY, VIEWS
from gpt_verify.report.matrix import Matrix
from gpt_verify.report.matrix import html as matrix_html

PAGES = Path(report_html.__file__).with_name("pages")


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: Node | None = None
    inside: list[Node] = field(default_factory=list)
    text: str = ""

    def all(self) -> Iterator[Node]:
        yield self
        for node in self.inside:
            yield from node.all()

    def above(self) -> Iterator[Node]:
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    @property
    def words(self) -> str:
        return " ".join([self.text, *(node.words for node in self.inside)]).strip()

    def __str__(self) -> str:
        shown = " ".join(f'{k}="{v[:40]}"' for k, v in self.attributes.items())
        return f"<{self.tag} {shown}>"


class Tree(HTMLParser):
    """The elements of a page; Jinja closes what it opens, and so nothing has to be guessed."""

    EMPTY = ("meta", "link", "input", "br", "col", "hr", "img")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Node("#page", {})
        self.feed(page)
        assert self.at is self.root, f"{self.at} is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs}, self.at)
        self.at.inside.append(node)
        if tag not in self.EMPTY:
            self.at = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.inside.append(Node(tag, {k: v or "" for k, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"{self.at} is closed by {tag}"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        if self.at.tag not in ("script", "style"):
            self.at.text += data


def nodes(root: Node, *tags: str) -> list[Node]:
    return [node for node in root.all() if not tags or node.tag in tags]


def named(node: Node, ids: dict[str, Node]) -> bool:
    by = node.attributes.get("aria-labelledby")
    return bool(node.attributes.get("aria-label") or (by and by in ids) or node.words)


def ids_of(root: Node) -> dict[str, Node]:
    return {node.attributes["id"]: node for node in root.all() if "id" in node.attributes}


# The rules: each yields what breaks it.


def ids_are_unique(root: Node) -> Iterator[str]:
    found = [node.attributes["id"] for node in root.all() if "id" in node.attributes]
    yield from sorted({name for name in found if found.count(name) > 1})


def what_is_referred_to_is_there(root: Node) -> Iterator[str]:
    ids = ids_of(root)
    for node in root.all():
        for key in ("for", "aria-labelledby", "aria-describedby"):
            for name in node.attributes.get(key, "").split():
                if name not in ids:
                    yield f"{node}: {name}"
        link = node.attributes.get("href", "")
        if node.tag == "a" and link.startswith("#") and link[1:] not in ids:
            yield f"{node}: {link}"


def headings_go_down_a_level_at_a_time(root: Node) -> Iterator[str]:
    levels = [int(node.tag[1]) for node in root.all() if re.fullmatch("h[1-6]", node.tag)]
    if levels.count(1) != 1:
        yield f"{levels.count(1)} headings of the first level"
    for above, below in pairwise(levels):
        if below > above + 1:
            yield f"h{above} is followed by h{below}"


def the_page_has_its_parts(root: Node) -> Iterator[str]:
    for tag in ("main", "header", "title"):
        # A drawing has titles too.
        found = [n for n in nodes(root, tag) if all(a.tag != "svg" for a in n.above())]
        if len(found) != 1:
            yield f"{len(found)} × {tag}"
    if not nodes(root, "html")[0].attributes.get("lang"):
        yield "no language"
    yield from (f"{node} has no link" for node in nodes(root, "nav") if not nodes(node, "a"))


def cells_have_headings(root: Node) -> Iterator[str]:
    for th in nodes(root, "th"):
        if th.attributes.get("scope") not in ("col", "row"):
            yield f"{th}: {th.words}"
    for body in nodes(root, "tbody"):
        for row in nodes(body, "tr"):
            first = row.inside[0]
            if first.parent is row and first.tag != "th" and row.parent is body:
                yield f"a row without a heading: {row.words[:60]}"


def what_takes_the_focus_has_a_role_and_a_name(root: Node) -> Iterator[str]:
    ids = ids_of(root)
    for node in root.all():
        native = node.tag in ("a", "button", "input", "summary")
        if node.attributes.get("tabindex") == "0" and not native:
            said = node.attributes.get("aria-label") or node.attributes.get("aria-labelledby")
            if not node.attributes.get("role") or not said:
                yield str(node)
        if node.tag in ("a", "button", "summary") and not named(node, ids):
            yield str(node)


def what_scrolls_sideways_takes_the_focus(root: Node) -> Iterator[str]:
    for node in root.all():
        if "wide" in node.attributes.get("class", "").split():
            said = (node.attributes.get(k) for k in ("tabindex", "role", "aria-label"))
            if not all(said):
                yield str(node)


def choices_are_grouped_and_labelled(root: Node) -> Iterator[str]:
    labelled = {node.attributes.get("for") for node in nodes(root, "label")}
    for node in nodes(root, "input"):
        if node.attributes.get("id") not in labelled:
            yield f"{node} has no label"
        groups = [
            a
            for a in node.above()
            if a.tag == "fieldset" or a.attributes.get("role") == "radiogroup"
        ]
        if not groups:
            yield f"{node} is in no group"
        elif groups[0].tag != "fieldset" and not groups[0].attributes.get("aria-label"):
            yield f"{groups[0]} has no name"
        elif groups[0].tag == "fieldset" and not nodes(groups[0], "legend"):
            yield f"{groups[0]} has no legend"


def drawings_have_a_name_or_are_hidden(root: Node) -> Iterator[str]:
    for node in nodes(root, "svg", "img"):
        if any(a.attributes.get("aria-hidden") == "true" for a in (node, *node.above())):
            continue
        if not node.attributes.get("role") or not node.attributes.get("aria-label"):
            yield str(node)


def signs_say_nothing_that_words_do_not(root: Node) -> Iterator[str]:
    for node in root.all():
        hidden = node.attributes.get("aria-hidden") == "true" and node.tag == "span"
        beside = "" if node.parent is None else node.parent.words.replace(node.words, "")
        if hidden and not beside.strip():
            yield f"{node}: {node.words}"


RULES: list[Callable[[Node], Iterator[str]]] = [
    ids_are_unique,
    what_is_referred_to_is_there,
    headings_go_down_a_level_at_a_time,
    the_page_has_its_parts,
    cells_have_headings,
    what_takes_the_focus_has_a_role_and_a_name,
    what_scrolls_sideways_takes_the_focus,
    choices_are_grouped_and_labelled,
    drawings_have_a_name_or_are_hidden,
    signs_say_nothing_that_words_do_not,
]


def claims() -> ClaimsReport:
    said = [
        Decided(
            Claim(f"some-{v.value}", "Something is so.", Kind.ARCHITECTURE, v, "It is {n}."),
            Measured(v, {"n": 1}),
            "here:f",
            answer="It is 1.",
        )
        for v in Verdict
    ]
    about = {
        "path": "x",
        "config": report().checkpoint["config"],
        "parameters": 1,
        "released": None,
    }
    return ClaimsReport(about, tuple(said), {}, "gpt-verify claims")


def pages() -> dict[str, str]:
    waived = dataclasses.replace(wrong("w"), waived=(Waiver("tying", "a copy", 1),), unmet=("no",))
    several = report(good(), wrong(), broken(), waived)
    reading = lens_samples.report(lens_samples.port(noise=0.1), lens_samples.port(name="b"))
    first = dataclasses.replace(several, environment={"date": "2026-01-01T00:00:00Z"})
    second = dataclasses.replace(several, ports=(wrong("good"), *several.ports[1:]))
    return {
        "report": report_html.render(several),
        "one port": report_html.render(report(good())),
        "lens": lens_html.render(reading, VIEWS[PROBABILITY]),
        "lens alone": lens_html.render(lens_samples.report(), VIEWS[PROBABILITY]),
        "claims": claims_html.render(claims()),
        "matrix": matrix_html(Matrix(("a.json", "b.json"), (several, report(good())))),
        "history": history_html(History.of([("a", first), ("b", second), ("c", several)])),
    }


@pytest.fixture(scope="module")
def trees() -> dict[str, Node]:
    return {name: Tree(page).root for name, page in pages().items()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_page(trees: dict[str, Node], rule: Callable[[Node], Iterator[str]]) -> None:
    assert {name: found for name, root in trees.items() if (found := list(rule(root)))} == {}


@pytest.mark.parametrize(
    ("rule", "page"),
    [
        (ids_are_unique, '<p id="a"></p><p id="a"></p>'),
        (what_is_referred_to_is_there, '<label for="a"></label>'),
        (what_is_referred_to_is_there, '<a href="#a">x</a>'),
        (what_is_referred_to_is_there, '<section aria-labelledby="a"></section>'),
        (headings_go_down_a_level_at_a_time, "<h1>a</h1><h3>b</h3>"),
        (headings_go_down_a_level_at_a_time, "<h2>a</h2>"),
        (the_page_has_its_parts, '<html lang="en"><title>x</title><header></header></html>'),
        (
            the_page_has_its_parts,
            "<html><title>x</title><header></header><main></main></html>",
        ),
        (
            the_page_has_its_parts,
            '<html lang="en"><title>x</title><header><nav>x</nav></header><main></main></html>',
        ),
        (cells_have_headings, "<table><thead><tr><th>a</th></tr></thead></table>"),
        (cells_have_headings, "<table><tbody><tr><td>a</td></tr></tbody></table>"),
        (what_takes_the_focus_has_a_role_and_a_name, '<div tabindex="0">x</div>'),
        (what_takes_the_focus_has_a_role_and_a_name, '<div tabindex="0" role="region"></div>'),
        (what_takes_the_focus_has_a_role_and_a_name, '<a href="x"></a>'),
        (what_scrolls_sideways_takes_the_focus, '<div class="wide"></div>'),
        (choices_are_grouped_and_labelled, '<fieldset><legend>x</legend><input id="a"></fieldset>'),
        (choices_are_grouped_and_labelled, '<label for="a">x</label><input id="a">'),
        (
            choices_are_grouped_and_labelled,
            '<div role="radiogroup"><label for="a">x</label><input id="a"></div>',
        ),
        (drawings_have_a_name_or_are_hidden, "<svg></svg>"),
        (drawings_have_a_name_or_are_hidden, '<svg role="img"></svg>'),
        (signs_say_nothing_that_words_do_not, '<p><span aria-hidden="true">✓</span></p>'),
    ],
)
def test_every_rule_can_fail(rule: Callable[[Node], Iterator[str]], page: str) -> None:
    assert list(rule(Tree(page).root))


# Contrast, computed from the colours (WCAG 2.2, 1.4.3 and 1.4.11).

STYLE = (PAGES / "base.css").read_text(encoding="utf-8")
GROUNDS = ("ground", "panel", "failed-ground", "passed-ground", "unsure-ground")
TEXTS = ("ink", "quiet", "passed", "failed", "unsure")
#: Marks and outlines, which are no text.
SHAPES = ("unseen", "focus")


def colours(scheme: str) -> dict[str, str]:
    """The variables of a scheme; the dark one changes those that it names."""
    light, _, dark = STYLE.partition("(prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark.partition("* {")[0]))
    return found


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # The grey that is known as the lightest one that can be read on white.
    assert contrast("#767676", "#ffffff") > 4.5 > contrast("#777777", "#ffffff")


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read_on_every_ground(scheme: str, ground: str) -> None:
    found = colours(scheme)
    poor = {name: contrast(found[name], found[ground]) for name in TEXTS}
    assert {name: value for name, value in poor.items() if value < 4.5} == {}
    assert min(contrast(found[name], found[ground]) for name in SHAPES) >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_pressed_or_an_alarm_can_be_read(scheme: str) -> None:
    """The ground as ink on a colour."""
    found = colours(scheme)
    assert min(contrast(found["ground"], found[name]) for name in ("ink", "failed")) >= 4.5


def test_every_colour_of_the_dark_is_one_of_the_light() -> None:
    assert {*GROUNDS, *TEXTS, *SHAPES, "rule"} == colours("light").keys() == colours("dark").keys()


def test_every_colour_of_a_page_is_one_of_these() -> None:
    """No rule has a colour of its own, which nobody would have looked at in both schemes."""
    for style in PAGES.glob("*.css"):
        rules = re.sub(r"/\*.*?\*/", "", style.read_text(encoding="utf-8"), flags=re.S)
        own = re.findall(r"(?<!-)\b(?:color|fill|stroke|background): (?!var)(#\w+|[a-z]+)", rules)
        assert {*own} <= {"none", "transparent", "inherit", "currentcolor", "repeating"}, style.name


def test_paper_is_white_whatever_the_screen_is() -> None:
    assert "@media screen and (prefers-color-scheme: dark)" in STYLE
    for name in ("base", "lens", "report"):
        assert "@media print" in (PAGES / f"{name}.css").read_text(encoding="utf-8")
    printed = STYLE.partition("@media print")[2]
    assert ".wide { overflow: visible; }" in printed
