"""pytest plugin: each law at each site is a test with a readable id.

    pytest --checkpoint=DIR --port=FILE.py:factory

(With ``=``: pytest looks for its configuration before it knows which options take an argument, and
takes a directory that stands alone for one of tests.)

No test file is needed: with ``--port`` or ``--checkpoint`` the plugin collects the tests by itself,
and without paths nothing else is collected. A port runs once, when its first test is set up.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpt_verify.errors import GptVerifyError
from gpt_verify.findings import Finding, PortReport, Status, Verdict
from gpt_verify.judging.port_runs import PortRuns
from gpt_verify.report.output import OutputFile
from gpt_verify.text import (
    count,
    failures_by_check,
    first_failure,
    headline,
    label,
    number,
    one_line,
)

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint
    from gpt_verify.report.compare.baseline import Baseline


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpt-verify", "gpt-verify: judge ports of GPT-2")
    group.addoption(
        "--checkpoint",
        metavar="DIR",
        help="checkpoint to judge against; default: the one that ships with gpt-verify",
    )
    group.addoption(
        "--gpt-verify-ignore-key",
        action="append",
        default=[],
        metavar="NAME",
        help="a key of its config.json or hparams.json that alters nothing; repeatable",
    )
    group.addoption(
        "--port",
        action="append",
        metavar="SPEC",
        help="FILE.py:factory, package.module:factory, or a built-in name (gpt-verify ports); "
        "repeatable; default: every built-in port that is installed",
    )
    group.addoption(
        "--gpt-verify-dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: what each port declares",
    )
    group.addoption("--gpt-verify-device", choices=("cpu", "cuda"), default="cpu")
    group.addoption(
        "--gpt-verify-length",
        action="append",
        type=int,
        metavar="N",
        help="judge on seeded samples of this many tokens; repeatable",
    )
    group.addoption("--gpt-verify-seed", type=int, default=0, metavar="N")
    group.addoption("--gpt-verify-json", metavar="OUT", help="write the JSON report")
    group.addoption(
        "--require",
        action="append",
        metavar="all|LAW|N%",
        help="what must be examined, or the verdict of the port fails; repeatable",
    )
    group.addoption(
        "--baseline",
        metavar="OLD.json",
        help="compare with this earlier report; what is worse fails",
    )
    group.addoption("--gpt-verify-html", metavar="OUT", help="write the report as one HTML page")
    group.addoption("--gpt-verify-badge", metavar="OUT", help="write a badge for shields.io")


_RUNS = pytest.StashKey[PortRuns]()
_OUTPUTS = pytest.StashKey[dict[str, OutputFile]]()
_BASELINE: pytest.StashKey[Baseline | None] = pytest.StashKey()


def _port_runs(config: pytest.Config) -> PortRuns:
    checkpoint, lengths = config.getoption("--checkpoint"), config.getoption("--gpt-verify-length")
    return PortRuns(
        Path(checkpoint) if checkpoint else None,
        config.getoption("--port"),
        device=config.getoption("--gpt-verify-device"),
        dtype=config.getoption("--gpt-verify-dtype"),
        seed=config.getoption("--gpt-verify-seed"),
        lengths=tuple(lengths) if lengths else None,
        ignore_keys=tuple(config.getoption("--gpt-verify-ignore-key")),
        require=tuple(config.getoption("--require") or ()),
    )


def _active(config: pytest.Config) -> bool:
    """Whether the plugin collects tests by itself."""
    return bool(config.getoption("--checkpoint") or config.getoption("--port"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpt_verify: a law of gpt-verify at one site of one port")
    config.addinivalue_line("markers", "claims: a claim of the ledger (gpt-verify claims)")
    config.stash[_RUNS] = _port_runs(config)
    config.stash[_OUTPUTS] = {}
    config.stash[_BASELINE] = None
    if old := config.getoption("--baseline"):
        from gpt_verify.report.compare.baseline import Baseline

        try:
            config.stash[_BASELINE] = Baseline.read(Path(old))
        except GptVerifyError as error:
            raise pytest.UsageError(str(error)) from error
    for kind in ("json", "html", "badge"):
        option = f"--gpt-verify-{kind}"
        out = config.getoption(option)
        if out is None:
            continue
        if config.getoption("numprocesses", None):
            raise pytest.UsageError(f"{option}: not with -n, where no process sees every port")
        try:
            config.stash[_OUTPUTS][kind] = OutputFile(Path(out))
        except GptVerifyError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_sessionfinish(session: pytest.Session) -> None:
    outputs, runs = session.config.stash.get(_OUTPUTS, {}), session.config.stash[_RUNS]
    report = runs.merged() if outputs else None
    if report is None:
        return
    from gpt_verify.report import badge, html, json

    if "badge" in outputs:
        outputs["badge"].write(badge.render(report))
    if "json" in outputs:
        outputs["json"].write(json.render(report))
    if "html" in outputs:
        outputs["html"].write(html.render(report, runs.repeats()))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The verdict, and what moved since the baseline, of the ports that this process has run."""
    baseline, runs = config.stash[_BASELINE], config.stash[_RUNS]
    report = runs.merged()
    if report is None:
        return
    from gpt_verify.report import github
    from gpt_verify.report.compare import terminal

    terminalreporter.section("gpt-verify")
    terminalreporter.write_line(headline(report))
    compared = None
    if baseline is not None:
        terminalreporter.section("gpt-verify: baseline")
        try:
            compared = baseline.against(report, runs.asked())
            terminalreporter.write(terminal.render(compared))
        except GptVerifyError as error:
            terminalreporter.write_line(one_line(error))
    if github.active():
        for line in github.marks(report, compared):
            terminalreporter.write_line(line)
        if why := github.write_summary(github.summary(report, compared)):
            terminalreporter.write_line(f"gpt-verify: {why}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Put the ports first among what the session collects, or alone where no path was given."""
    report = yield
    if isinstance(collector, pytest.Session) and _active(collector.config) and report.passed:
        ours: list[pytest.Item | pytest.Collector] = [Run.from_parent(collector, name="gpt-verify")]
        paths = collector.config.args_source is pytest.Config.ArgsSource.ARGS
        report.result = [*ours, *report.result] if paths else ours
    return report


class Run(pytest.Collector):
    """All ports; here a checkpoint that cannot be read stops the collection, in one line."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        from gpt_verify.ports.named import require_all

        runs, baseline = self.config.stash[_RUNS], self.config.stash[_BASELINE]
        try:
            ports, expected = runs.ports(), runs.expected()
            require_all(ports, self.config.getoption("--gpt-verify-device"))
            if baseline is not None:
                baseline.require_comparable(runs.request)
        except GptVerifyError as error:
            raise self.CollectError(f"gpt-verify: {one_line(error)}") from error
        if not ports or not expected:
            raise self.CollectError("gpt-verify: nothing to compare")
        for port in ports:
            yield OnePort.from_parent(self, name=port, nodeid=port, expected=expected)
        if baseline is not None and runs.asked() is None:
            for port in baseline.lost(ports):
                yield Lost.from_parent(self, name=f"baseline[{one_line(port)}]", port=port)


class OnePort(pytest.Collector):
    """The checks of one port; its node id is the port's name."""

    def __init__(self, *, expected: list[tuple[str, str | None]], **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]  # pytest's own keyword arguments
        self.expected = expected
        self.add_marker(pytest.mark.gpt_verify)
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(name=self.name))

    def collect(self) -> Iterator[pytest.Item]:
        for check, site in self.expected:
            name = f"{check}[{site}]" if site else check
            yield Check.from_parent(self, name=name, check=check, site=site)
        yield PortVerdict.from_parent(self, name="verdict")
        if self.config.stash[_BASELINE] is not None:
            yield SinceBaseline.from_parent(self, name="baseline")


class _PortItem(pytest.Item):
    """A test about one port; its setup runs the port, so that a port that breaks is an error."""

    port_report: PortReport

    @property
    def port(self) -> str:
        assert self.parent is not None
        return self.parent.name

    def setup(self) -> None:
        try:
            self.port_report = self.config.stash[_RUNS].report(self.port)
        except GptVerifyError as error:
            pytest.fail(one_line(error), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        # Not the end of the node id, in which pytest would turn the dots into colons.
        return self.path, None, f"{self.port}: {self.name}"

    def fail(self, *lines: str) -> None:
        repeat = self.config.stash[_RUNS].repeat(self.port)
        pytest.fail("\n".join([*lines, f"repeat: {repeat}"]), pytrace=False)


class Check(_PortItem):
    """One check at one site."""

    def __init__(self, *, check: str, site: str | None, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]  # pytest's own keyword arguments
        self.check, self.site = check, site
        self.findings: list[Finding] = []

    def setup(self) -> None:
        super().setup()
        self.findings = [
            finding
            for finding in self.port_report.findings
            if (finding.id, finding.site) == (self.check, self.site)
        ]
        # What was found before the port broke still counts.
        seen = any(finding.status is not Status.NOT_EXAMINED for finding in self.findings)
        if self.port_report.error is not None and not seen:
            pytest.fail(one_line(self.port_report.error), pytrace=False)

    def runtest(self) -> None:
        if not self.findings:
            self.fail("no finding: nothing was compared")
        failed = [finding for finding in self.findings if finding.status is Status.FAILED]
        if failed:
            self.fail(*(line for finding in failed for line in _describe(finding)))
        unseen = [f for f in self.findings if f.status is Status.NOT_EXAMINED]
        if unseen:
            # The name is in the reason: pytest folds skips that have the same reason into one.
            pytest.skip(f"not examined: {self.nodeid}: {one_line(unseen[0].message)}")


class PortVerdict(_PortItem):
    """Fails unless the port is verified: whatever no other test shows, shows here."""

    def runtest(self) -> None:
        report = self.port_report
        if report.verdict is Verdict.VERIFIED:
            return
        lines = [f"{one_line(report.name)}: {report.verdict.value}"]
        if report.error is not None:
            lines.append(one_line(report.error))
        elif report.unmet:
            lines += map(one_line, report.unmet)
        elif report.verdict is Verdict.UNJUDGED:
            lines.append("its logits were not compared with the reference's")
        if report.first_divergence is not None:
            lines.append(f"first divergence: {report.first_divergence}")
        if report.explained is not None:
            lines.append(report.explained)
        first = first_failure(report)
        if first is not None:
            lines += [f"failed checks: {failures_by_check(report.findings)}", label(first)]
            lines += _describe(first)
        self.fail(*lines)


class SinceBaseline(_PortItem):
    """Fails where the port is worse than the baseline says that it was."""

    def runtest(self) -> None:
        from gpt_verify.report.compare import terminal

        baseline, runs = self.config.stash[_BASELINE], self.config.stash[_RUNS]
        assert baseline is not None, "there is no such test without a baseline"
        if baseline.lost([self.port_report.name]) != baseline.names:
            compared = baseline.against(runs.whole(self.port), [self.port])
            if compared.worse:
                self.fail(terminal.render(compared))
        elif baseline.lost(runs.ports()) == baseline.names:
            self.fail(f"none of the ports is in the baseline ({', '.join(baseline.names)})")
        else:
            pytest.skip(f"not in the baseline: {self.nodeid}")


class Lost(pytest.Item):
    """A port of the baseline that was not judged: nothing of it is examined any more."""

    def __init__(self, *, port: str, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]  # pytest's own keyword arguments
        self.port = port
        self.add_marker(pytest.mark.gpt_verify)

    def runtest(self) -> None:
        baseline = self.config.stash[_BASELINE]
        assert baseline is not None, "there is no such test without a baseline"
        passed = count(baseline.passed(self.port), "check")
        pytest.fail(f"{one_line(self.port)}: {passed} passed, and it is not judged", pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


def _describe(finding: Finding) -> list[str]:
    lines = [one_line(finding.message)]
    if finding.score is not None and finding.limit is not None:
        lines.append(f"score {number(finding.score)}, limit {number(finding.limit)}")
    return lines


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config) -> Checkpoint:
    """The checkpoint under test: ``--checkpoint``, or the one that ships with gpt-verify."""
    from gpt_verify.checkpoint.handed import handed_out

    return handed_out(pytestconfig.stash[_RUNS].checkpoint)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "port_report" in metafunc.fixturenames:
        try:
            ports = metafunc.config.stash[_RUNS].ports()
        except GptVerifyError as error:
            raise pytest.Collector.CollectError(f"gpt-verify: {one_line(error)}") from error
        metafunc.parametrize("port_report", ports, indirect=True, scope="session")


@pytest.fixture(scope="session")
def port_report(request: pytest.FixtureRequest) -> PortReport:
    """The report of each port under test; a test that takes it runs once for each."""
    return request.config.stash[_RUNS].report(request.param)
