"""The law of padding."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.padding.cached import check_cached
from gpt_verify.laws.padding.check import check_padding
from gpt_verify.laws.padding.faults import FAULTS
from gpt_verify.laws.padding.masks import check_masks

LAW = Law(
    "Padding",
    63,
    (
        Part(
            "positions.padding",
            check_padding,
            "padded on the left with a mask and positions, as alone, and with other positions "
            "otherwise; a port that does not derive "
            "positions from a mask passes if it takes positions, and the finding says so. "
            "transformers' eager attention in float16 is refuted where all scores of a padding "
            "position are below −16: they overflow together with its mask, and the NaN spreads",
            in_one_call=True,
        ),
        Part(
            "positions.masks",
            check_masks,
            "padded on the right, on both sides or masked in between, as without what is masked; a "
            "mask of ones is none; masks of truth values and of floating-point numbers, where the "
            "port takes them, are read as those of integers. With a mask alone positions may count "
            "the tokens that are not masked, those from the first of them on, or all, the same way "
            "in every mask",
            in_one_call=True,
        ),
        Part(
            "cache.padded",
            check_cached,
            "rows of several lengths, padded on the left and decoded together with a cache in "
            "every split of a short batch, as alone; a port that does not derive positions from a "
            "mask must not do so with a cache either, and takes them",
            in_one_call=True,
        ),
    ),
    FAULTS,
)
