"""The law of the cache."""

from __future__ import annotations

from gpt_verify.laws.cache.check import check_cache
from gpt_verify.laws.cache.faults import FAULTS
from gpt_verify.laws.law import Law, Part, a_whole_context
from gpt_verify.port import STEP

LAW = Law(
    "Cache",
    61,
    (
        Part(
            "cache",
            check_cache,
            "every split of a short sequence, one by one for a long one, and across the last "
            "position, is the whole run",
            needs=(STEP,),
            takes=a_whole_context,
            in_one_call=True,
        ),
    ),
    FAULTS,
    shares="causality",
)
