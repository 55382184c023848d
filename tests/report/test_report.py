"""What is printed and written about a run: nothing is lost or falsely a pass."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from report_samples import BUDGET, broken, good, report, wrong

from gpt_verify.command.arguments import build_parser
from gpt_verify.findings import Cause, Finding, Place, PortReport, Report, Status
from gpt_verify.judging.repeat import repeat_command
from gpt_verify.judging.run import Options
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.report import json as json_report
from gpt_verify.report import junit, terminal
from gpt_verify.report.mapping import mapping_lines
from gpt_verify.text import collapse_sites, first_failure, one_line, ratio


def parsed(made: Report) -> dict:
    """A report, written, validated against the shipped schema, and read back."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    loaded = json.loads(json_report.render(made), parse_constant=refuse)
    schema = json_report.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(loaded)
    return loaded


def with_finding(finding: Finding) -> Report:
    return report(dataclasses.replace(good(), findings=(finding,)))


class TestJson:
    def test_says_what_the_report_says(self) -> None:
        loaded = parsed(report(good(), wrong(), broken()))
        assert loaded["verdict"] == "refuted"
        assert loaded["schema_version"] == json_report.SCHEMA_VERSION == "1.5"
        assert [p["verdict"] for p in loaded["ports"]] == ["verified", "refuted", "unjudged"]
        port = loaded["ports"][1]
        assert port["first_divergence"] == "h.0.mlp.act"
        assert port["explained_by"] == ["erf_gelu"]
        assert port["weights_from"] == "some/directory"
        assert loaded["ports"][2]["error"] == broken().error
        failed = next(c for c in port["checks"] if c["status"] == "failed")
        assert (failed["id"], failed["site"]) == ("activations.local", "h.0.mlp.act")
        assert (failed["score"], failed["limit"], failed["message"]) == (735.0, 4.0, BUDGET)

    def test_no_port_is_unjudged(self) -> None:
        assert parsed(report())["verdict"] == "unjudged"

    @pytest.mark.parametrize(
        ("number", "written"),
        [
            (math.nan, "nan"),
            (math.inf, "inf"),
            (-math.inf, "-inf"),
            (np.float32("inf"), "inf"),
            (np.float32(0.5), 0.5),
            (None, None),
        ],
    )
    def test_numbers_that_are_not_finite_are_words(self, number: float, written: object) -> None:
        made = with_finding(
            Finding("a", Status.FAILED, "m", "embed", number, 1.0, {"by": {"head": [number]}})
        )
        check = parsed(made)["ports"][0]["checks"][0]
        assert check["score"] == written
        assert check["details"] == {"by": {"head": [written]}}

    def test_text_without_a_form_in_utf_8_is_escaped(self) -> None:
        made = with_finding(Finding("a", Status.FAILED, "\ud800 ±", "embed"))
        json_report.render(made).encode("utf-8")
        assert parsed(made)["ports"][0]["checks"][0]["message"] == "\\ud800 ±"

    def test_what_has_no_form_in_json_is_refused(self) -> None:
        with pytest.raises(TypeError, match="cannot stand in a JSON report"):
            json_report.plain({"x": object()})

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (("verdict",), "fine"),
            (("ports", 0, "checks", 0, "status"), "skipped"),
            (("ports", 0, "checks", 0, "score"), "large"),
            (("ports", 0, "explained_by"), None),
            (("checkpoint", "files", "x"), "not a digest"),
            (("surplus",), 1),
        ],
    )
    def test_schema_can_refuse(self, where: tuple, value: object) -> None:
        loaded = parsed(report(good()))
        at = loaded
        for key in where[:-1]:
            at = at[key]
        at[where[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(json_report.schema()).validate(loaded)

    def test_documentation_names_every_key(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
        schema = json_report.schema()
        keys = set(schema["properties"])
        for kind in ("port", "check"):
            keys |= set(schema["$defs"][kind]["properties"])
        assert keys and {key for key in keys if f"`{key}`" not in text} == set()


class TestJunit:
    def test_one_suite_a_port_and_one_case_a_check(self) -> None:
        root = ET.fromstring(junit.render(report(good(), wrong(), broken())))
        suites = {suite.get("name"): suite for suite in root}
        assert list(suites) == ["good", "wrong", "my.py:port"]
        assert len(suites["good"].findall("testcase")) == len(good().findings)
        assert suites["good"].get("failures") == "0"
        assert suites["good"].get("skipped") == "2"
        assert suites["wrong"].get("failures") == "4"
        failure = suites["wrong"].find("testcase/failure")
        assert failure is not None and failure.get("message") == BUDGET
        error = suites["my.py:port"].find("testcase/error")
        assert error is not None and error.get("message") == broken().error
        assert root.get("errors") == "1"

    def test_counts_are_those_of_the_cases(self) -> None:
        for suite in ET.fromstring(junit.render(report(good(), wrong(), broken()))):
            cases = suite.findall("testcase")
            assert int(suite.get("tests", "")) == len(cases)
            for count, tag in (
                ("failures", "failure"),
                ("errors", "error"),
                ("skipped", "skipped"),
            ):
                assert int(suite.get(count, "")) == sum(c.find(tag) is not None for c in cases)

    def test_times_are_those_of_the_checks(self) -> None:
        timed = tuple(dataclasses.replace(f, seconds=0.25) for f in good().findings)
        port = dataclasses.replace(good(), findings=timed, seconds=5.0)
        root = ET.fromstring(junit.render(report(port, dataclasses.replace(broken(), seconds=1.5))))
        assert {case.get("time") for case in root[0].findall("testcase")} == {"0.250"}
        assert [suite.get("time") for suite in root] == ["5.000", "1.500"]
        assert root.get("time") == "6.500"
        assert root[1].findall("testcase")[-1].get("time") == "1.500"

    def test_a_port_without_findings_is_an_error(self) -> None:
        empty = PortReport("empty", "float32", "cpu", "checkpoint")
        root = ET.fromstring(junit.render(report(empty)))
        assert root.get("errors") == "1"

    def test_what_xml_cannot_hold_is_replaced(self) -> None:
        nasty = Finding("a", Status.FAILED, "\x00\x1b[31m <&> \ud800", "x")
        failure = ET.fromstring(junit.render(with_finding(nasty))).find(".//failure")
        assert failure is not None and "<&>" in failure.get("message", "")


class TestTerminal:
    def test_table_fits_100_columns(self) -> None:
        name = "huggingface-sdpa=a-very-long-organisation-name/and-a-longer-model-name"
        ports = [good(layers=48), wrong(name, layers=48), broken()]
        lines = terminal.render(report(*ports)).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("port "))
        end = lines.index("", start)
        assert end > start + 3
        assert max(map(len, lines[start:end])) <= 100
        # Nothing is dropped to make it fit.
        assert [line.split()[-1] for line in lines[start : start + 2]] == ["not", "examined"]
        assert lines[start + 2].endswith(" 48")

    def test_refuted_port_is_shown_with_its_first_failure(self) -> None:
        text = terminal.render(report(good(), wrong()), repeats=["A", "gpt-verify run --port w"])
        assert "wrong: refuted at h.0.mlp.act" in text
        assert "activations.local[h.0.mlp.act]: score 735, limit 4" in text
        assert BUDGET in text
        assert "explained by: erf_gelu" in text
        assert "failed checks: activations.local (2), activations.cascaded (2)" in text
        assert "repeat: gpt-verify run --port w\n" in text
        assert "next: gpt-verify diagnose --port w\n" in text
        assert text.splitlines()[-1] == (
            "refuted: 2 ports, 20 checks: 12 passed, 4 failed, 4 not examined"
        )

    def test_a_known_fault_is_said_in_a_sentence(self) -> None:
        names = ("gelu-erf", "no-such-fault")
        causes = tuple(Cause(name, sites=("h.0.mlp.act",)) for name in names)
        port = dataclasses.replace(wrong(), explained_by=names, causes=causes)
        text = terminal.render(report(port), repeats=["a line of Python"])
        sentence = CATALOGUE["gelu-erf"].summary
        assert f"explained by: gelu-erf, no-such-fault\n    gelu-erf: the port {sentence}\n" in text
        assert "next:" not in text

    @pytest.mark.parametrize(
        ("repeat", "following"),
        [
            ("gpt-verify run --require 90% --port 'a b' --seed 2", "--port 'a b' --seed 2"),
            ("gpt-verify run --port=w --require all --require tying", "--port=w"),
        ],
    )
    def test_what_is_next_takes_what_diagnose_takes(self, repeat: str, following: str) -> None:
        text = terminal.render(report(wrong()), repeats=[repeat])
        assert f"next: gpt-verify diagnose {following}\n" in text
        build_parser().parse_args(["diagnose", *shlex.split(following)])

    def test_ratings_are_of_the_worst_site(self) -> None:
        text = terminal.render(report(wrong()))
        row = next(line for line in text.splitlines() if line.startswith("wrong "))
        assert " 184 " in row  # 735 / 4
        assert " 1.5 " in row  # 3 / 2
        assert " 196 " in row

    def test_what_a_port_remarks_is_said_in_one_line(self) -> None:
        remarked = dataclasses.replace(good(), remarks=("made by\nsome version",))
        assert "good: made by some version\n" in terminal.render(report(remarked))
        assert json.loads(json_report.render(report(remarked)))["ports"][0]["remarks"]

    def test_what_was_not_examined_is_named(self) -> None:
        text = terminal.render(report(good(layers=3)))
        assert "activations.local at h.0…2.attn.pattern: not shown by the port" in text

    def test_broken_port_is_not_a_pass(self) -> None:
        text = terminal.render(report(broken()))
        assert "my.py:port: could not be judged" in text
        assert "the factory raised ValueError: no weights" in text
        assert "nothing was compared: 1 check not made" in text
        assert "verified" not in text

    def test_what_a_port_says_is_neither_markup_nor_escape_code(self) -> None:
        nasty = Finding("a", Status.FAILED, "[red]x[/red]\x1b[2J\nsecond", "embed", 2.0, 1.0)
        text = terminal.render(with_finding(nasty), colour=False)
        assert "\x1b" not in text
        assert "[red]x[/red]\\x1b[2J second" in text

    def test_colour_only_where_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[" not in terminal.render(report(wrong()))
        assert "\x1b[" in terminal.render(report(wrong()), colour=True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b[" not in terminal.render(report(wrong()), colour=True)


class TestText:
    @pytest.mark.parametrize(
        ("score", "limit", "expected"),
        [
            (1.0, 4.0, 0.25),
            (math.nan, 4.0, math.inf),
            (math.inf, 4.0, math.inf),
            (0.0, 0.0, 0.0),
            (1e-9, 0.0, math.inf),
            (None, 1.0, None),
        ],
    )
    def test_ratio(self, score: float | None, limit: float, expected: float | None) -> None:
        assert ratio(Finding("a", Status.PASSED, "", None, score, limit)) == expected

    def test_sites_collapse_without_loss(self) -> None:
        sites = ["embed", "h.0.ln_1", "h.1.ln_1", "h.2.ln_1", "h.7.ln_1", "h.0.mlp.act", "logits"]
        assert collapse_sites(sites) == "embed, h.0…2,7.ln_1, h.0.mlp.act, logits"

    def test_first_failure_is_where_the_port_diverges(self) -> None:
        early = Finding("weights.values", Status.FAILED, "", "ln_f")
        cascaded = Finding("activations.cascaded", Status.FAILED, "", "h.0.ln_1")
        local = Finding("activations.local", Status.FAILED, "", "h.0.ln_1")
        made = dataclasses.replace(
            good(), findings=(early, cascaded, local), first_divergence="h.0.ln_1"
        )
        assert first_failure(made) is local
        assert first_failure(dataclasses.replace(made, first_divergence=None)) is early
        assert first_failure(good()) is None

    def test_one_line(self) -> None:
        assert one_line("a\n\tb \x07") == "a b \\x07"


class TestRepeat:
    @pytest.mark.parametrize(
        ("options", "ports"),
        [
            (Options(), []),
            (Options(seed=7, lengths=(5, 24)), ["my port.py:f", "huggingface=a b"]),
            (Options(device="cuda", dtype="bfloat16", tokens=(1, 2, 3)), ["x"]),
            (Options(text='-- it\'s "quoted" $HOME'), ["x"]),
        ],
    )
    def test_the_command_asks_for_the_same_run(self, options: Options, ports: list[str]) -> None:
        words = shlex.split(repeat_command(Path("a dir"), ports, options))
        assert words[0] == "gpt-verify"
        args = build_parser().parse_args(words[1:])
        assert args.checkpoint == Path("a dir")
        assert (args.port or []) == ports
        assert (args.device, args.dtype, args.seed) == (options.device, options.dtype, options.seed)
        assert (tuple(args.length) if args.length else None) == options.lengths
        assert (args.tokens, args.text) == (options.tokens, options.text)

    def test_defaults_are_not_spelled_out(self) -> None:
        assert repeat_command(None, [], Options()) == "gpt-verify run"


class TestMapping:
    """Which parameter is which tensor, as the terminal says it."""

    def test_layers_are_drawn_together(self) -> None:
        mapping = {f"blocks.{i}.w": Place(f"h{i}/mlp/c_fc/w", ", transposed") for i in range(12)}
        mapping |= {"wte": Place("wte")}
        mapping |= {"stack[1]": Place("h1/ln_1/g"), "stack[0]": Place("h0/ln_1/g")}
        assert mapping_lines(mapping) == [
            "blocks.0…11.w: h0…11/mlp/c_fc/w, transposed",
            "wte: wte",
            "stack[0…1]: h0…1/ln_1/g",
        ]

    def test_numbers_that_are_no_layers_stand_alone(self) -> None:
        tensors = {"p3": "h0/ln_1/g", "p1": "h2/ln_1/g", "l.1.w": "h0/ln_2/g", "l.2.w": "h1/ln_2/g"}
        mapping = {name: Place(tensor) for name, tensor in tensors.items()}
        assert mapping_lines(mapping) == [
            "p3: h0/ln_1/g",
            "p1: h2/ln_1/g",
            "l.1…2.w: h0…1/ln_2/g",
        ]

    def test_no_page_is_filled(self) -> None:
        mapping = {f"p{7 * i % 101}": Place(f"h{i}/ln_1/g") for i in range(100)}
        lines = mapping_lines(mapping)
        assert len(lines) == 61
        assert lines[-1] == "and 40 more: --json has all"

    def test_of_one_port_all_is_printed_of_several_what_is_doubtful(self) -> None:
        note = ", by shape and name: the values differ by 0.1 of theirs"
        mapping = {"a": Place("wte"), "b": Place("wpe", note, sure=False)}
        port = dataclasses.replace(good(), mapping=mapping)
        alone, beside = terminal.render(report(port)), terminal.render(report(port, good("two")))
        for text in (alone, beside):
            assert "good: 2 parameters, 1 found by content, bit for bit" in text
            assert "\n  b: wpe, by shape and name" in text
        assert "\n  a: wte\n" in alone
        assert "\n  a: wte\n" not in beside
        refuted = terminal.render(report(dataclasses.replace(wrong(), mapping=mapping)))
        assert "\n  b: wpe, by shape and name" in refuted
        assert "\n  a: wte\n" not in refuted
