"""The laws of tying."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part, derivatives
from gpt_verify.laws.tying.check import at_the_logits, check_graph, check_storage, check_value
from gpt_verify.laws.tying.copies import check_persistence
from gpt_verify.laws.tying.faults import FAULTS
from gpt_verify.laws.tying.gradient import check_tied_gradient
from gpt_verify.port import COPIES, GRADIENTS, PARAMETERS, TYING
from gpt_verify.reference.config import Config


def if_tied(config: Config) -> str | None:
    """A checkpoint may say that its head is a tensor of its own."""
    return None if config.tied else "the checkpoint's head is not tied to wte"


LAW = Law(
    "Tying",
    10,
    (
        Part(
            "tying.value",
            check_value,
            "lm_head is wte transposed, bit for bit",
            needs=(PARAMETERS,),
            sites=at_the_logits,
            free=if_tied,
        ),
        Part(
            "tying.storage",
            check_storage,
            "rows of wte are overwritten: the logits show it at both ends, in those tokens and no "
            "others; undone afterwards. A copy that no list of parameters shows is named: of the "
            "head, of a part of it, of the lookup",
            needs=(PARAMETERS,),
            sites=at_the_logits,
            free=if_tied,
            writes=True,
        ),
        Part(
            "tying.gradient",
            check_tied_gradient,
            "d loss / d wte is the part through the lookup plus the part through the last "
            "product, each against the reference's derivative, so that a blocked side is found; "
            "an end that is scaled, a row taken for padding and derivatives divided by how often "
            "a token occurs are named",
            needs=(PARAMETERS, GRADIENTS),
            sites=at_the_logits,
            free=if_tied,
            takes=derivatives,
            in_one_call=True,
        ),
        Part(
            "tying.graph",
            check_graph,
            "one piece of memory feeds the lookup and the last product of the graph that is run; "
            "of the stored graph too",
            needs=(TYING,),
            sites=at_the_logits,
            free=if_tied,
        ),
        Part(
            "tying.persistence",
            check_persistence,
            "still one matrix after save and load, `state_dict`, safetensors, deepcopy, "
            "`.to(dtype)`, `.to(device)`, one step of an optimiser; by the ways after which it is "
            "two, the cause is named. A torch module's copy gets new memory for wte alone and "
            "shares the rest; where that is impossible the whole module is copied, if there is "
            "memory",
            needs=(PARAMETERS, COPIES),
            sites=at_the_logits,
            free=if_tied,
            writes=True,
        ),
    ),
    FAULTS,
)
