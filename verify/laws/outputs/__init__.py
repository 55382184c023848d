"""The laws of what a port hands out of its inside."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.outputs.check import check_patterns, check_states
from gpt_verify.laws.outputs.faults import FAULTS
from gpt_verify.port import ACTIVATIONS, PATTERNS, STATES

LAW = Law(
    "Outputs",
    82,
    (
        Part(
            "outputs.states",
            check_states,
            "`hidden_states`, where they are handed out, are the embedding and the stream after "
            "each block; the last one of transformers' models is after `ln_f`, of others before or "
            "after",
            needs=(STATES, ACTIVATIONS),
            in_one_call=True,
        ),
        Part(
            "outputs.patterns",
            check_patterns,
            "`attentions`, where they are handed out, are what the softmax made, layer by layer "
            "and head by head; a fused kernel has none, which is not examined",
            needs=(PATTERNS, ACTIVATIONS),
            in_one_call=True,
        ),
    ),
    FAULTS,
)
