"""Questions that several claims answer together, each shown as one page.

A debate has the claims whose ids begin with its own: ``tie`` has ``tie-transpose`` and all that
follow. Its answer in two lines rests on some of them, and is given only where they came out so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpt_verify.claims.claim import Decided


@dataclass(frozen=True)
class Debate:
    """A question, and what settles it.

    Attributes:
        id: what the ids of its claims begin with.
        question: as people ask it.
        answer: in two lines.
        rests_on: ids of the claims without which the answer would not stand.
        snippet: a program that checks it without this package. The tests run it on a model that
            lies on the disk, and on models that it must refuse.
    """

    id: str
    question: str
    answer: tuple[str, str]
    rests_on: tuple[str, ...]
    snippet: str

    def has(self, claim: str) -> bool:
        return claim.startswith(f"{self.id}-")

    def doubts(self, claims: Iterable[Decided]) -> list[str]:
        """The claims that the answer rests on and that did not come out as expected."""
        sound = {d.claim.id for d in claims if d.measured is not None and not d.contradicted}
        return [name for name in self.rests_on if name not in sound]


DEBATES = (
    Debate(
        id="tie",
        question="Does GPT-2 use one embedding matrix for both input and output?",
        answer=(
            "Yes. There is one matrix, wte: tokens are looked up in it, and the last step uses its "
            "transpose.",
            "lm_head is a second name for that memory, not a copy: to change or train one is to "
            "change both.",
        ),
        rests_on=("tie-transpose", "tie-new-matrix", "tie-set-equal"),
        snippet="""\
import torch
from transformers import GPT2LMHeadModel

model = GPT2LMHeadModel.from_pretrained("openai-community/gpt2").eval()
table, head = model.transformer.wte.weight, model.lm_head.weight
assert head is table, "two matrices"  # one parameter under two names

with torch.no_grad():
    output = model(torch.tensor([[5, 11, 7]]), output_hidden_states=True)
state = output.hidden_states[-1]  # after the final layer norm
by_hand = torch.nn.functional.linear(state, table)  # state @ table.T
assert torch.equal(output.logits, by_hand), "the last step is another one"

count = sum(parameter.numel() for parameter in model.parameters())
print(f"lm_head is wte; {count:,} parameters")  # 124,439,808; 38,597,376 more if untied
""",
    ),
)
