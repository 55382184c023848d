"""What is drawn of a lens: tokens that can be told apart, shades in order, nothing lost."""

from __future__ import annotations

import dataclasses
import html as escaping
import io
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lens_samples import lens, port, report, sites
from PIL import Image
from rich.cells import cell_len
from rounding import summed

from gpt_verify.errors import MissingDependency, UsageError
from gpt_verify.judging.lens import Reading
from gpt_verify.lens.statistics import STATISTICS, UNDEFINED
from gpt_verify.lens.tokens import visible
from gpt_verify.report.lens import html, picture, png, terminal
from gpt_verify.report.lens import json as lens_json
from gpt_verify.report.lens.colours import LEVELS, ink, luminance, palette
from gpt_verify.report.lens.picture import PROBABILITY, VIEWS, Shade

FIRST = VIEWS[PROBABILITY]


class TestTokens:
    @pytest.mark.parametrize(
        ("token", "shown"),
        [
            (b" the", "␣the"),
            (b"\n\n", "↵↵"),
            (b"\t\r", "⇥␍"),
            (b"\xe2\x80", "\\xe2\\x80"),
            ("\u2019".encode(), "\u2019"),
            (b"a\xe2", "a\\xe2"),
            ("\u0301".encode(), "◌\u0301"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            ("\u202e".encode(), "\\u{202e}"),
            (b"\\", "\\\\"),
            ("␣".encode(), "\\␣"),
            (b"", "∅"),
            ("日本".encode(), "日本"),
        ],
    )
    def test_examples(self, token: bytes, shown: str) -> None:
        assert visible(token) == shown

    @given(st.binary(max_size=6), st.binary(max_size=6))
    def test_different_tokens_look_different(self, a: bytes, b: bytes) -> None:
        assert (visible(a) == visible(b)) == (a == b)

    @given(st.text(alphabet=" \n\\x{}u12e␣↵∅◌", max_size=5), st.binary(max_size=3))
    def test_also_where_one_spells_what_the_other_is(self, a: str, b: bytes) -> None:
        assert (visible(a.encode()) == visible(b)) == (a.encode() == b)

    @given(st.binary())
    def test_every_sign_can_be_printed(self, token: bytes) -> None:
        assert visible(token).isprintable() and not visible(token).isspace()


class TestColours:
    def test_brightness_grows_from_level_to_level(self) -> None:
        shades = [luminance(colour) for colour in palette()]
        assert len(shades) == LEVELS
        assert all(a < b for a, b in itertools.pairwise(shades))
        assert shades[0] < 0.05 and shades[-1] > 0.85

    def test_text_can_be_read_on_every_level(self) -> None:
        """4.5 : 1 (WCAG 2.2, 1.4.3)."""
        for colour in palette():
            a, b = sorted((luminance(colour), luminance(ink(colour))))
            assert (b + 0.05) / (a + 0.05) >= 4.5


class TestShade:
    @pytest.mark.parametrize("name", VIEWS)
    def test_levels_follow_the_numbers(self, name: str) -> None:
        view = VIEWS[name]
        numbers = picture.values(lens(), name)
        scale = Shade.of(view, [numbers])
        levels = scale.levels(numbers)
        defined = ~np.isnan(numbers)
        assert (levels[~defined] == -1).all()
        assert levels[defined].min() >= 0 and levels[defined].max() < LEVELS
        order = np.argsort(numbers[defined])
        steps = np.diff(levels[defined][order])
        assert (steps >= 0).all() if view.bright == "high" else (steps <= 0).all()
        ends = scale.levels(np.array(scale.ends))
        assert list(ends) == [0, LEVELS - 1]

    def test_a_nearly_certain_state_is_bright_in_every_view_that_has_an_end(self) -> None:
        for view in VIEWS.values():
            s = STATISTICS.get(view.name)
            if s is None or s.better is not None:
                assert view.bright == ("high" if s is None else s.better)

    def test_differences_are_shaded_by_their_power_of_ten(self) -> None:
        found = np.array([[0.0, 3e-9, 2e-4, np.nan]])
        scale = Shade.of_differences([found])
        assert (scale.low, scale.high) == (1e-9, 1e-3)
        levels = scale.levels(found)[0]
        assert levels[0] == 0 < levels[1] < levels[2] < LEVELS
        assert levels[3] == -1

    def test_no_difference_is_no_shade(self) -> None:
        scale = Shade.of_differences([np.zeros((2, 2))])
        assert scale.ends == (0.0, 0.0)
        assert not scale.levels(np.zeros((2, 2))).any()

    @pytest.mark.parametrize("kind", VIEWS)
    @pytest.mark.parametrize("fill", [0.0, np.nan])
    def test_numbers_that_are_all_alike(self, kind: str, fill: float) -> None:
        numbers = np.full((2, 3), fill)
        levels = Shade.of(VIEWS[kind], [numbers]).levels(numbers)
        assert len(np.unique(levels)) == 1

    def test_a_name_that_does_not_exist_lists_those_that_do(self) -> None:
        with pytest.raises(UsageError, match=r"no statistic x: there are probability, rank_final"):
            picture.view("x")


class TestPanels:
    def test_readings_then_differences(self) -> None:
        made = picture.panels(report(port(), port(name="b")))
        assert [p.title for p in made] == [
            "reference",
            "a-port",
            "b",
            "a-port − reference",
            "b − reference",
            "b − a-port",
        ]
        assert [p.difference for p in made] == [False] * 3 + [True] * 3

    def test_the_difference_is_that_of_the_same_states(self) -> None:
        """Also where the port shows fewer of them."""
        part = picture.panels(report(port(noise=0.1, sub_blocks=False)))[-1]
        whole, own = lens(), lens(noise=0.1, sub_blocks=False)
        assert own.sites == sites(3, sub_blocks=False)
        rows = [whole.sites.index(site) for site in own.sites]
        expected = np.abs(own.entropy_nats - whole.entropy_nats[rows])
        np.testing.assert_array_equal(part.values("entropy_nats"), expected)
        np.testing.assert_array_equal(part.differs, own.top1_NT != whole.top1_NT[rows])
        assert part.differs.any() and not part.differs.all()

    def test_a_port_that_could_not_be_read_has_none(self) -> None:
        made = picture.panels(report(Reading("broken", error="broken: no states")))
        assert [p.title for p in made] == ["reference"]

    def test_the_last_layer_is_on_top(self) -> None:
        own = lens()
        assert [own.sites[n] for n in picture.rows(own, True)] == list(sites(3))[::-1]
        kept = [picture.row_name(own.sites[n]) for n in picture.rows(own, False)]
        assert kept == ["2", "1", "0", "embed"]
        assert picture.row_name("h.1.resid_mid") == "1 attn"

    def test_hits_are_the_tokens_that_follow(self) -> None:
        own = lens()
        hit = picture.hits(own)
        assert not hit[:, -1].any()
        for n, t in np.ndindex(len(own.sites), len(own.tokens_T) - 1):
            assert hit[n, t] == (own.rank_next[n, t] == 0)

    def test_mean_loss_is_over_what_is_predicted(self) -> None:
        own = lens()
        expected = summed(np.nanmean(own.loss_nats, axis=1), own.loss_nats.shape[1])
        assert picture.mean_loss(own) == expected
        assert np.isnan(picture.mean_loss(lens(tokens=[3]))).all()


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 100, 200])
    @pytest.mark.parametrize("count", [1, 9, 24])
    @pytest.mark.parametrize("colours", [None, "truecolor"])
    def test_fits_the_width(self, width: int, count: int, colours: terminal.Colours | None) -> None:
        own = lens(tokens=np.arange(count) % 11)
        text = terminal.render(report(of=own), FIRST, colours=colours, width=width)
        for line in re.sub("\x1b[^m]*m", "", text).splitlines():
            assert cell_len(line) <= width

    def test_every_cell_is_there_from_the_last_layer_down(self) -> None:
        own = lens()
        lines = terminal.render(report(of=own), FIRST, sub_blocks=True).splitlines()
        names = report(of=own).names
        labels = [picture.row_name(own.sites[n]) for n in picture.rows(own, True)]
        found = [line for line in lines if line[:8].strip() in labels]
        assert [line[:8].strip() for line in found] == labels
        for line, n in zip(found, picture.rows(own, True), strict=True):
            for token in own.top1_NT[n]:
                assert names[int(token)][:4] in line

    def test_without_colour_the_number_stands_below(self) -> None:
        own = lens()
        lines = terminal.render(report(of=own), VIEWS["rank_next"]).splitlines()
        below = lines[next(i for i, line in enumerate(lines) if line.startswith("2 ")) + 1]
        assert below.split() == [*map(str, own.rank_next[-1, :-1]), "–"]
        assert "\x1b" not in "\n".join(lines)

    def test_with_colour_the_shade_is_that_of_the_number(self) -> None:
        own = lens()
        text = terminal.render(report(of=own), FIRST, colours="truecolor")
        levels = Shade(0.0, 1.0, False, "high").levels(own.top_probabilities[..., 0])
        for t in range(len(own.tokens_T)):
            r, g, b = palette()[levels[-1, t]]
            assert f"48;2;{r};{g};{b}m" in text

    def test_what_follows_is_marked_as_hit_or_miss(self) -> None:
        own = lens()
        made = report(of=own)
        line = next(
            row for row in terminal.render(made, FIRST).splitlines() if row.startswith("next")
        )
        for t, token in enumerate(own.tokens_T[1:]):
            sign = "✓" if own.rank_next[-1, t] == 0 else "✗"
            assert f"{sign}{made.names[int(token)][:4]}" in line

    def test_no_table_is_printed_twice(self) -> None:
        text = terminal.render(report(port(noise=1e-9), port(noise=0.3, name="b")), FIRST)
        assert text.count("\ninput ") == 2
        assert "a-port: what the table of reference shows, to every digit" in text
        assert "\nb: top-1" in text

    def test_ports_are_compared_state_by_state(self) -> None:
        made = report(port(noise=0.1), Reading("broken", error="no states"))
        text = terminal.render(made, VIEWS["entropy_nats"])
        panel = picture.panels(made)[-1]
        assert "a-port − reference" in text
        assert f"{panel.differs[-1].sum()} of 7" in text
        assert "broken: no states" in text


class TestJson:
    def test_is_the_record(self) -> None:
        made = report(port(), Reading("broken", error="no states"))
        loaded = json.loads(lens_json.render(made))
        assert loaded["schema_version"] == lens_json.SCHEMA_VERSION
        assert [r["name"] for r in loaded["readings"]] == ["reference", "a-port", "broken"]
        assert loaded["readings"][2]["lens"] is None
        own = loaded["readings"][0]["lens"]
        assert own["statistics"]["rank_next"][-1][-1] is None
        found = np.array(own["statistics"]["entropy_nats"])
        np.testing.assert_array_equal(found, made.reference.entropy_nats)
        assert loaded["names"]["0"] == "␣the"

    def test_documentation_names_every_key(self) -> None:
        from command import ROOT

        text = (ROOT / "docs" / "lens-pictures.md").read_text(encoding="utf-8")
        loaded = json.loads(lens_json.render(report()))
        keys = {*loaded, *loaded["readings"][0], *loaded["readings"][0]["lens"]}
        assert {key for key in keys if f"`{key}`" not in text} == set()


class TestHtml:
    @pytest.mark.parametrize("name", VIEWS)
    def test_every_cell_has_its_token_and_its_shade(self, name: str) -> None:
        made = report()
        own, view = made.reference, VIEWS[name]
        page = html.render(made, view)
        numbers = picture.values(own, name)
        levels = Shade.of(view, [numbers]).levels(numbers)
        for n in range(len(own.sites)):
            row = re.search(rf'<tr data-n="{n}".*?</tr>', page)
            assert row is not None
            cells = re.findall(r'<td class="([^"]*)">(.*?)</td>', row[0])
            assert len(cells) == len(own.tokens_T)
            for t, (classes, text) in enumerate(cells):
                shade = f"c{levels[n, t]}" if levels[n, t] >= 0 else "none"
                assert classes.split()[0] == shade
                assert ("hit" in classes) == (own.rank_next[n, t] == 0)
                assert escaping.unescape(text) == made.names[int(own.top1_NT[n, t])]

    def test_the_shades_that_are_handed_over_are_those_of_the_first_view(self) -> None:
        import base64

        made = report()
        data = json.loads(re.search(r'id="data">(.*?)</script>', html.render(made, FIRST))[1])  # type: ignore[index]
        levels = np.frombuffer(base64.b64decode(data["panels"][0]["levels"][PROBABILITY]), np.uint8)
        numbers = picture.values(made.reference, PROBABILITY)
        np.testing.assert_array_equal(
            levels.reshape(numbers.shape), Shade.of(FIRST, [numbers]).levels(numbers)
        )

    def test_what_a_port_says_is_never_markup(self) -> None:
        hostile = "</script><script>hacked=1</script><img src=x>"
        made = report(port(name=hostile), Reading(hostile, error=hostile), text=hostile)
        page = html.render(dataclasses.replace(made, repeat=hostile), FIRST)
        assert "<script>hacked" not in page and "<img" not in page

    def test_undefined_numbers_are_drawn_as_such(self) -> None:
        own = lens()
        top = own.top_ids.copy()
        top[1, 2] = UNDEFINED
        probabilities = own.top_probabilities.copy()
        probabilities[1, 2] = np.nan
        entropy = own.entropy_nats.copy()
        entropy[1, 2] = np.nan
        broken = dataclasses.replace(
            own, top_ids=top, top_probabilities=probabilities, entropy_nats=entropy
        )
        page = html.render(report(of=broken), FIRST)
        row = re.search(r'<tr data-n="1".*?</tr>', page)[0]  # type: ignore[index]
        assert '<td class="none">–</td>' in row
        terminal.render(report(of=broken), FIRST)
        png.render(report(of=broken), FIRST)

    def test_one_token(self) -> None:
        own = lens(tokens=[3])
        assert "Loss by layer" not in html.render(report(of=own), FIRST)
        terminal.render(report(of=own), FIRST)
        assert png.render(report(of=own), VIEWS["loss_nats"]).startswith(b"\x89PNG")


class TestPng:
    def test_is_a_picture_of_every_reading(self) -> None:
        """Tokens that Matplotlib would take for mathematics, or has no letters for, are drawn."""
        alone = Image.open(io.BytesIO(png.render(report(), FIRST)))
        made = png.render(report(port(noise=0.1)), FIRST, sub_blocks=True)
        several = Image.open(io.BytesIO(made))
        assert alone.format == several.format == "PNG"
        assert several.height > 2 * alone.height

    def test_the_shades_are_in_it(self) -> None:
        own = lens()
        image = Image.open(io.BytesIO(png.render(report(of=own), FIRST))).convert("RGB")
        colours = {colour for _, colour in image.getcolors(2**24) or []}
        levels = Shade(0.0, 1.0, False, "high").levels(own.top_probabilities[..., 0])
        kept = picture.rows(own, sub_blocks=False)
        assert {palette()[level] for level in levels[kept].ravel()} <= colours

    def test_a_very_long_text_is_drawn_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Matplotlib refuses more than 2¹⁶ pixels; here the limit is nearer."""
        monkeypatch.setattr(png, "LARGEST", 2000)
        own = lens(layers=1, tokens=np.arange(60) % 11)
        image = Image.open(io.BytesIO(png.render(report(of=own), FIRST)))
        assert 1000 < image.width <= 2000

    def test_without_matplotlib_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingDependency, match=re.escape("pip install '.[png]'")):
            png.render(report(), FIRST)


def test_numbers_in_cells_are_short() -> None:
    for view in VIEWS.values():
        for value in (0.0, 1e-9, 0.004, 1.5, 123.4, 50_256.0, 1e7, math.nan):
            assert len(picture.describe_number(value, view)) <= 6
