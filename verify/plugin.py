"""pytest plugin: each law at each site is a test with a readable id.

    pytest --checkpoint=DIR --port=FILE.py:factory

(With ``=``: pytest looks for its configuration before it knows which options take an argument, and
takes a directory that stands alone for one of tests.)

No test file is needed: with ``--port`` the plugin collects the tests by itself, before those of
the project (``-m gpt_verify`` runs them alone). Ports that ``[tool.gpt-verify]`` in pyproject.toml
names are judged where no paths are given; where it names none, ``--checkpoint`` stands for every
built-in port. A port runs once, when its first test is set up, also where xdist spreads them.

One mistake is one failure: what follows from it is an expected failure (``xfail``) that names it,
as long as the test that it follows from is run as well. ``--runxfail`` shows each as a failure.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from gpt_verify.errors import GptVerifyError
from gpt_verify.findings import Finding, PortReport, Status, Verdict
from gpt_verify.judging.port_runs import PortRuns
from gpt_verify.judging.project import read_project
from gpt_verify.process.scratch import Scratch
from gpt_verify.report.output import OutputFile
from gpt_verify.text import (
    count,
    failures_by_check,
    first_failure,
    headline,
    label,
    listing,
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
        "repeatable; default: those of pyproject.toml, else none; with --checkpoint and without "
        "paths every built-in port that is installed",
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
#: Of the reports that can be written.
_KINDS = ("json", "html", "badge")
#: Port → the names of those of its tests that are run.
_CHOSEN = pytest.StashKey[dict[str, list[str]]]()
#: The folder through which processes of xdist share what they judge.
_SHARED = pytest.StashKey[Scratch]()
_OUTPUTS = pytest.StashKey[dict[str, OutputFile]]()
_BASELINE: pytest.StashKey[Baseline | None] = pytest.StashKey()


def _port_runs(config: pytest.Config) -> PortRuns:
    """What is asked for: by options, and where they say nothing by the project's pyproject.toml."""
    project = read_project(config.rootpath)
    checkpoint, lengths = config.getoption("--checkpoint"), config.getoption("--gpt-verify-length")
    options = {
        "device": config.getoption("--gpt-verify-device"),
        "dtype": config.getoption("--gpt-verify-dtype"),
        "seed": config.getoption("--gpt-verify-seed"),
        "lengths": tuple(lengths) if lengths else None,
        "ignore_keys": tuple(config.getoption("--gpt-verify-ignore-key")),
        "require": tuple(config.getoption("--require") or ()),
    }
    return PortRuns(
        Path(checkpoint) if checkpoint else project.checkpoint,
        config.getoption("--port") or project.ports,
        **project.completed(options),
    )


def _active(config: pytest.Config) -> bool:
    """Whether the plugin collects tests by itself."""
    paths = config.args_source is pytest.Config.ArgsSource.ARGS
    by_default = config.getoption("--checkpoint") or config.stash[_RUNS].named
    return bool(config.getoption("--port") or (by_default and not paths))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpt_verify: a law of gpt-verify at one site of one port")
    config.addinivalue_line("markers", "claims: a claim of the ledger (gpt-verify claims)")
    try:
        config.stash[_RUNS] = _port_runs(config)
    except GptVerifyError as error:
        raise pytest.UsageError(f"gpt-verify: {error}") from error
    config.stash[_OUTPUTS] = {}
    config.stash[_BASELINE] = None
    config.stash[_CHOSEN] = {}
    worker = getattr(config, "workerinput", {})
    if shared := worker.get("gpt_verify_shared"):
        config.stash[_RUNS].shared = Path(shared)
    if not config.stash[_RUNS].named and not config.getoption("--checkpoint"):
        for option in ("--baseline", "--require", *(f"--gpt-verify-{kind}" for kind in _KINDS)):
            if config.getoption(option):
                raise pytest.UsageError(f"{option}: no port to judge; name one with --port=…")
    if old := config.getoption("--baseline"):
        from gpt_verify.report.compare.baseline import Baseline

        try:
            config.stash[_BASELINE] = Baseline.read(Path(old))
        except GptVerifyError as error:
            raise pytest.UsageError(str(error)) from error
    for kind in _KINDS:
        option = f"--gpt-verify-{kind}"
        out = config.getoption(option)
        if out is None or worker:  # a worker of xdist has not judged every port
            continue
        try:
            config.stash[_OUTPUTS][kind] = OutputFile(Path(out))
        except GptVerifyError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of xdist is told where the reports of the ports are shared."""
    stash = node.config.stash
    if _SHARED not in stash:
        stash[_SHARED] = Scratch()
        stash[_RUNS].shared = stash[_SHARED].path
        node.config.add_cleanup(stash[_SHARED].close)
    node.workerinput["gpt_verify_shared"] = str(stash[_SHARED].path)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    outputs, runs = session.config.stash.get(_OUTPUTS, {}), session.config.stash[_RUNS]
    if _SHARED in session.config.stash:
        runs.gather()
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
    if runs.checks:
        names = listing(map(one_line, runs.checks))
        terminalreporter.write_line(f"judged by the selected checks alone: {names}")
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
    """Put the ports first among what the session collects."""
    report = yield
    if isinstance(collector, pytest.Session) and _active(collector.config) and report.passed:
        ours = Run.from_parent(collector, name="gpt-verify", nodeid="gpt-verify")
        report.result = [ours, *report.result]
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Now it is known which tests are run. Where they need less than the whole of a port, no more
    is judged of it."""
    stash = session.config.stash
    chosen, runs = stash[_CHOSEN], stash[_RUNS]
    items = [item for item in session.items if isinstance(item, _PortItem)]
    for item in items:
        chosen.setdefault(item.port, []).append(item.name)
    whole = {item.port for item in items if not isinstance(item, Check)}
    if stash[_OUTPUTS] or any("port_report" in _fixtures(item) for item in session.items):
        return
    runs.checks = {
        port: {item.check for item in items if isinstance(item, Check) and item.port == port}
        for port in chosen
        if port not in whole
    }


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test takes as long as its check took while the port ran; what is left of that time (the
    port was built, its failures were explained) is the setup of the first."""
    report = yield
    if isinstance(item, _PortItem):
        report.duration = max(0.0, report.duration + item.shift.get(report.when, 0.0))
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
                name = f"baseline[{one_line(port)}]"
                yield Lost.from_parent(self, name=name, nodeid=f"gpt-verify::{name}", port=port)


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
            yield Check.from_parent(self, **self._named(name), check=check, site=site)
        yield PortVerdict.from_parent(self, **self._named("verdict"))
        if self.config.stash[_BASELINE] is not None:
            yield SinceBaseline.from_parent(self, **self._named("baseline"))

    def _named(self, name: str) -> dict[str, str]:
        # The id as the text that it is: pytest reads it back from its cache (--lf), and knows it
        # again only where it was made of that text.
        return {"name": name, "nodeid": f"{self.nodeid}::{name}"}


class _PortItem(pytest.Item):
    """A test about one port; its setup runs the port, so that a port that breaks is an error."""

    port_report: PortReport

    def __init__(self, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]  # pytest's own keyword arguments
        #: Phase of the test → seconds that its duration is changed by.
        self.shift: dict[str, float] = {}

    @property
    def port(self) -> str:
        assert self.parent is not None
        return self.parent.name

    @property
    def chosen(self) -> list[str]:
        """The tests of this port that are run."""
        return self.config.stash[_CHOSEN].get(self.port, [self.name])

    def setup(self) -> None:
        runs, start = self.config.stash[_RUNS], time.perf_counter()
        known = len(runs.made)
        try:
            self.port_report = runs.report(self.port)
        except GptVerifyError as error:
            self.broken(one_line(error))
        spent = time.perf_counter() - start
        own = [f.seconds for f in self.port_report.findings if label(f) in self.chosen]
        left = spent - sum(own) if len(runs.made) > known else 0.0
        self.shift["setup"] = max(0.0, left) - spent

    def broken(self, why: str) -> NoReturn:
        """No port, no test: that is one failure, of the verdict where it is asked for."""
        at = "verdict" if "verdict" in self.chosen else self.chosen[0]
        if self.name != at:
            self.follow(at, why)
        pytest.fail(why, pytrace=False)

    def follow(self, name: str, *lines: str) -> NoReturn:
        """Fail as another test of this port does, for the same reason."""
        if not self.config.getoption("runxfail"):
            why = f"follows from {self.port}::{name}: {'; '.join(lines)}"
            # pytest.xfail() would have a traceback made, which takes as long as many checks.
            raise pytest.xfail.Exception(why, pytrace=False)
        self.fail(*lines)

    @cached_property
    def follows(self) -> dict[tuple[str, str | None], Finding]:
        """Each failed check that follows from one whose test is run as well → that one."""
        from gpt_verify.diagnosis.follows import follows
        from gpt_verify.sites import sites

        table = sites(self.config.stash[_RUNS].checkpoint.config)
        order = {name: number for number, name in enumerate(table)}
        found = follows(self.port_report, order)
        return {key: head for key, head in found.items() if label(head) in self.chosen}

    def reportinfo(self) -> tuple[Path, None, str]:
        # Not the end of the node id, in which pytest would turn the dots into colons.
        return self.path, None, f"{self.port}: {self.name}"

    def fail(self, *lines: str) -> NoReturn:
        repeat = self.config.stash[_RUNS].repeat(self.port)
        pytest.fail("\n".join([*lines, f"repeat: {repeat}"]), pytrace=False)


class Check(_PortItem):
    """One check at one site."""

    def __init__(self, *, check: str, site: str | None, **more: object) -> None:
        super().__init__(**more)
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
            self.broken(one_line(self.port_report.error))
        self.shift["call"] = sum(finding.seconds for finding in self.findings)

    def runtest(self) -> None:
        if not self.findings:
            self.fail("no finding: nothing was compared")
        failed = [finding for finding in self.findings if finding.status is Status.FAILED]
        if failed:
            lines = [line for finding in failed for line in _describe(finding)]
            head = self.follows.get((self.check, self.site))
            if head is not None:
                self.follow(label(head), *lines)
            self.fail(*lines, *self._sentences(failed), *self._consequences(failed))
        unseen = [f for f in self.findings if f.status is Status.NOT_EXAMINED]
        if unseen:
            # The name is in the reason: pytest folds skips that have the same reason into one.
            pytest.skip(f"not examined: {self.nodeid}: {one_line(unseen[0].message)}")

    def _sentences(self, failed: list[Finding]) -> Iterator[str]:
        """What the faults do that explain these failures."""
        from gpt_verify.report.sentences import sentences

        here = {name for f in failed for name in (f.id, f.site, *f.tensors)}
        causes = self.port_report.causes
        return sentences(cause for cause in causes if not here.isdisjoint(cause.where))

    def _consequences(self, failed: list[Finding]) -> list[str]:
        after = {key for key, head in self.follows.items() if head in failed}
        found = [f for f in self.port_report.findings if (f.id, f.site) in after]
        if not found:
            return []
        what = f"{count(len(found), 'failure')} of {failures_by_check(found)}"
        return [f"from it follow (xfail): {what}; --runxfail shows each"]


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
        if report.error is None and not report.unmet:
            failed = [f for f in report.findings if f.status is Status.FAILED]
            shown = [label(self.follows.get((f.id, f.site), f)) for f in failed]
            if failed and set(self.chosen).issuperset(shown):
                self.follow(listing(dict.fromkeys(shown)), *lines)
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
    if "port_report" in metafunc.fixturenames and metafunc.config.stash[_RUNS].named:
        try:
            ports = metafunc.config.stash[_RUNS].ports()
        except GptVerifyError as error:
            raise pytest.Collector.CollectError(f"gpt-verify: {one_line(error)}") from error
        metafunc.parametrize("port_report", ports, indirect=True, scope="session")


@pytest.fixture(scope="session")
def port_report(request: pytest.FixtureRequest) -> PortReport:
    """The report of each port under test; a test that takes it runs once for each, and is skipped
    where no port is named."""
    if not hasattr(request, "param"):
        pytest.skip("gpt-verify: no port to judge; name one with --port=… or in pyproject.toml")
    return request.config.stash[_RUNS].report(request.param)
