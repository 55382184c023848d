"""A GPU and the CPU compute the same logits; ports that differ there are refuted."""

from __future__ import annotations

from typing import Any

import device_faults as faults
import pytest
from models import checkpoint
from subjects import hold, port

from gpt_verify.findings import Finding, Status
from gpt_verify.port import ELSEWHERE
from gpt_verify.reference import Config


def met(alter: Any = lambda model: None, dtype: Any = None, source: Any = None) -> Finding:
    """What the law says of eager attention on the one device and fused on the other."""
    here = port(alter, "sdpa", dtype, source)
    there = port(attention="eager", dtype=dtype, source=source)
    (finding,) = hold("device", faults.OnTwoDevices(here, there), source)
    return finding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_correct_devices_meet(dtype: Any) -> None:
    """Other kernels, other bits."""
    finding = met(dtype=dtype)
    assert finding.status is Status.PASSED, finding.message
    assert finding.message.startswith("logits on cuda and on cpu differ by ")
    assert finding.score is not None and finding.score > 0


@pytest.mark.parametrize("config", [Config(1, 1, 1, 1, 1), Config(2, 3, 2, 1, 2)])
def test_odd_sizes(config: Config) -> None:
    assert met(source=checkpoint(config)).status is Status.PASSED


def test_the_same_bits_are_said() -> None:
    same = port()
    (finding,) = hold("device", faults.OnTwoDevices(same, same))
    assert (finding.status, finding.message) == (Status.PASSED, "cuda and cpu: same bits")


@pytest.mark.parametrize(
    "fault", ["rounds_its_products", "another_gelu", "stale_weights", "not_a_number"]
)
def test_a_device_that_computes_something_else_is_refuted(fault: str) -> None:
    finding = met(getattr(faults, fault))
    assert finding.status is Status.FAILED
    assert finding.message.startswith("logits on cuda and on cpu differ by ")
    assert finding.score is not None and finding.limit is not None
    assert finding.score > 3 * finding.limit


def test_a_port_with_no_other_device() -> None:
    alone = faults.OnTwoDevices(port(), port())
    alone.withdraw(ELSEWHERE)
    (finding,) = hold("device", alone)
    assert (finding.status, finding.message) == (Status.NOT_EXAMINED, "no other device")
