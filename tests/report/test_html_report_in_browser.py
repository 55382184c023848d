"""The HTML report in a real browser: it renders, switches, points and keeps to itself."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
from browser import Opener, Tab
from PIL import Image
from report_samples import BUDGET, broken, good, report, wrong
from test_html_report import HOSTILE

from gpt_verify.findings import Finding, PortReport, Report, Status
from gpt_verify.report import html

DEEP = 48
MARK = ".mark.failed"


def rendered(*ports: PortReport) -> str:
    return html.render(report(*ports))


def deep() -> Report:
    """Forty-eight layers, every site of every layer, wrong from the middle on."""
    kinds = ("ln_1", "attn.qkv", "attn.scores", "attn.pattern", "attn.mix", "attn.out")
    kinds += ("resid_mid", "ln_2", "mlp.pre", "mlp.act", "mlp.out", "resid_post")
    sites = ["embed", *(f"h.{i}.{kind}" for i in range(DEEP) for kind in kinds), "ln_f", "logits"]
    first = sites.index("h.24.mlp.act")
    found = [
        Finding(law, status, f"{site} is …", site, 1e5 if status is Status.FAILED else 0.3, 1.1)
        for law in ("architecture", "activations.local", "activations.cascaded")
        for i, site in enumerate(sites)
        for wrong_here in [i == first or ("cascaded" in law and i > first)]
        for status in [Status.FAILED if wrong_here else Status.PASSED]
    ]
    port = dataclasses.replace(wrong(), findings=tuple(found), first_divergence=sites[first])
    return report(port, good(layers=DEEP))


def boxes(page: Any, selector: str) -> list[dict[str, Any]]:
    """Rectangles of the elements that are visible, with their text, in one call."""
    found: list[dict[str, Any]] = page.eval_on_selector_all(
        selector,
        """all => all.filter(one => one.checkVisibility()).map(one => {
            const { x, y, width, height } = one.getBoundingClientRect();
            return { x, y, width, height, text: one.textContent, label: one.ariaLabel };
        })""",
    )
    return found


def shown_charts(page: Any) -> list[str]:
    return [box["label"].split()[0] for box in boxes(page, "svg.chart")]


def tooltip(page: Any) -> str:
    box = page.locator("#tooltip")
    return box.inner_text() if box.is_visible() else ""


@pytest.fixture
def refuted(open_page: Opener) -> Tab:
    return open_page(rendered(wrong(), good()))


class TestRenders:
    @pytest.mark.parametrize(
        ("ports", "headline"),
        [
            ((good(), good("other")), "Verified: all 2 ports are"),
            ((wrong(), good()), "Refuted: wrong is not"),
            ((broken(),), "Not judged: my.py:port"),
        ],
        ids=["verified", "refuted", "unjudged"],
    )
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_and_keeps_to_itself(
        self, open_page: Opener, ports: tuple[PortReport, ...], headline: str, scheme: str
    ) -> None:
        tab = open_page(rendered(*ports), color_scheme=scheme)
        assert tab.page.inner_text("h1").startswith(headline)
        assert tab.quiet(), (tab.complaints, tab.requests)

    @pytest.mark.parametrize("width", [1280, 760])
    @pytest.mark.parametrize("layers", [2, DEEP])
    def test_nothing_is_wider_than_the_window(
        self, open_page: Opener, width: int, layers: int
    ) -> None:
        made = deep() if layers == DEEP else report(wrong(), good())
        page = open_page(html.render(made), width=width).page
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_a_page_that_fetches_or_runs_anything_else_would_be_seen(self, refuted: Tab) -> None:
        """The probe itself: the policy refuses, and the refusal is heard."""
        refuted.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "hacked = 1";
                document.body.append(script);
                document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x" }));
            }"""
        )
        refuted.page.wait_for_timeout(100)
        assert not refuted.quiet()
        assert sum("Content Security Policy" in line for line in refuted.complaints) >= 2
        assert refuted.page.evaluate("typeof hacked") == "undefined"

    def test_what_a_port_says_is_text(self, open_page: Opener) -> None:
        finding = Finding("activations.local", Status.FAILED, HOSTILE, "h.0.mlp.act", 9.0, 1.0)
        port = dataclasses.replace(wrong(HOSTILE), findings=(finding,))
        tab = open_page(html.render(report(port), [HOSTILE]))
        tab.page.hover(MARK)
        assert "<img src=x onerror=hacked=1>" in tooltip(tab.page)
        assert tab.page.evaluate("typeof hacked") == "undefined"
        assert tab.quiet(), tab.complaints


class TestSwitch:
    def test_a_shallow_model_shows_every_chart_and_then_one(self, refuted: Tab) -> None:
        page = refuted.page
        every = shown_charts(page)
        assert {"activations.local", "activations.cascaded"} <= set(every)
        page.click("#p0 .views label:text('activations.cascaded')")
        assert shown_charts(page)[0] == "activations.cascaded"
        assert len(shown_charts(page)) < len(every)

    def test_by_keyboard(self, refuted: Tab) -> None:
        page = refuted.page
        page.focus("#p0-chart0")
        page.keyboard.press("ArrowRight")
        assert len(boxes(page, "#p0 svg.chart")) == 1

    def test_a_deep_model_shows_the_chart_of_the_divergence(self, open_page: Opener) -> None:
        page = open_page(html.render(deep())).page
        assert len(boxes(page, "#p0 svg.chart")) == 1
        assert [b["text"] for b in boxes(page, "#p0 .first text")] == ["first divergence"]

    def test_without_a_script(self, open_page: Opener) -> None:
        page = open_page(rendered(wrong()), java_script_enabled=False).page
        page.click(".views label:text('activations.cascaded')")
        assert shown_charts(page) == ["activations.cascaded"]
        assert BUDGET in page.inner_text(".card")


class TestTooltip:
    def test_under_the_pointer(self, refuted: Tab) -> None:
        page = refuted.page
        page.hover(f"#p0 {MARK}")
        assert "h.0.mlp.act failed" in tooltip(page)
        assert "score 735, limit 4" in tooltip(page)
        assert BUDGET in tooltip(page)
        page.hover("h1")
        assert tooltip(page) == ""

    def test_it_stays_in_the_window(self, open_page: Opener) -> None:
        page = open_page(html.render(deep()), height=600).page
        for column, row in ((0, 0), (1, 3), (25, 9), (48, 1), (48, 12), (49, 14)):
            page.hover(f"#p0 .mark[data-column='{column}'][data-row='{row}']:visible")
            (box,) = boxes(page, "#tooltip")
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
            assert box["y"] >= 0 and box["y"] + box["height"] <= 600

    def test_from_the_keyboard(self, refuted: Tab) -> None:
        page = refuted.page
        page.focus("#p0 svg.chart")
        assert "h.0.mlp.act" in tooltip(page)  # the first failure
        page.keyboard.press("ArrowRight")
        assert "h.1.mlp.act" in tooltip(page)
        page.keyboard.press("ArrowUp")
        assert "h.1.attn.pattern" in tooltip(page)
        page.keyboard.press("ArrowLeft")
        assert "h.0.attn.pattern" in tooltip(page)
        page.keyboard.press("Home")
        assert "h.0.attn.qkv" in tooltip(page)
        page.keyboard.press("ArrowUp")
        assert "h.0.attn.qkv" in tooltip(page)  # there is no further one
        page.keyboard.press("Escape")
        assert tooltip(page) == ""

    def test_enter_goes_to_the_finding(self, refuted: Tab) -> None:
        page = refuted.page
        page.focus("#p0 svg.chart")
        page.keyboard.press("Enter")
        row = page.locator("tr.aim")
        assert row.is_visible()
        assert BUDGET in row.inner_text()

    def test_a_click_goes_to_the_finding(self, refuted: Tab) -> None:
        refuted.page.click("#p1 .mark.passed")
        row = refuted.page.locator("tr.aim")
        assert "h.0.attn.qkv" in row.inner_text()
        box = row.bounding_box()
        assert 0 <= box["y"] <= 900


class TestLegible:
    def test_forty_eight_layers(self, open_page: Opener) -> None:
        page = open_page(html.render(deep())).page
        hit = boxes(page, "#p0 .mark .hit")
        assert len(hit) == DEEP * 12 + 3
        assert min(box["width"] for box in hit) >= 9
        corners = {(round(box["x"]), round(box["y"])) for box in hit}
        assert len(corners) == len(hit)  # no mark hides another

    def test_labels_do_not_overlap(self, open_page: Opener) -> None:
        page = open_page(html.render(deep())).page
        labels = boxes(page, "#p0 svg text")
        assert len(labels) > 40
        for i, a in enumerate(labels):
            for b in labels[:i]:
                apart = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
                above = a["y"] >= b["y"] + b["height"] or b["y"] >= a["y"] + a["height"]
                assert apart or above

    def test_on_paper_every_chart_is_there(self, refuted: Tab) -> None:
        page = refuted.page
        page.click("#p0 .views label:text('activations.cascaded')")
        page.emulate_media(media="print")
        assert len(boxes(page, "#p0 svg.chart")) == 2
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_text_has_contrast(self, open_page: Opener, scheme: str) -> None:
        """4.5 : 1 against what is behind it (WCAG 2.2, 1.4.3)."""
        page = open_page(rendered(wrong(), good(), broken()), color_scheme=scheme).page
        assert page.evaluate(CONTRAST) == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("sight", ["deuteranopia", "protanopia", "tritanopia", "achromatopsia"])
    def test_passed_and_failed_differ_for_every_eye(
        self, open_page: Opener, sight: str, scheme: str
    ) -> None:
        """In shape always; for those who see colour also in that."""
        page = open_page(rendered(wrong()), color_scheme=scheme).page
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setEmulatedVisionDeficiency", {"type": sight})
        colours, shapes = [], set()
        for status in ("passed", "failed"):
            sign = page.locator(f".mark.{status} .sign").first
            shapes.add(sign.evaluate("sign => sign.tagName"))
            colours.append(lab(middle_pixel(sign.screenshot())))
        assert len(shapes) == 2
        if sight != "achromatopsia":
            assert math.dist(*colours) > 10 * JUST_NOTICEABLE


#: ΔE*ab (CIE 1976); Mahy, Van Eycken and Oosterlinck (1994) measured 2.3.
JUST_NOTICEABLE = 2.3


def middle_pixel(png: bytes) -> tuple[int, int, int]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    found: tuple[int, int, int] = image.getpixel((image.width // 2, image.height // 2))
    return found


def lab(srgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """CIE 1976 L*a*b* of an sRGB colour, white at D65 (IEC 61966-2-1)."""
    shares = [c / 255 for c in srgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    to_xyz = [
        (0.4124, 0.3576, 0.1805, 0.9505),
        (0.2126, 0.7152, 0.0722, 1.0),
        (0.0193, 0.1192, 0.9505, 1.089),
    ]
    x, y, z = (
        math.cbrt(v) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29
        for *row, white in to_xyz
        for v in [sum(a * b for a, b in zip(row, linear, strict=True)) / white]
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


#: Texts on the page whose contrast is below 4.5, as the browser computes their colours.
CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => {
      const s = c / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const owner = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !owner.checkVisibility()) continue;
    const style = getComputedStyle(owner);
    const [a, b] = [light(owner.closest("svg") ? style.fill : style.color), light(behind(owner))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.push([walk.currentNode.textContent, contrast]);
  }
  return poor;
}"""
