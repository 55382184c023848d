"""The law of the calls: what a port returns hangs on its tokens, not on what it did before.

The other laws make some dozens of calls, and a port that is wrong from some later call on, or now
and then, is right in all of them. It is compared with itself, which costs no reference.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt_verify.findings import Finding, naming
from gpt_verify.laws.agreement import LIMIT_PAIR, Agreement, logits_of, refuting
from gpt_verify.laws.subject import Subject
from gpt_verify.reference.weights import parameter_count

LAW = "calls"
#: Multiplications that the calls may take, and how many are made in any case and at most. A run
#: asks for 60 others at least: the 100th is among them, and where the model is small, the 400th.
AFFORDED, FEWEST, MOST = 1 << 33, 48, 352
#: Calls that must be right before one that is wrong is something that comes with the calls.
AT_FIRST = 3


@refuting(LAW)
def check_many(subject: Subject) -> Iterator[Finding]:
    """One short input over and over, and at last what the run began with."""
    tokens = subject.tokens(1, 1)
    count = min(MOST, max(FEWEST, AFFORDED // parameter_count(subject.config)))
    first_TV = logits_of(subject, tokens)[0]
    agreement, wrong = Agreement(subject), []
    for call in range(1, count + 1):
        got_TV = logits_of(subject, tokens, keep=False)[0]
        floors_T = agreement.compare(f"call {call} of it", got_TV, first_TV, tokens[0])
        if floors_T.max() > LIMIT_PAIR:
            wrong.append(call)
    began = ""
    if (first := subject.first_call) is not None:
        at = first.tokens_T.size - 1
        got_TV = logits_of(subject, first.tokens_T[None])[0]
        began = "the first input of the run again"
        agreement.compare(began, got_TV[at:], first.last_V[None], first.tokens_T, at)
        began = f"; {began}"
    if agreement.holds():
        yield agreement.passed(LAW, f"one token in {count} calls{began}")
        return
    fault: str | None
    if not wrong:
        why, fault = "what the run began with has other logits now", None
    elif wrong == list(range(wrong[0], count + 1)):
        why, fault = f"wrong from call {wrong[0]} of {count} on", "calls-worn-out"
    else:
        why = f"wrong at {len(wrong)} of {count} calls, first at call {wrong[0]}"
        fault = "calls-now-and-then"
    named = naming(fault) if wrong and wrong[0] > AT_FIRST else None
    yield agreement.failed(LAW, why, named, wrong=len(wrong))
