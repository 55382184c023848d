"""Ways in which blocks may be joined that no catalogue lists, as the logits alone show them.

A block that is never run shows none of its sites, and what is left of the model is right.
"""

from __future__ import annotations

from gpt_verify.diagnosis.forms import blocks
from gpt_verify.faults.fault import AtSites, Fault
from gpt_verify.graph.call import Array, Call
from gpt_verify.graph.run import right


class Wiring(Fault):
    """A mistake that nobody has to be able to inject, in one block as well as in all."""

    @property
    def layered(self) -> bool:
        return True


def _left_out(call: Call) -> Array:
    return call.stream()


def _twice(call: Call) -> Array:
    return blocks.run(call.layer, call, right(call))


WIRINGS: dict[str, Fault] = {
    wiring.name: wiring
    for wiring in (
        Wiring(
            "block-left-out",
            "wiring",
            "runs without one of its blocks",
            predict=AtSites({"resid_post": _left_out}),
        ),
        Wiring(
            blocks.FORM.name,
            "wiring",
            blocks.FORM.summary,
            predict=AtSites({"resid_post": _twice}),
        ),
    )
}
#: Name → sentence that completes "the port …".
NAMES = {name: wiring.summary for name, wiring in WIRINGS.items()}
