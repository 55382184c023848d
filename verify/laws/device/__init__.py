"""The law of devices."""

from __future__ import annotations

from gpt_verify.laws.device.check import check_device
from gpt_verify.laws.law import Law, Part

LAW = Law(
    "Device",
    21,
    (
        Part(
            "device",
            check_device,
            "CPU and GPU each within budget of float64, and of each other",
        ),
    ),
)
