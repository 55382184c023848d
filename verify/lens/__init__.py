"""The logit lens: what each state of the residual stream would predict if it were the last."""

from gpt_verify.lens.decoders import Decoder, FromBlock, LnF, WithoutLnF
from gpt_verify.lens.states import is_state, oracle_states, port_states, state_sites
from gpt_verify.lens.statistics import STATISTICS, UNDEFINED, Lens, Statistic
from gpt_verify.lens.stream import lens
from gpt_verify.lens.tuned import TunedLens, read_tuned

__all__ = [
    "STATISTICS",
    "UNDEFINED",
    "Decoder",
    "FromBlock",
    "Lens",
    "LnF",
    "Statistic",
    "TunedLens",
    "WithoutLnF",
    "is_state",
    "lens",
    "oracle_states",
    "port_states",
    "read_tuned",
    "state_sites",
]
