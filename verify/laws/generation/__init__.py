"""The laws of generation."""

from __future__ import annotations

from gpt_verify.laws.generation.check import (
    check_end,
    check_greedy,
    check_limit,
    check_padded,
    takes,
)
from gpt_verify.laws.generation.faults import FAULTS
from gpt_verify.laws.law import Law, Part
from gpt_verify.port import GENERATE

LAW = Law(
    "Generation",
    68,
    (
        Part(
            "generation.greedy",
            check_greedy,
            "each token that is generated without sampling is the likeliest by the port's own "
            "logits (a tie within noise may go either way), and as many are made as were asked for",
            needs=(GENERATE,),
            in_one_call=True,
        ),
        Part(
            "generation.padded",
            check_padded,
            "so it is in a batch padded on the left, by the logits that each row has alone",
            needs=(GENERATE,),
            in_one_call=True,
        ),
        Part(
            "generation.end",
            check_end,
            "a row ends with the token that ends it, and no other row does",
            needs=(GENERATE,),
            in_one_call=True,
        ),
        Part(
            "generation.limit",
            check_limit,
            "beyond the context a port refuses, stops, or goes on from the last n_ctx tokens",
            needs=(GENERATE,),
            in_one_call=True,
            takes=takes,
        ),
    ),
    FAULTS,
)
