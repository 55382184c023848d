"""Two reports side by side: what counts as worse, and that no file can be mistaken for a report."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from command import complaint
from hypothesis import given
from hypothesis import strategies as st
from report_samples import good, report, wrong

import gpt_verify as gv
from gpt_verify.checkpoint.files import Malformed
from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.findings import Finding, PortReport, Report, Status, Verdict, Waiver
from gpt_verify.report import json as json_report
from gpt_verify.report.compare import json as json_comparison
from gpt_verify.report.compare import terminal
from gpt_verify.report.compare.comparison import compare_reports, ratio_of
from gpt_verify.report.compare.stored import read_report, report_of

PORT = f"{Path(__file__).parents[1] / 'compared_ports.py'}:port"
STATES = ("correct", "erf", "hidden", "broken")


@pytest.fixture(scope="module")
def reports(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One port in each of its states, judged by the command."""
    directory = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        for state in STATES:
            patch.setenv("COMPARED_STATE", state)
            words = ["--checkpoint", str(tiny), "--length", "5", "--port", PORT, "--quiet"]
            main(["run", *words, "--json", str(directory / f"{state}.json")])
    return {state: directory / f"{state}.json" for state in STATES}


def status_of(old: Path, new: Path, *words: str) -> int:
    return main(["compare", str(old), str(new), *words])


class TestRealReports:
    def test_nothing_is_worse_than_itself(
        self, reports: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for path in reports.values():
            assert status_of(path, path) == 0
            out = capsys.readouterr().out
            assert out.splitlines()[-1].startswith("nothing is worse of 1 port, ")
            assert "→ failed" not in out

    def test_a_regression_is_1_and_says_where(
        self, reports: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert status_of(reports["correct"], reports["erf"]) == 1
        out = capsys.readouterr().out
        assert "verified → refuted (worse)" in out
        assert "  first divergence: none → h.1.mlp.act" in out
        assert "  explained by: none → gelu-erf" in out
        assert "    - activations.local at h.1.mlp.act: passed → failed" in out
        assert "torch " in out and "numpy " in out  # versions of both sides
        assert " floors (" in out

    def test_its_repair_is_0(
        self, reports: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert status_of(reports["erf"], reports["correct"]) == 0
        out = capsys.readouterr().out
        assert "refuted → verified\n" in out
        assert out.splitlines()[-1].endswith(" better")

    def test_what_is_no_longer_examined_is_worse_under_the_same_verdict(
        self, reports: dict[str, Path]
    ) -> None:
        compared = gv.compare(reports["correct"], reports["hidden"])
        assert compared.worse_verdicts == 0
        assert compared.worse_checks > 100
        shown = gv.compare(reports["hidden"], reports["correct"])
        assert shown.worse == 0
        # What was looked for in the logits alone is found at its site now.
        assert "logits.faults at logits: passed → not there" in terminal.render(shown)

    def test_a_port_that_breaks_is_worse(self, reports: dict[str, Path]) -> None:
        compared = gv.compare(reports["correct"], reports["broken"])
        (port,) = compared.ports
        assert port.after is not None and port.after.verdict is Verdict.UNJUDGED
        assert port.fell
        passed = [f for f in port.before.findings if f.status is Status.PASSED]
        assert compared.worse_checks == len(passed)

    def test_json_has_each_score_as_a_ratio(
        self, reports: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert status_of(reports["correct"], reports["erf"], "--json", "-") == 1
        document = json.loads(capfd.readouterr().out)
        assert document["worse"]["verdicts"] == 1
        (port,) = document["ports"]
        place = ("activations.local", "h.1.mlp.act")
        (check,) = [c for c in port["checks"] if (c["id"], c["site"]) == place]
        assert check["worse"] and check["status"] == {"before": "passed", "after": "failed"}
        score, limit = check["score"], check["limit"]
        shares = {side: score[side] / limit[side] for side in ("before", "after")}
        assert score["ratio"] == pytest.approx(shares["after"] / shares["before"])
        assert score["ratio"] > 100
        assert sum(c["worse"] for c in port["checks"]) == document["worse"]["checks"]
        assert port["logits_floors_ratio"] > 100
        assert document["before"]["environment"]["versions"]["torch"]
        assert status_of(reports["correct"], reports["erf"], "--quiet") == 1
        assert len(capfd.readouterr().out.splitlines()) == 1

    def test_no_input_is_replaced(
        self, reports: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, new = reports["correct"], reports["erf"]
        before = old.read_bytes()
        assert status_of(old, new, "--json", str(old)) == 2
        assert "would replace an input" in complaint(capsys.readouterr().err)
        assert old.read_bytes() == before

    def test_what_was_read_is_what_was_written(self, reports: dict[str, Path]) -> None:
        """But for what no comparison takes: mappings and details."""
        for path in reports.values():
            document = json.loads(path.read_text())
            for port in document["ports"]:
                port["mapping"], port["remarks"], port["seconds"] = {}, [], 0.0
                for check in port["checks"]:
                    check["details"], check["named"], check["tensors"] = {}, [], []
            assert json_report.as_dict(read_report(path)) == document


def _with(made: PortReport, **more: object) -> Report:
    return report(dataclasses.replace(made, **more))


class TestWorse:
    """What counts, and what does not."""

    def test_a_grown_score_below_its_limit_is_shown_and_not_counted(self) -> None:
        before = Finding("logits", Status.PASSED, "", "logits", 1.0, 10.0)
        after = dataclasses.replace(before, score=9.0)
        compared = gv.compare(_with(good(), findings=(before,)), _with(good(), findings=(after,)))
        assert compared.worse == 0
        assert "logits: 9 × at logits (1 → 9, limit 10)" in terminal.render(compared)

    def test_scores_of_two_statistics_are_compared_by_their_limits(self) -> None:
        before = Finding("logits", Status.PASSED, "", "logits", 1.75, 8.0)
        after = dataclasses.replace(before, score=0.2, limit=1.0)
        compared = gv.compare(_with(good(), findings=(before,)), _with(good(), findings=(after,)))
        assert "logits: 0.914 × at logits (score 1.75 of limit 8 → 0.2 of 1)" in terminal.render(
            compared
        )

    @pytest.mark.parametrize(
        ("score", "limit", "ratio"),
        [(None, 1.0, None), (0.2, None, None), (0.2, 0.0, math.inf), (math.nan, 1.0, math.inf)],
    )
    def test_a_score_without_a_share_of_its_limit(
        self, score: float | None, limit: float | None, ratio: float | None
    ) -> None:
        before = Finding("logits", Status.PASSED, "", "logits", 1.75, 8.0)
        after = dataclasses.replace(before, score=score, limit=limit)
        compared = gv.compare(_with(good(), findings=(before,)), _with(good(), findings=(after,)))
        (pair,) = [p for p in compared.ports[0].pairs if p.finding.id == "logits"]
        assert pair.ratio == ratio
        assert (
            "logits: inf × at logits (score 1.75 of limit 8 → " in terminal.render(compared)
        ) == bool(ratio)

    @pytest.mark.parametrize("old", [*Status, None])
    @pytest.mark.parametrize("new", [*Status, None])
    def test_every_change_of_a_check(self, old: Status | None, new: Status | None) -> None:
        kept = Finding("logits", Status.PASSED, "", "logits", 1.0, 10.0)

        def side(status: Status | None) -> Report:
            more = () if status is None else (Finding("cache", status, "why"),)
            return _with(good(), findings=(kept, *more))

        compared = gv.compare(side(old), side(new))
        assert compared.worse_checks == (old is Status.PASSED and new is not Status.PASSED)
        # From verified to refuted, though this check was not examined before.
        fell = new is Status.FAILED and old is not Status.FAILED
        assert compared.worse_verdicts == fell
        assert compared.exit_status == (compared.worse > 0)

    def test_a_waived_check_stays_as_it_is(self) -> None:
        unseen = [
            dataclasses.replace(f, status=Status.NOT_EXAMINED) if f.site == "h.1.mlp.act" else f
            for f in good().findings
        ]
        waived = _with(good(), findings=tuple(unseen), waived=(Waiver("activations", "why", 2),))
        assert gv.compare(waived, waived).worse == 0
        assert gv.compare(report(good()), waived).worse == 2

    def test_a_lost_port_is_worse_and_a_new_one_is_not(self) -> None:
        both, one = report(good("a"), good("b")), report(good("a"))
        lost = gv.compare(both, one)
        assert lost.worse_checks == sum(f.status is Status.PASSED for f in good().findings)
        assert "b: verified → not there any more" in terminal.render(lost)
        added = gv.compare(one, both)
        assert added.worse == 0
        assert "only in the newer: b" in terminal.render(added)

    def test_two_ports_of_one_name_are_told_apart(self) -> None:
        compared = gv.compare(report(good("a"), wrong("a")), report(good("a"), wrong("a")))
        assert [p.after and p.after.verdict for p in compared.ports] == ["verified", "refuted"]
        assert compared.worse == 0

    @pytest.mark.parametrize(
        ("before", "after", "ratio"),
        [
            (2.0, 3.0, 1.5),
            (3.0, 0.0, 0.0),
            (0.0, 0.0, 1.0),
            (0.0, 1e-9, math.inf),
            (1e-308, 1e308, math.inf),
            (math.inf, math.inf, 1.0),
            (1.0, math.nan, math.nan),
            (0.0, math.nan, math.nan),
            (math.nan, 1.0, math.nan),
            (None, 1.0, None),
        ],
    )
    def test_ratio(self, before: float | None, after: float | None, ratio: float | None) -> None:
        assert ratio_of(before, after) == pytest.approx(ratio, nan_ok=True)

    @given(st.lists(st.sampled_from(Status), min_size=1), st.data())
    def test_nothing_passes_and_is_lost_unseen(self, old: list[Status], data: Any) -> None:
        """For any two runs: equal sides are never worse, and each lost pass is counted once."""
        new = data.draw(st.lists(st.sampled_from(Status), min_size=1, max_size=len(old) + 2))
        sides = [
            _with(good(), findings=tuple(Finding("law.part", s, "why", "h.0.ln_1") for s in side))
            for side in (old, new)
        ]
        compared = gv.compare(*sides)
        kept = sum(a is b is Status.PASSED for a, b in zip(old, new, strict=False))
        assert compared.worse_checks == old.count(Status.PASSED) - kept
        assert gv.compare(sides[0], sides[0]).worse == 0
        # Neither rendering can fail, whatever was found.
        assert terminal.summary(compared) in terminal.render(compared)
        json.loads(json_comparison.render(compared))


class TestPortsThatAreChosen:
    def test_two_ports_of_one_report(self) -> None:
        both = report(good("a"), wrong("b"))
        compared = compare_reports(both, both, ports=["a", "b"])
        assert compared.worse_verdicts == 1
        assert [port.name for port in compared.ports] == ["a → b"]
        assert compare_reports(both, both, ports=["b"]).worse == 0

    def test_on_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "both.json"
        path.write_text(json_report.render(report(good("first"), wrong("second"))))
        assert main(["compare", str(path), "--port", "first", "--port", "second"]) == 1
        assert "first → second: verified → refuted (worse)" in capsys.readouterr().out
        assert main(["compare", str(path), "--port", "second", "--port", "first"]) == 0
        capsys.readouterr()
        for words in (["--port", "first"], [], ["--port", "first", "--port", "secnd"]):
            assert main(["compare", str(path), *words]) == 2
            said = complaint(capsys.readouterr().err)
        assert "has no port secnd; did you mean second?" in said

    @pytest.mark.parametrize(
        ("first", "second", "words"),
        [
            (
                None,
                "h.0.mlp.act",
                "they first differ at h.0.mlp.act, where a agrees with the reference",
            ),
            ("h.1.ln_1", None, "they first differ at h.1.ln_1, where b agrees with the reference"),
            (None, None, "no operation of either departs from the reference by itself"),
            ("ln_f", "ln_f", "both depart from the reference at ln_f"),
            ("embed", "ln_f", "a departs from the reference at embed, b at ln_f"),
        ],
    )
    def test_where_two_ports_part(self, first: Any, second: Any, words: str) -> None:
        ports = [dataclasses.replace(good("a"), first_divergence=first)]
        ports += [dataclasses.replace(good("b"), first_divergence=second)]
        both = report(*ports)
        compared = compare_reports(both, both, ports=["a", "b"])
        assert f"  {words}\n" in terminal.render(compared)
        assert words not in terminal.render(compare_reports(both, both))


def test_two_ports_are_judged_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Path(__file__).parents[1]
    good_port, other = (
        f"{where / 'sample_ports.py'}:good",
        f"{where / 'altered_ports.py'}:eager_exact_gelu",
    )
    words = ["compare", "--length", "3", "--json", str(tmp_path / "out.json")]
    assert main([*words, "--port", "huggingface-eager", "--port", other]) == 1
    said = capsys.readouterr().out
    assert "where huggingface-eager agrees with the reference" in said
    assert "they first differ at h.0.mlp.act" in said
    assert json.loads((tmp_path / "out.json").read_text())["worse"]
    assert main([*words, "--port", other, "--port", "huggingface-eager", "--quiet"]) == 0
    capsys.readouterr()
    for ports in ([good_port], [good_port, "huggingface"], []):
        asked = [word for port in ports for word in ("--port", port)]
        assert main([*words, *asked]) == 2
        assert "two ports" in complaint(capsys.readouterr().err)


def test_what_cannot_be_judged_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def one(checkpoint):\n    raise ValueError('no weights')\n\n\nother = one\n")
    words = ["compare", "--length", "3", "--quiet", "--json", str(tmp_path / "out.json")]
    assert main([*words, "--port", f"{file}:one", "--port", f"{file}:other"]) == 2
    said = complaint(capsys.readouterr().err)
    assert "broken.py:one could not be judged: " in said and "no weights" in said
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a", "b", "c"], "compare takes one or two reports; 3 were given"),
        (["--port", "a", "--port", "b", "--port", "c"], "one --port or two; 3 were given"),
        (["a"], "of one report two ports are compared"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_more_or_fewer_than_two(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == 2
    assert says in complaint(capsys.readouterr().err)


class TestNotComparable:
    def test_another_checkpoint(self) -> None:
        mine, other = report(good()), report(good())
        other.checkpoint["files"] = {"model.ckpt.index": "1" * 64}
        with pytest.raises(UsageError, match=r"different checkpoints \(model.ckpt.index\); judge"):
            gv.compare(mine, other)
        other.checkpoint["config"] = {**other.checkpoint["config"], "n_layer": 3}
        with pytest.raises(UsageError, match=r"different checkpoints \(config\)"):
            gv.compare(mine, other)

    def test_the_same_checkpoint_elsewhere(self) -> None:
        mine, other = report(good()), report(good())
        other.checkpoint["path"] = "/elsewhere"
        assert gv.compare(mine, other).worse == 0

    def test_other_inputs(self) -> None:
        mine, other = report(good()), report(good())
        other.inputs["seed"] = 1
        with pytest.raises(UsageError, match=r"different inputs \(seed\); .*: gpt-verify run"):
            gv.compare(mine, other)

    def test_nothing_to_compare(self) -> None:
        for empty in (report(), _with(good(), findings=())):
            for sides in ((empty, report(good())), (report(good()), empty)):
                with pytest.raises(UsageError, match="has no check, and there is nothing"):
                    gv.compare(*sides)

    def test_no_common_port(self) -> None:
        with pytest.raises(
            UsageError, match=r"no port is in both: .* has a and .* has b; --port A"
        ):
            gv.compare(report(good("a")), report(good("b")))


NOT_REPORTS: dict[str, tuple[str, str]] = {
    "empty": ("", "not JSON"),
    "no JSON": ("verified", "not JSON"),
    "a list": ("[]", "not a JSON object"),
    "another object": ('{"verdict": "verified"}', "no report of gpt-verify run"),
    "NaN": ('{"schema_version": NaN, "ports": []}', "NaN is not a number of JSON"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "huge": ('{"schema_version": ' + "9" * 5000 + "}", "not JSON"),
    "twice": ('{"ports": [], "ports": []}', "'ports' occurs twice"),
}


class TestHostileFiles:
    @pytest.mark.parametrize("name", NOT_REPORTS)
    def test_what_is_no_report_is_one_line_and_2(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content, says = NOT_REPORTS[name]
        path, fine = tmp_path / "bad.json", tmp_path / "fine.json"
        path.write_text(content)
        fine.write_text(json_report.render(report(good())))
        for words in ([path, fine], [fine, path]):
            assert main(["compare", *map(str, words)]) == 2
            said = complaint(capsys.readouterr().err)
            assert says in said and "bad.json" in said
            assert "gpt-verify run --json OUT" in said

    def test_a_slip_in_the_name(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "report.json").write_text(json_report.render(report(good())))
        assert main(["compare", str(tmp_path / "reprot.json"), "x"]) == 2
        said = complaint(capsys.readouterr().err)
        assert said.endswith(f"reprot.json: no such file; did you mean {tmp_path}/report.json?")

    @pytest.mark.parametrize("name", ["missing.json", "."])
    def test_no_file(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["compare", str(tmp_path / name), str(tmp_path / name)]) == 2
        assert complaint(capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            (("inputs",), "inputs is missing"),
            (("ports", 0, "device"), "ports[0]: device is missing"),
            (("ports", 0, "checks", 0, "score"), "ports[0]: checks[0]: score is missing"),
        ],
    )
    def test_what_is_missing_is_named(self, keys: tuple[Any, ...], says: str) -> None:
        data = json.loads(json_report.render(report(good())))
        *outer, last = keys
        inside = data
        for key in outer:
            inside = inside[key]
        del inside[last]
        with pytest.raises(Malformed) as refused:
            report_of(data)
        assert says in str(refused.value)

    @pytest.mark.parametrize(
        ("keys", "value", "says"),
        [
            (("schema_version",), "2.0", "schema 2.0; this version reads 1.x"),
            (("schema_version",), 1.4, "schema_version is '1.4', not a text"),
            (("ports",), {}, "ports is '{}', not a list"),
            (("ports", 0), 3, "ports[0]: is not an object"),
            (("ports", 0, "name"), None, "name is 'None'"),
            (("ports", 0, "verdict"), "perfect", "verdict is 'perfect', not verified"),
            (("ports", 0, "verdict"), "refuted", "says refuted where its checks say verified"),
            (("verdict",), "refuted", "says refuted where its checks say verified"),
            (("ports", 0, "error"), "broke", "says verified where its checks say unjudged"),
            (("ports", 0, "checks", 0, "status"), "ok", "checks[0]: status is 'ok'"),
            (("ports", 0, "checks", 0, "status"), "failed", "its checks say refuted"),
            (("ports", 0, "checks", 0, "score"), "NaN", "score is 'NaN'"),
            (("ports", 0, "checks", 0, "score"), True, "score is 'True'"),
            (("ports", 0, "checks", 0, "score"), 10**400, "no number that this tool writes"),
            (("ports", 0, "checks", 0, "limit"), [], "limit is '[]'"),
            (("ports", 0, "explained_by"), [1], "explained_by is no list of texts"),
            (("ports", 0, "logits_floors"), {}, "logits_floors"),
            (("checkpoint",), [], "checkpoint is '[]', not an object"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, keys: tuple[Any, ...], value: object, says: str, tmp_path: Path
    ) -> None:
        document = json_report.as_dict(report(good()))
        inner: Any = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(document))
        with pytest.raises(UsageError) as refused:
            read_report(path)
        assert says in str(refused.value)

    def test_numbers_that_are_not_finite_are_compared(self) -> None:
        before = Finding("logits", Status.FAILED, "", "logits", math.nan, 10.0)
        after = dataclasses.replace(before, score=math.inf)
        sides = [
            report_of(json.loads(json_report.render(_with(good(), findings=(f,)))))
            for f in (before, after)
        ]
        compared = gv.compare(*sides)
        assert compared.worse == 0
        assert "no number at logits (nan → inf, limit 10)" in terminal.render(compared)
        json.loads(json_comparison.render(compared), parse_constant=pytest.fail)

    def test_a_number_too_large_for_a_float(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.json"
        text = json_report.render(report(good())).replace('"score": 1.0', '"score": 1e999')
        path.write_text(text)
        with pytest.raises(UsageError, match="no number that this tool writes"):
            read_report(path)

    @given(st.data())
    def test_a_truncated_file_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: Any
    ) -> None:
        text = json_report.render(report(good()))
        path = tmp_path_factory.mktemp("cut") / "cut.json"
        path.write_text(text[: data.draw(st.integers(0, len(text) - 3))])
        with pytest.raises(UsageError):
            read_report(path)

    @given(st.data())
    def test_any_value_anywhere_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: Any
    ) -> None:
        """Whatever stands in a report: one line, or a comparison that can be printed."""
        document = json_report.as_dict(report(wrong()))
        inner: Any = document
        while isinstance(inner, dict | list) and inner:
            keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            holder, key = inner, data.draw(st.sampled_from(keys))
            inner = inner[key]
            if data.draw(st.booleans()):
                break
        values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
        holder[key] = data.draw(values | st.just([]) | st.just({}) | st.just({"a": {"b": 1}}))
        path = tmp_path_factory.mktemp("any") / "any.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        try:
            compared = gv.compare(path, path)
        except UsageError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert compared.worse == 0
            assert all(line.isprintable() for line in terminal.render(compared).splitlines())
            json_comparison.render(compared).encode()

    def test_a_lying_name_is_printed_as_text(self) -> None:
        name = "::error::a\x1b[2J\u202e\n::error::b"
        found = Finding(name, Status.FAILED, name, name, 2.0, 1.0)
        before = _with(good(name), findings=(dataclasses.replace(found, status=Status.PASSED),))
        after = _with(good(name), findings=(found,), error=name)
        before.environment["versions"] = {name: "1"}
        out = terminal.render(gv.compare(before, after))
        assert "\x1b" not in out and "\u202e" not in out
        assert not any(line.lstrip().startswith("::") for line in out.splitlines())


def test_versions_of_both_sides() -> None:
    old, new = report(good()), report(good())
    old.environment.update(versions={"torch": "2.8", "numpy": "2.4"}, platform="Linux")
    new.environment.update(versions={"torch": "2.9", "numpy": "2.4"}, platform="Linux")
    out = terminal.render(gv.compare(old, new))
    assert "changed: torch 2.8 → 2.9\n" in out
    assert "the same on both sides: numpy 2.4, platform Linux\n" in out
