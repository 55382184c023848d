"""Check every law on correct ports for as long as there is time, and write down what happened.

    python scripts/law_campaign.py --minutes 30 --json docs/results/law-campaign.json

The models, regimes and tokens are those of ``tests/strategies.py``; the ports are transformers' and
correct, so that every refutation is a false alarm, and the script exits with status 1. It does not
stop at the first: what is wanted is how many there are, of which law, in which regime. ``tox -e
long`` holds the same, stops at the first, and makes it as small as it can.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "laws")]
from strategies import Case, cases  # noqa: E402  # of the tests, not installed
from subjects import port  # noqa: E402  # needs the path as well

from gpt_verify.findings import PortReport, Status  # noqa: E402  # after the two above
from gpt_verify.judging.judge import judge  # noqa: E402  # after the two above
from gpt_verify.judging.run import Silent, environment  # noqa: E402  # after the two above

#: Cases that are drawn from one seed.
BATCH = 20


class Campaign:
    """What was held, and what was refuted."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.not_examined: Counter[str] = Counter()
        self.false_alarms: list[dict[str, Any]] = []

    def hold(self, case: Case, device: str) -> None:
        report = judged(case, device)
        for key in (case.model.regime, case.attention, case.dtype):
            self.cases[key] += 1
        for status, counter in (
            (Status.PASSED, self.passed),
            (Status.NOT_EXAMINED, self.not_examined),
        ):
            counter.update({f.id for f in report.findings if f.status is status})
        failed = [f for f in report.findings if f.status is Status.FAILED]
        if failed or report.error:
            found = [f"{f.id} at {f.site}: {f.message}" for f in failed]
            print(f"{case!r}: {found or report.error}", flush=True)
            alarm = {"case": repr(case), "laws": sorted({f.id for f in failed}), "found": found}
            self.false_alarms.append({**alarm, "error": report.error})


def judged(case: Case, device: str) -> PortReport:
    source = case.model.checkpoint()
    made = {"attention": case.attention, "dtype": case.dtype, "source": source, "device": device}
    return judge(
        *(repr(case), source, case.inputs, None, device, Silent()),
        build=lambda: port(**made),
        laws=case.laws,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch of cases")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    campaign, start, batch = Campaign(), time.monotonic(), 0
    end = start + 60 * arguments.minutes
    while time.monotonic() < end:

        @seed(arguments.seed + batch)
        @settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases())
        def hold(case: Case) -> None:
            if time.monotonic() < end:
                campaign.hold(case, arguments.device)

        hold()
        batch += 1
    held = sum(campaign.cases[name] for name in ("eager", "sdpa"))
    alarms = Counter(law for alarm in campaign.false_alarms for law in alarm["laws"])
    print(f"{held} correct ports, {len(campaign.false_alarms)} with a false alarm: {dict(alarms)}")
    if arguments.json:
        result = {
            "minutes": round((time.monotonic() - start) / 60, 1),
            "seeds": [arguments.seed, arguments.seed + batch - 1],
            "device": arguments.device,
            "ports": held,
            "cases": dict(sorted(campaign.cases.items())),
            "passed": dict(sorted(campaign.passed.items())),
            "not_examined": dict(sorted(campaign.not_examined.items())),
            "false_alarms_by_law": dict(sorted(alarms.items())),
            "false_alarms": campaign.false_alarms,
            "environment": environment(),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 1 if campaign.false_alarms else 0


if __name__ == "__main__":
    sys.exit(main())
