"""The logit lens: what each state of the residual stream would predict if it were the last."""

from gpt_verify.lens.attribution import Attribution, attribute
from gpt_verify.lens.decoders import Decoder, FromBlock, LnF, WithoutLnF
from gpt_verify.lens.states import (
    Seen,
    is_state,
    oracle_shown,
    oracle_states,
    port_shown,
    port_states,
    state_sites,
)
from gpt_verify.lens.statistics import STATISTICS, UNDEFINED, Lens, Statistic
from gpt_verify.lens.stream import lens
from gpt_verify.lens.tuned import TunedLens, read_tuned

__all__ = [
    "STATISTICS",
    "UNDEFINED",
    "Attribution",
    "Decoder",
    "FromBlock",
    "Lens",
    "LnF",
    "Seen",
    "Statistic",
    "TunedLens",
    "WithoutLnF",
    "attribute",
    "is_state",
    "lens",
    "oracle_shown",
    "oracle_states",
    "port_shown",
    "port_states",
    "read_tuned",
    "state_sites",
]
