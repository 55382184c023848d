"""One mistake is one failure, and its consequences follow from it."""

from __future__ import annotations

import dataclasses

import pytest
from models import CONFIG, judged
from report_samples import good, wrong

from gpt_verify.diagnosis.follows import follows
from gpt_verify.findings import Cause, Finding, PortReport, Status
from gpt_verify.sites import sites
from gpt_verify.text import label

ORDER = {name: number for number, name in enumerate(sites(CONFIG))}


def heads(port: PortReport) -> list[str]:
    """The failures that follow from none; every other one follows from one of these."""
    failed = [f for f in port.findings if f.status is Status.FAILED]
    after = follows(port, ORDER)
    assert after.keys() <= {(f.id, f.site) for f in failed}
    found = [label(f) for f in failed if (f.id, f.site) not in after]
    assert {label(head) for head in after.values()} <= set(found)
    return found


def with_findings(*findings: Finding, causes: tuple[Cause, ...] = ()) -> PortReport:
    return dataclasses.replace(good(), findings=findings, causes=causes)


def failed(check: str, site: str | None = None, tensors: tuple[str, ...] = ()) -> Finding:
    return Finding(check, Status.FAILED, "wrong", site, tensors=tensors)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("erf", ["architecture[h.0.mlp.act]"]),
        ("unknown", ["architecture[h.0.mlp.act]"]),
        ("lost_bias", ["weights.values[h.1.mlp.pre]"]),
        ("two", ["weights.values[h.1.mlp.pre]", "architecture[h.0.ln_1]"]),
    ],
)
def test_a_port_with_a_mistake(port: str, expected: list[str]) -> None:
    found = judged(f"followed_ports:{port}")
    assert sum(f.status is Status.FAILED for f in found.findings) > 5
    assert heads(found) == expected
    # The time of the run is that of its checks, and some that is nobody's.
    assert 0 < sum(f.seconds for f in found.findings) <= found.seconds + 0.01


def test_what_is_compared_from_end_to_end_follows() -> None:
    assert heads(wrong()) == ["activations.local[h.0.mlp.act]"]
    assert follows(good(), ORDER) == {}


def test_what_is_wrong_before_does_not() -> None:
    early, local = failed("activations.cascaded", "embed"), failed("activations.local", "h.1.ln_1")
    late = failed("activations.cascaded", "h.1.mlp.act")
    assert heads(with_findings(local, early, late)) == [label(local), label(early)]


def test_a_law_of_its_own_is_one_failure_more() -> None:
    local = failed("activations.local", "h.0.mlp.act")
    others = [failed("cache"), failed("determinism.state"), failed("tying.storage", "logits")]
    assert heads(with_findings(local, failed("logits", "logits"), *others)) == [
        label(f) for f in (local, *others)
    ]


def test_without_a_place_the_logits_come_first() -> None:
    findings = failed("logits", "logits"), failed("loss.reference"), failed("lens", "h.0.resid_mid")
    assert heads(with_findings(*findings)) == ["lens[h.0.resid_mid]"]
    assert heads(with_findings(*findings[:2])) == ["logits[logits]"]


def test_a_cause_that_changes_no_number_explains_no_logits() -> None:
    cause = Cause("tying-parted-by-copying", laws=("tying.storage",))
    findings = failed("tying.storage", "logits"), failed("logits", "logits")
    assert len(heads(with_findings(*findings, causes=(cause,)))) == 2


def test_two_causes_are_two_failures() -> None:
    findings = [failed("architecture", site) for site in ("h.0.ln_1", "h.0.mlp.act", "h.1.ln_1")]
    causes = (
        Cause("norm-eps", sites=("h.0.ln_1", "h.1.ln_1")),
        Cause("gelu-erf", sites=("h.0.mlp.act",)),
    )
    made = with_findings(*findings, failed("logits", "logits"), causes=causes)
    assert heads(made) == ["architecture[h.0.ln_1]", "architecture[h.0.mlp.act]"]
