"""Ports and laws in several processes: the same findings, whatever becomes of a process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import SIZE, command
from models import checkpoint

from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.findings import Report
from gpt_verify.judging.options import Options
from gpt_verify.judging.run import run_request
from gpt_verify.judging.selection import Request, request
from gpt_verify.judging.side_by_side import WORTHWHILE, groups, jobs_for
from gpt_verify.laws.table import CHECKS
from gpt_verify.process import pool
from gpt_verify.reference import Config
from gpt_verify.report.json import port_as_dict

#: What other processes do as well.
pytestmark = pytest.mark.usefixtures("many_calls")

#: NumPy alone, so that a process starts quickly.
PORTS = """
import os
import numpy as np
from gpt_verify.reference import logits

def good(checkpoint):
    def run(tokens):
        rows = [logits(checkpoint.tensors, checkpoint.config, row) for row in tokens]
        return np.stack(rows).astype(np.float32)
    return run

def wrong(checkpoint):
    run = good(checkpoint)
    return lambda tokens: run(tokens[:, ::-1])[:, ::-1]

def forgets(checkpoint):
    "Wrong from the fifth token on, if more than four are asked for."
    run = good(checkpoint)
    return lambda tokens: np.concatenate([run(tokens[:, :4]), run(tokens[:, 4:])], axis=1)

def ends(checkpoint):
    return lambda tokens: os._exit(0)
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and some ports."""
    folder = tmp_path_factory.mktemp("side_by_side")
    assert main(["synth", "--size", SIZE, str(folder / "openai")]) == 0
    (folder / "ports.py").write_text(PORTS, encoding="utf-8")
    return folder


def asked(where: Path, *names: str, lengths: tuple[int, ...] = (1, 7)) -> Request:
    specs = [f"{where / 'ports.py'}:{name}" for name in names]
    return request(where / "openai", specs, Options(lengths=lengths))


def found(report: Report) -> list[dict[str, Any]]:
    """All that does not depend on the clock."""
    return [{**port_as_dict(port), "seconds": 0} for port in report.ports]


def assert_same(got: Report, expected: Report) -> None:
    """Equal but for the clock; the first difference is shown, and not all of it."""
    for one, other in zip(found(got), found(expected), strict=True):
        for check, right in zip(one.pop("checks"), other.pop("checks"), strict=True):
            assert check == right
        assert one == other


def children() -> list[multiprocessing.Process]:
    return [child for child in multiprocessing.active_children() if child.is_alive()]


def test_ports_side_by_side_are_judged_as_in_turn(where: Path) -> None:
    ports = asked(where, "good", "wrong", "forgets", "good")
    in_turn = run_request(ports)
    verdicts = [port.verdict.value for port in in_turn.ports]
    assert verdicts == ["verified", "refuted", "refuted", "verified"]
    assert_same(run_request(ports, jobs=2), in_turn)
    assert not children()


def test_laws_side_by_side_find_what_they_find_in_turn(where: Path) -> None:
    for name in ("good", "wrong"):
        port = asked(where, name)
        assert_same(run_request(port, jobs=3), run_request(port))
    assert not children()


def test_a_module_is_judged_alike(where: Path) -> None:
    """Weights, sites, gradients and a cache too, by processes that each build it."""
    port = request(where / "openai", ["huggingface-sdpa"], Options(lengths=(5,)))
    assert_same(run_request(port, jobs=2), run_request(port))


def test_a_port_that_ends_its_process_ends_no_other(where: Path) -> None:
    report = run_request(asked(where, "good", "ends", "wrong"), jobs=2)
    assert [port.verdict.value for port in report.ports] == ["verified", "unjudged", "refuted"]
    assert report.ports[1].error is not None
    assert report.ports[1].error.endswith("ended the process in which it ran, without a verdict")


def test_the_command_says_so_too(where: Path) -> None:
    ports = [f"--port={where / 'ports.py'}:{name}" for name in ("good", "ends")]
    done = command("run", "--checkpoint", where / "openai", "--length", 5, "--jobs", 2, *ports)
    assert done.returncode == 2, done.stderr
    assert "ended the process in which it ran, without a verdict" in done.stderr


def test_every_check_is_made_once() -> None:
    """Those that ask for what the port was asked before are left to its own process."""
    elsewhere = [part.id for group in groups() for part in group]
    assert sorted(elsewhere) == sorted(part.id for part in CHECKS if not part.history)
    together = next(group for group in groups() if "lengths" in {part.id for part in group})
    assert "causality.bits" in {part.id for part in together}


def test_two_processes_share_the_runs_of_the_port() -> None:
    """What asks for the whole context, and what asks for the reference's derivatives."""
    for processes in (2, 3):
        found = groups(processes)
        assert sorted(part.id for group in found for part in group) == sorted(
            part.id for part in CHECKS if not part.history
        )
        for some in (
            {"causality.bits", "lengths", "cache", "positions.limit", "positions.beyond"},
            {"gradient", "symmetry.gradient"},
        ):
            holding = [group for group in found if some & {part.id for part in group}]
            assert (len(holding) == 1) == (processes == 2)
            for group in holding:  # in the order of the report, as what is shared is made
                assert list(group) == sorted(group, key=CHECKS.index)


LARGE = Config(n_vocab=1000, n_ctx=64, n_embd=512, n_head=8, n_layer=8)


def test_how_many_processes(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores, memory and work limit them; what is in memory or on a device is there once."""
    monkeypatch.delenv(pool.VARIABLE, raising=False)
    monkeypatch.setattr(pool, "cores", lambda: 6)
    monkeypatch.setattr(pool, "available_bytes", lambda: 10**11)
    small, two = asked(where, "good"), asked(where, "good", "wrong")
    assert jobs_for(small, None) == 1, "it would take longer to start another process"
    assert jobs_for(two, None) == 2
    assert jobs_for(small, 3) == jobs_for(two, 3) == 3
    monkeypatch.setenv(pool.VARIABLE, "4")
    assert jobs_for(two, None) == 4
    assert jobs_for(two, 1) == 1
    assert jobs_for(replace(two, held={"mine": object()}), 4) == 1
    assert jobs_for(replace(two, options=Options(device="cuda")), 4) == 1
    monkeypatch.setenv(pool.VARIABLE, "many")
    with pytest.raises(UsageError, match="GPT_VERIFY_JOBS=many: a whole number"):
        jobs_for(two, None)


def test_a_large_model_takes_as_many_as_the_memory_allows(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pool.VARIABLE, raising=False)
    monkeypatch.setattr(pool, "cores", lambda: 64)
    large = replace(asked(where, "good"), checkpoint=checkpoint(LARGE))
    assert jobs_for(large, None) == 1, "nobody knows what a user's own factory starts"
    large = replace(large, specs=("huggingface-eager",))
    monkeypatch.setattr(pool, "available_bytes", lambda: 10**12)
    assert jobs_for(large, None) == len(groups())
    monkeypatch.setattr(pool, "available_bytes", lambda: 36 * 10**8)
    assert jobs_for(large, None) == 3
    monkeypatch.setattr(pool, "available_bytes", lambda: 0)
    assert jobs_for(large, None) == 1


def test_the_test_of_large_models_is_one_of_large_models() -> None:
    from gpt_verify.reference.weights import parameter_count

    assert parameter_count(LARGE) >= WORTHWHILE


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "rubbish"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cores_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    bound = pool.cores(tmp_path / "nothing")
    assert pool.cores(tmp_path) == (bound if expected is None else min(bound, expected))


def test_a_process_of_a_pool_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with pool.pool(1) as executor:
        assert executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert executor.submit(os.getenv, "MKL_NUM_THREADS").result() == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_the_command_ends_its_processes(where: Path) -> None:
    """Killed without warning, it leaves none behind."""
    import subprocess

    (where / "slow.py").write_text(
        "import os, time\n"
        "def factory(checkpoint):\n"
        f"    open({str(where)!r} + '/pid' + str(os.getpid()), 'w').close()\n"
        "    time.sleep(600)\n",
        encoding="utf-8",
    )
    spec = f"{where / 'slow.py'}:factory"
    words = ["run", "--checkpoint", where / "openai", "--jobs", "2", "--port", spec, "--port", spec]
    process = subprocess.Popen([sys.executable, "-m", "gpt_verify", *map(str, words)])
    try:
        pids = _until(lambda: [int(p.name[3:]) for p in where.glob("pid*")], 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _until(lambda: [pid for pid in pids if not _running(pid)], 2) == pids


def _until(look: Any, count: int) -> list[int]:
    """What is there when it is as many; the test fails where that never happens."""
    for _ in range(600):
        if len(there := look()) >= count:
            return list(there)
        time.sleep(0.1)
    raise AssertionError(f"never {count}")


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and two workers, each a process.

    Dask leaves what it sets for its workers in the environment of the process that starts them
    (``MALLOC_TRIM_THRESHOLD_`` among it): the tests that come after must not see it.
    """
    from distributed import LocalCluster

    before = dict(os.environ)
    try:
        with LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as made:
            yield made
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_cluster_finds_the_same(where: Path, cluster: Any) -> None:
    ports = asked(where, "good", "wrong", "forgets")
    report = run_request(ports, cluster=cluster.scheduler_address)
    assert_same(report, run_request(ports))


def test_a_port_that_ends_its_process_ends_no_worker(where: Path, cluster: Any) -> None:
    report = run_request(asked(where, "ends", "good"), cluster=cluster.scheduler_address)
    assert [port.verdict.value for port in report.ports] == ["unjudged", "verified"]
    assert report.ports[0].error is not None
    assert report.ports[0].error.endswith("ports.py:ends: the process died with exit status 0")


def test_what_a_lost_worker_had_begun_is_done_again(where: Path, cluster: Any) -> None:
    """One of two workers is killed while it judges."""
    (where / "slowly.py").write_text(
        PORTS + "\nimport time\n"
        "def slow(checkpoint):\n"
        f"    open({str(where)!r} + '/begun' + str(os.getpid()), 'w').close()\n"
        "    time.sleep(2)\n"
        "    return good(checkpoint)\n",
        encoding="utf-8",
    )
    specs = [f"{where / 'slowly.py'}:slow"] * 3
    ports = request(where / "openai", specs, Options(lengths=(5,)))
    killed: list[int] = []

    def kill() -> None:
        _until(lambda: list(where.glob("begun*")), 2)  # both of them judge
        killed.append(next(iter(cluster.workers.values())).pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = run_request(ports, cluster=cluster.scheduler_address)
    killer.join()
    assert killed
    assert [port.verdict.value for port in report.ports] == ["verified"] * 3


def test_a_campaign_on_a_cluster(where: Path, cluster: Any, capsys: Any) -> None:
    """``power`` hands its trials over, and says what it says by itself."""
    words = ["power", "--checkpoint", str(where / "openai"), "--fault", "gelu-erf", "--json", "-"]
    outcomes = []
    for more in (["--scheduler", cluster.scheduler_address], ["--jobs", "1"]):
        assert main([*words, *more]) == 0
        outcomes.append(json.loads(capsys.readouterr().out))
    alike = [{k: v for k, v in o.items() if k in ("injected", "statements")} for o in outcomes]
    assert alike[0] == alike[1]
    assert alike[0]


def test_a_scheduler_that_is_not_there(where: Path, capsys: Any) -> None:
    words = ["run", "--checkpoint", str(where / "openai"), "--port", f"{where / 'ports.py'}:good"]
    assert main([*words, "--scheduler", "rubbish://nowhere"]) == 2
    assert "--scheduler rubbish://nowhere" in capsys.readouterr().err
