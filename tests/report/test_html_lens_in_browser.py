"""The lens as a page in a real browser: it renders, reshades, points and keeps to itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from browser import Opener, Tab
from lens_samples import lens, port, report, told
from test_html_report import HOSTILE
from test_html_report_in_browser import CONTRAST, boxes, tooltip

from gpt_verify.judging.lens import LensReport, Reading
from gpt_verify.report.lens import html, picture
from gpt_verify.report.lens.colours import palette
from gpt_verify.report.lens.picture import PROBABILITY, VIEWS, Shade

LAYERS, TOKENS = 48, 64


def rendered(made: LensReport | None = None, view: str = PROBABILITY) -> str:
    return html.render(made or report(), VIEWS[view])


def large() -> LensReport:
    own = lens(layers=LAYERS, tokens=np.arange(TOKENS) * 7 % 53, vocabulary=53)
    return report(of=own)


def choose(page: Any, group: str, value: object) -> None:
    page.click(f"label[for='{group}-{value}']")


def cell(n: int, t: int, panel: int = 0) -> str:
    return f"[data-panel='{panel}'] tr[data-n='{n}'] td:nth-child({t + 2})"


def background(page: Any, selector: str) -> tuple[int, ...]:
    colour = page.locator(selector).evaluate("one => getComputedStyle(one).backgroundColor")
    return tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


@pytest.fixture
def alone(open_page: Opener) -> Tab:
    return open_page(rendered())


@pytest.fixture
def compared(open_page: Opener) -> Tab:
    return open_page(rendered(report(port(noise=0.1))))


class TestRenders:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("view", VIEWS)
    def test_and_keeps_to_itself(self, open_page: Opener, view: str, scheme: str) -> None:
        tab = open_page(rendered(report(port()), view), color_scheme=scheme)
        assert tab.page.inner_text("h1").startswith("The logit lens")
        assert tab.quiet(), (tab.complaints, tab.requests)

    def test_what_was_read_and_said_is_text(self, open_page: Opener) -> None:
        made = report(Reading(HOSTILE, error=HOSTILE), text=HOSTILE)
        made = dataclasses.replace(made, names={k: f"{HOSTILE}{k}" for k in made.names})
        tab = open_page(rendered(made))
        tab.page.hover(cell(2, 1))
        assert "<img src=x onerror=hacked=1>" in tooltip(tab.page)
        assert tab.page.evaluate("typeof hacked") == "undefined"
        assert tab.quiet(), tab.complaints

    def test_the_last_layer_is_on_top(self, alone: Tab) -> None:
        rows = boxes(alone.page, "tbody th")
        assert [row["text"] for row in rows] == ["2", "1", "0", "embed"]
        assert [row["y"] for row in rows] == sorted(row["y"] for row in rows)

    def test_without_a_script_the_first_view_is_there(self, open_page: Opener) -> None:
        page = open_page(rendered(view="rank_next"), java_script_enabled=False).page
        numbers = picture.values(lens(), "rank_next")
        levels = Shade.of(VIEWS["rank_next"], [numbers]).levels(numbers)
        assert background(page, cell(6, 1)) == palette()[levels[6, 1]]
        assert not page.locator("form").is_visible()


class TestSwitch:
    @pytest.mark.parametrize("name", VIEWS)
    def test_shades_are_those_of_the_numbers(self, alone: Tab, name: str) -> None:
        choose(alone.page, "view", name)
        own = lens()
        numbers = picture.values(own, name)
        levels = Shade.of(VIEWS[name], [numbers]).levels(numbers)
        for n, t in ((6, 0), (4, 3), (0, 5), (6, 6)):
            if levels[n, t] >= 0:
                assert background(alone.page, cell(n, t)) == palette()[levels[n, t]]
            else:
                assert "none" in alone.page.locator(cell(n, t)).get_attribute("class")
        (scale,) = boxes(alone.page, ".scale:not([hidden])")
        assert VIEWS[name].title in scale["text"]

    def test_marks_survive_a_switch(self, compared: Tab) -> None:
        before = compared.page.locator(".hit").count(), compared.page.locator(".differs").count()
        assert min(before) > 0
        choose(compared.page, "view", "entropy_nats")
        after = compared.page.locator(".hit").count(), compared.page.locator(".differs").count()
        assert after == before

    def test_cells_can_say_the_number(self, alone: Tab) -> None:
        choose(alone.page, "view", "rank_input")
        choose(alone.page, "say", "number")
        assert alone.page.inner_text(cell(4, 2)) == str(lens().rank_input[4, 2])
        choose(alone.page, "say", "token")
        assert alone.page.inner_text(cell(4, 2)) == report().names[int(lens().top1_NT[4, 2])]

    def test_states_after_attention(self, alone: Tab) -> None:
        choose(alone.page, "states", "all")
        labels = [row["text"] for row in boxes(alone.page, "tbody th")]
        assert labels == ["2", "2 attn", "1", "1 attn", "0", "0 attn", "embed"]

    def test_side_by_side_or_one(self, compared: Tab) -> None:
        page = compared.page
        assert len(boxes(page, ".panel")) == 3
        first, second = boxes(page, ".panel")[:2]
        assert first["y"] == second["y"] and first["x"] < second["x"]
        choose(page, "show", 2)
        assert [box["text"] for box in boxes(page, ".panel h2")] == ["a-port − reference"]

    def test_by_keyboard(self, alone: Tab) -> None:
        alone.page.focus("#view-probability")
        alone.page.keyboard.press("ArrowRight")
        (scale,) = boxes(alone.page, ".scale:not([hidden])")
        assert "rank of the final top-1" in scale["text"]


class TestPinned:
    @pytest.fixture
    def page(self, open_page: Opener) -> Any:
        made = report(told(port(noise=0.1), seed=1))
        first = told(made.readings[0])
        return open_page(rendered(dataclasses.replace(made, readings=(first, *made.readings[1:]))))

    def pinned(self, page: Any) -> str:
        return str(page.inner_text(".pinned h2"))

    def test_the_last_prediction_is_pinned_at_first(self, page: Tab) -> None:
        names = report().names
        own = lens()
        said = f"reference: h.2.resid_post, position 5: {names[int(own.tokens_T[5])]}"
        assert self.pinned(page.page) == said
        assert page.quiet(), page.complaints

    def test_a_click_pins_another(self, page: Tab) -> None:
        page.page.click(cell(4, 2))
        assert "h.1.resid_post, position 2" in self.pinned(page.page)
        assert page.page.locator("td.pinned").count() == 1
        choose(page.page, "view", "entropy_nats")
        assert page.page.locator("td.pinned").count() == 1

    def test_so_does_enter(self, page: Tab) -> None:
        page.page.focus("#show-2" if page.page.locator("#show-2").count() else "#width-read")
        page.page.keyboard.press("Tab")
        for key in ("ArrowDown", "ArrowRight", "Enter"):
            page.page.keyboard.press(key)
        assert "h.1.resid_post, position 1" in self.pinned(page.page)
        active = page.page.locator("[aria-activedescendant]").get_attribute("aria-activedescendant")
        assert page.page.locator(f"#{active}.pinned").count() == 1

    def test_ranks_over_depth(self, page: Tab) -> None:
        page.page.click(cell(4, 2))
        said = page.page.get_attribute("svg.ranks[role=img]", "aria-label")
        ranks = lens().rank_final_top1[:, 2].tolist()
        assert f"rank of the final top-1 from embed up: {', '.join(map(str, ranks))}" in said

    def test_the_terms_of_the_port_are_its_own(self, page: Tab) -> None:
        for panel, reading in ((0, told(report().readings[0])), (1, told(port(noise=0.1), seed=1))):
            page.page.click(cell(4, 2, panel))
            found = reading.attributions["top1"]
            rows = page.page.locator("table.attribution tbody tr").all_inner_texts()
            numbers = [float(row.split("\t")[1]) for row in rows]
            expected = [found.logits_T[2], *found.terms_ST[::-1, 2]]
            # As they are shown: four digits, of which three are after the point.
            np.testing.assert_allclose(numbers, expected, atol=0.0006, rtol=0.0006)

    def test_the_last_position_has_one_logit_alone(self, page: Tab) -> None:
        page.page.click(cell(6, 6))
        assert page.page.locator("table.attribution thead th").count() == 2

    def test_attention_of_a_layer_and_of_a_head(self, page: Tab) -> None:
        page.page.click(cell(4, 2))
        pattern = told(report().readings[0]).patterns[1]
        tables = page.page.locator("#attention table")
        rows = tables.nth(0).locator("tbody tr")
        assert rows.count() == 3
        shown = [cell or "0" for cell in rows.nth(1).locator("td").all_inner_texts()]
        # A byte is a 250th.
        assert np.abs(np.array(shown, float) - 100 * pattern[1, 2, :3]).max() <= 0.5 + 0.2
        page.page.get_by_role("button", name="head 1").click()
        assert "Head 1 of layer 1" in page.page.inner_text("#attention")
        pressed = page.page.get_by_role("button", pressed=True).all_inner_texts()
        assert pressed == ["head 1"]
        own = [
            cell or "0"
            for cell in tables.nth(1).locator("tr").nth(3).locator("td").all_inner_texts()
        ]
        assert own[:3] == shown and set(own[3:]) <= {"0"}

    def test_of_a_difference_the_port_is_pinned(self, page: Tab) -> None:
        page.page.click(cell(4, 2, panel=2))
        assert self.pinned(page.page).startswith("a-port: h.1.resid_post, position 2")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_text_has_contrast(self, open_page: Opener, scheme: str) -> None:
        made = report()
        made = dataclasses.replace(made, readings=(told(made.readings[0]),))
        tab = open_page(rendered(made), color_scheme=scheme)
        assert [line for line in tab.page.evaluate(CONTRAST) if line[0] != "–"] == []

    @pytest.mark.parametrize("width", [1400, 420])
    def test_nothing_is_wider_than_the_window(self, open_page: Opener, width: int) -> None:
        made = large()
        made = dataclasses.replace(made, readings=(told(made.readings[0]),))
        page = open_page(rendered(made), width=width).page
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_without_ranks_of_another_nothing_is_said(self, alone: Tab) -> None:
        """A reading that was made without them."""
        assert alone.page.inner_text("#attribution") == alone.page.inner_text("#attention") == ""


class TestTooltip:
    def test_the_five_most_probable_and_the_numbers(self, alone: Tab) -> None:
        alone.page.hover(cell(4, 2))
        says, own, names = tooltip(alone.page), lens(), report().names
        assert "h.1.resid_post position 2" in says
        for token, p in zip(own.top_ids[4, 2], own.top_probabilities[4, 2], strict=True):
            assert f"{names[int(token)]}\t{p:.3f}" in says
        assert f"{own.entropy_nats[4, 2]:.4g}" in says
        alone.page.hover("h1")
        assert tooltip(alone.page) == ""

    def test_of_a_difference_both_are_shown(self, compared: Tab) -> None:
        compared.page.hover(cell(4, 2, panel=2))
        says = tooltip(compared.page)
        own, other = lens(), lens(noise=0.1)
        assert "port" in says and "reference" in says
        for one in (own, other):
            assert f"{one.top_probabilities[4, 2, 0]:.3f}" in says
        assert f"{abs(own.entropy_nats[4, 2] - other.entropy_nats[4, 2]):.4g}" in says

    def test_from_the_keyboard(self, alone: Tab) -> None:
        page = alone.page
        page.focus("#width-read")
        page.keyboard.press("Tab")
        assert "h.2.resid_post position 0" in tooltip(page)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert "h.1.resid_post position 1" in tooltip(page)  # the state between is not shown
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert "position 0" in tooltip(page)
        page.keyboard.press("Escape")
        assert tooltip(page) == ""

    def test_it_stays_in_the_window(self, open_page: Opener) -> None:
        page = open_page(rendered(large()), height=600).page
        for n, t in ((2 * LAYERS, 0), (2 * LAYERS, TOKENS - 1), (0, 0), (0, TOKENS - 1)):
            page.hover(cell(n, t))
            (box,) = boxes(page, "#tooltip")
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
            assert box["y"] >= 0 and box["y"] + box["height"] <= 600


class TestLegible:
    @pytest.mark.parametrize("width", [1280, 760])
    def test_nothing_is_wider_than_the_window(self, open_page: Opener, width: int) -> None:
        page = open_page(rendered(large()), width=width).page
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_all_in_view(self, open_page: Opener) -> None:
        """Forty-eight layers and sixty-four tokens at once, each cell large enough to point at."""
        page = open_page(rendered(large())).page
        choose(page, "width", "fit")
        (around,) = boxes(page, ".map")
        cells = boxes(page, "tbody tr:not(.between) td:not(:last-child)")
        assert len(cells) == (LAYERS + 1) * TOKENS
        assert max(c["x"] + c["width"] for c in cells) <= around["x"] + around["width"]
        assert min(c["width"] for c in cells) >= 14 and min(c["height"] for c in cells) >= 14

    def test_labels_stay_where_the_reader_scrolls(self, open_page: Opener) -> None:
        page = open_page(rendered(large())).page
        page.evaluate("document.querySelector('.map').scrollTo(1500, 400)")
        (around,) = boxes(page, ".map")
        for label in ("tbody tr:nth-child(61) th", "thead th", "tfoot tr:last-child th"):
            assert boxes(page, label)[0]["x"] == pytest.approx(around["x"], abs=2)

    def test_tokens_can_be_read_in_full_width(self, alone: Tab) -> None:
        clipped = alone.page.eval_on_selector_all(
            "tbody td", "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length"
        )
        assert clipped == alone.page.locator("tbody td", has_text="w" * 40).count()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_text_has_contrast(self, open_page: Opener, scheme: str) -> None:
        page = open_page(rendered(report(port(noise=0.1))), color_scheme=scheme).page
        poor = page.evaluate(CONTRAST)
        # Cells without a number are hatched; their sign is a dash, and the tooltip says the same.
        assert [line for line in poor if line[0] != "–"] == []

    def test_on_paper_every_panel_is_there(self, compared: Tab) -> None:
        choose(compared.page, "show", 0)
        compared.page.emulate_media(media="print")
        assert len(boxes(compared.page, ".panel")) == 3
