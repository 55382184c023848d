"""The law of padding."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.padding.check import check_padding
from gpt_verify.laws.padding.faults import FAULTS

LAW = Law(
    "Padding",
    63,
    (
        Part(
            "positions.padding",
            check_padding,
            "padded on the left with a mask and positions, as alone; a port that does not derive "
            "positions from a mask passes if it takes positions, and the finding says so. "
            "transformers' eager attention in float16 is refuted where all scores of a padding "
            "position are below −16: they overflow together with its mask, and the NaN spreads",
            in_one_call=True,
        ),
    ),
    FAULTS,
)
