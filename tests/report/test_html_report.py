"""The HTML report as text: complete, escaped, self-contained, whatever laws there are."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import math
import re
from pathlib import Path

import pytest
from command import Run
from report_samples import broken, good, report, wrong

from gpt_verify.findings import Cause, Finding, Place, PortReport, Report, Status, Waiver
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.report import html as html_report
from gpt_verify.report.evidence import by_law, statistics
from gpt_verify.report.strips import HEIGHT, LEAST, PADDING, Scale, chart
from gpt_verify.text import one_line

HOSTILE = "</script><script>hacked=1</script>\"'><img src=x onerror=hacked=1>\x1b[2J\u202e\ud800"


def rendered(*ports: PortReport, repeats: tuple[str, ...] = ()) -> str:
    return html_report.render(report(*ports), repeats)


def text_of(page: str) -> str:
    """What a reader sees of a page, spaces drawn together; script and style left out."""
    body = re.sub(r"(?s)<(script|style)>.*?</\1>", "", page)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def with_findings(*findings: Finding) -> PortReport:
    return dataclasses.replace(good(), findings=findings)


class TestSentence:
    @pytest.mark.parametrize(
        ("ports", "says"),
        [
            ((good(),), "Verified: good is the model of this checkpoint, in everything that was"),
            ((good(), good("b")), "Verified: all 2 ports are the model of this checkpoint"),
            (
                (good(), wrong()),
                "Refuted: wrong is not the model of this checkpoint; it fails activations.local "
                "at h.0.mlp.act.",
            ),
            ((wrong(), wrong("b"), good()), "Refuted: 2 of 3 ports are not the model"),
            (
                (broken(), good()),
                "Not judged: my.py:port (the factory raised ValueError: no weights).",
            ),
            ((broken(), wrong()), "Refuted: wrong is not"),
            ((), "Not judged: there was no port."),
        ],
    )
    def test_is_the_verdict(self, ports: tuple[PortReport, ...], says: str) -> None:
        made = report(*ports)
        assert html_report.sentence(made).startswith(says)
        assert html.escape(says, quote=False) in html_report.render(made)


class TestContent:
    def test_every_finding_of_every_port_is_there_once(self) -> None:
        page = rendered(good(), wrong(), broken())
        for i, port in enumerate((good(), wrong())):
            for j in range(len(port.findings)):
                assert page.count(f'id="p{i}f{j}"') == 1
        text = text_of(page)
        for finding in (*good().findings, *wrong().findings):
            if finding.status is not Status.NOT_EXAMINED:
                assert one_line(finding.message) in text

    def test_laws_that_nobody_thought_of_are_shown(self) -> None:
        page = rendered(
            with_findings(
                Finding("astrology", Status.PASSED, "the stars agree"),
                Finding("tea.leaves", Status.FAILED, "too few", "cup", 3.0, 2.0),
                Finding("tea.cup", Status.NOT_EXAMINED, "no cup"),
            ),
            good(),
        )
        text = text_of(page)
        for words in ("astrology", "the stars agree", "tea.leaves", "too few", "no cup"):
            assert words in text
        assert "fails tea.leaves at cup" in text

    def test_what_was_not_examined_is_named_with_its_reason(self) -> None:
        text = text_of(rendered(good()))
        assert "Not examined activations.local h.0…1.attn.pattern not shown by the port" in text

    def test_waivers_are_shown_and_counted(self) -> None:
        waived = (Waiver("tying.storage", "inference only", 1),)
        text = text_of(rendered(dataclasses.replace(good(), waived=waived)))
        assert "Waived tying.storage 1 failure excused inference only" in text
        assert "2 not examined , 1 waiver" in text

    def test_the_divergence_is_marked_and_explained(self) -> None:
        page = rendered(wrong())
        assert page.count("first divergence</text>") == 2  # the local and the cascaded chart
        text = text_of(page)
        assert "First divergence: h.0.mlp.act" in text
        assert "This operation (gelu) was judged on the port's own h.0.mlp.pre" in text
        assert "Explained by erf_gelu ." in text

    def test_a_cause_is_worded_by_the_catalogue(self) -> None:
        sites = ("h.0.mlp.act", "h.1.mlp.act")
        cause = Cause("gelu-erf", "a note", sites, instead=("gelu-other",))
        text = text_of(rendered(dataclasses.replace(wrong(), causes=(cause,))))
        assert f"Explained by gelu-erf : the port {CATALOGUE['gelu-erf'].summary}." in text
        assert "This explains h.0…1.mlp.act (a note). Equally possible: gelu-other." in text

    def test_an_order_that_is_wrong_is_not_called_an_operation_that_is(self) -> None:
        site = "h.1.mlp.act"
        late = Finding(
            "activations.local", Status.FAILED, f"{site} is computed after layer 1", site
        )
        port = dataclasses.replace(
            good(), findings=(*good().findings[:-1], late), first_divergence=site
        )
        text = text_of(rendered(port))
        assert "is computed after layer 1" in text
        assert "This operation" not in text

    def test_each_port_has_the_command_that_repeats_it(self) -> None:
        page = rendered(good(), wrong(), repeats=("do good", "do 'wrong  twice'"))
        assert "<pre>do good</pre>" in page
        assert "<pre>do &#39;wrong  twice&#39;</pre>" in page
        assert "<pre>gpt-verify run --checkpoint models/tiny</pre>" in page

    def test_a_refuted_port_has_what_to_run_next(self) -> None:
        repeats = ("gpt-verify run --port good", "gpt-verify run --require 9% --port 'a b'")
        page = text_of(rendered(good(), wrong(), repeats=repeats))
        assert page.count("gpt-verify diagnose") == 1
        assert "gpt-verify diagnose --port 'a b'" in page

    @pytest.mark.parametrize("repeat", ["gpt_verify.run(model, text='it\\'s \"x')", "A", ""])
    def test_what_ran_in_python_has_none(self, repeat: str) -> None:
        assert "gpt-verify diagnose" not in text_of(rendered(wrong(), repeats=(repeat,)))

    def test_the_run_is_described(self) -> None:
        text = text_of(rendered(good()))
        for words in ("models/tiny", "5,244", "0" * 64, "python 3.11", "length 5 [1, 5]", "n_embd"):
            assert words in text

    def test_a_port_that_broke_is_told_without_tables_of_nothing(self) -> None:
        text = text_of(rendered(broken()))
        assert "Nothing was compared: 1 check not made." in text
        assert "Laws and evidence" not in text

    def test_no_port_makes_a_page(self) -> None:
        assert "there was no port" in rendered()


class TestSafety:
    def hostile(self) -> str:
        finding = Finding("logits", Status.FAILED, HOSTILE, "logits", math.nan, 1.0)
        port = PortReport(
            HOSTILE,
            "float32",
            "cpu",
            HOSTILE,
            (*good().findings, finding),
            error=HOSTILE,
            waived=(Waiver(HOSTILE, HOSTILE, 1),),
            explained_by=(HOSTILE,),
            mapping={HOSTILE: Place(None, HOSTILE, sure=False)},
        )
        made: Report = dataclasses.replace(
            report(port),
            checkpoint={"path": HOSTILE.replace("\ud800", "\udcff"), "files": {HOSTILE: HOSTILE}},
            inputs={"text": HOSTILE, "tokens": [1, 2]},
            environment={"platform": HOSTILE},
            repeat=HOSTILE,
        )
        return html_report.render(made, [HOSTILE])

    def test_what_a_port_says_is_never_markup(self) -> None:
        page = self.hostile()
        assert "<script>hacked" not in page
        assert "<img" not in page
        assert "</script><script>hacked=1" in text_of(page)

    def test_what_cannot_be_printed_is_shown_as_its_escape(self) -> None:
        page = self.hostile()
        page.encode("utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
        assert "\\x1b[2J\\u202e\\ud800" in page

    def test_the_policy_allows_the_style_and_the_script_of_this_page_alone(self) -> None:
        page = rendered(good())
        policy = html.unescape(
            re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]  # type: ignore[index]
        )
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        for tag in ("style", "script"):
            own = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", page)
            assert len(own) == 1
            digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy

    def test_nothing_is_fetched(self) -> None:
        page = rendered(good(), wrong())
        assert re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', page) == []
        assert "url(" not in page and "@import" not in page


class TestScale:
    @pytest.mark.parametrize(
        "ratios", [[], [0.2], [0.0], [0.2, 5], [1e-9, 1e16], [0.5, math.inf], [math.inf], [1.0]]
    )
    def test_heights_keep_the_order_and_stay_in_the_strip(self, ratios: list[float]) -> None:
        scale = Scale.of(ratios)
        probes = sorted([0.0, LEAST, 0.999, 1.0, 1.001, *ratios])
        heights = [scale.height(r) for r in probes]
        assert heights == sorted(heights)
        assert heights[0] == 0.0
        assert heights[-1] <= HEIGHT - 2 * PADDING
        # Which side of the limit it is on is seen by whatever fails.
        assert scale.height(0.999) < scale.height(1.0) < scale.height(1.001)

    def test_what_is_infinitely_wrong_is_above_all_else(self) -> None:
        scale = Scale.of([0.5, 1e3, math.inf])
        assert scale.height(math.inf) > scale.height(1e3)


class TestCharts:
    def test_each_finding_is_at_its_site(self) -> None:
        local = next(c for law in by_law(wrong().findings) for c in law.checks if "local" in c.id)
        made = chart(local, "h.0.mlp.act")
        assert made is not None
        assert [s.name for s in made.strips] == ["attn.qkv", "attn.pattern", "mlp.act"]
        marks = {m.item.finding.site: m for strip in made.strips for m in strip.marks}
        assert len(marks) == len(local.findings)
        assert marks["h.0.attn.qkv"].column == 1
        assert marks["h.1.attn.qkv"].column == 2
        assert made.first is marks["h.0.mlp.act"]
        act = made.strips[2]
        assert act.failed and act.worst == 735.0 / 4.0
        assert marks["h.0.mlp.act"].y < act.limit_y  # above the line
        assert marks["h.0.attn.qkv"].y > made.strips[0].limit_y

    def test_what_is_outside_the_blocks_lies_before_or_after_them(self) -> None:
        order = ["embed", "h.0.ln_1", "h.1.ln_1", "ln_f", "logits"]
        findings = [Finding("a.b", Status.PASSED, "", site, 0.5, 1.0) for site in order]
        ((law),) = by_law(findings)
        made = chart(law.checks[0], None)
        assert made is not None
        assert [m.column for s in made.strips for m in s.marks] == [0, 1, 2, 3, 3]

    def test_a_law_without_layers_has_no_chart(self) -> None:
        (law,) = by_law([Finding("logits", Status.PASSED, "", "logits", 0.5, 1.0)])
        assert chart(law.checks[0], None) is None

    def test_a_failure_without_a_score_is_above_the_limit(self) -> None:
        findings = [
            Finding("a", Status.FAILED, "wrong shape", "h.0.ln_1"),
            Finding("a", Status.PASSED, "", "h.1.ln_1", 0.5, 1.0),
        ]
        (law,) = by_law(findings)
        made = chart(law.checks[0], None)
        assert made is not None
        strip = made.strips[0]
        assert strip.failed_without_score
        assert strip.marks[0].y < strip.limit_y < strip.marks[1].y


def test_only_scores_with_a_limit_are_statistics() -> None:
    details = {"rms": {"score": 1, "limit": 2, "at": None}, "elements": {"count": 3}, "by": [1]}
    found = statistics(Finding("a", Status.PASSED, "", details=details))
    assert [(s.name, s.score, s.limit, s.at) for s in found] == [("rms", 1.0, 2.0, None)]


class TestCommand:
    def test_writes_the_page(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        status, stdout, _ = run("--html", out, port="twice_too_large")
        assert status == 1
        page = out.read_text(encoding="utf-8")
        assert "Refuted: " in text_of(page)
        # The message that the terminal shows, and the command that repeats this port.
        message = next(line for line in stdout.splitlines() if "should be" in line).strip()
        repeat = next(line for line in stdout.splitlines() if line.startswith("  repeat: "))
        assert message in text_of(page)
        assert html.escape(repeat.removeprefix("  repeat: ")) in page

    def test_a_port_that_breaks_still_leaves_a_page(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        assert run("--html", out, port="raises")[0] == 2
        assert "no weights today" in text_of(out.read_text(encoding="utf-8"))

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--html", "-"), "--html needs a file"),
            (("--html", "x", "--json", "x"), "x: --json and --html cannot share a file"),
            (("--html", "missing/x"), "missing/x: cannot be written"),
        ],
    )
    def test_bad_paths_are_refused_before_the_run(
        self,
        run: Run,
        words: tuple[str, ...],
        says: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        status, out, err = run(*words, port="interrupted")  # 130 if it ran
        assert (status, out) == (2, "")
        assert says in err
