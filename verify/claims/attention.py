"""Claims about attention: its mask, its scale, its softmax, and how q, k and v are laid out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import AR, CODE, GPT3, OE, OUR_GRAPH
from gpt_verify.laws.subject import same_bits
from gpt_verify.port import CONSTANTS, NotExamined

Tokens = NDArray[np.int64]

CLAIMS = (
    Claim(
        id="causal-prefix",
        statement="Output i depends on tokens 1 … i only.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, to the last bit. When all tokens after a position are replaced, the logits up "
            "to that position stay the same, bit for bit, at all {boundaries} positions that "
            "were tried, and those after it change."
        ),
        sources=(OE,),
    ),
    Claim(
        id="causal-first",
        statement="The first token can attend only to itself.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes: in all {heads} heads of all {layers} layers its attention to itself is exactly 1 "
            "and to the other {others} tokens exactly 0."
        ),
        sources=(AR,),
    ),
    Claim(
        id="causal-mask-form",
        statement=(
            "The mask has zeros in the lower triangle and the most negative float above it, and is "
            "added to the scores."
        ),
        kind=Kind.DOCUMENT,
        expected=Verdict.CORRECTED,
        answer=(
            "True of some implementations: {versions} adds such a mask in its eager attention. "
            "OpenAI's src/model.py multiplies the scores by a triangle of ones and subtracts "
            f"{{subtracted:.0e}} above it (what ran here is {OUR_GRAPH}, from it). The effect is "
            "the same: the largest attention weight above the diagonal is exactly {above:.0f} in "
            "all of them."
        ),
        sources=(AR, CODE),
    ),
    Claim(
        id="outputs-independent",
        statement="Each output can be thought of as computed independently of the others.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "In one direction only. Changing the last token leaves all {before} earlier outputs "
            "the same, bit for bit, but changing the first token changes {after} of the {before} "
            "outputs after it, because they read its keys and values."
        ),
        sources=(OE,),
    ),
    Claim(
        id="attn-sparse",
        statement="Some of GPT-2's layers use local or sparse attention.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No; that is GPT-3, which alternates. In GPT-2 every position attends to itself and to "
            "all before it: of {weights} attention weights on or below the diagonal {zero} is zero."
        ),
        sources=(GPT3, CODE),
    ),
)


def _others(model: Model, tokens_T: Tokens, keep: slice) -> Tokens:
    """Other ids everywhere but at some positions."""
    changed = model.subject.other_tokens(tokens_T, 11)
    changed[keep] = tokens_T[keep]
    return changed


@evidence("causal-prefix")
@on_each_model
def prefix(model: Model) -> Measured:
    """Everything after a boundary replaced: bits before it, and a change after it."""
    tokens_T = model.probe
    length = len(tokens_T)
    if length < 2:
        raise NotExamined("one position has no other before it")
    before = model.logits(tokens_T)
    boundaries = [n for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, length - 1) if n < length]
    same = moved = True
    for n in boundaries:
        after = model.logits(_others(model, tokens_T, slice(0, n)))
        same &= same_bits(after[:n], before[:n])
        moved &= not same_bits(after[n:], before[n:])
    verdict = Verdict.TRUE if same and moved else Verdict.FALSE
    return Measured(verdict, {"boundaries": len(set(boundaries))})


@evidence("causal-first")
@on_each_model
def first_sees_itself(model: Model) -> Measured:
    rows = np.stack([model.at(f"h.{i}.attn.pattern")[:, 0] for i in model.layers])
    itself = bool((rows[..., 0] == 1).all() and (rows[..., 1:] == 0).all())
    numbers = {
        "heads": model.config.n_head,
        "layers": model.config.n_layer,
        "others": rows.shape[-1] - 1,
    }
    return Measured(Verdict.TRUE if itself else Verdict.FALSE, numbers)


@evidence("causal-mask-form")
def mask_form(case: Case) -> Measured:
    """What transformers adds, what our copy of OpenAI's graph subtracts, and what is left."""
    facts = [code.facts["mask"] for code in case.code()]
    added = all(f["handed"] and f["below_zero"] and f["above_lowest"] for f in facts)
    graph = case.port("openai-tf")
    constants: set[float] = set(graph.need(CONSTANTS)())
    subtracts = 1e10 in constants
    above = [float(f["pattern_above"]) for f in facts]
    for i in graph.layers:
        pattern_HTS = graph.at(f"h.{i}.attn.pattern")
        above.append(float(np.abs(np.triu(pattern_HTS, 1)).max()))
    none = max(above) == 0
    verdict = Verdict.FALSE
    if none and added:
        verdict = Verdict.CORRECTED if subtracts else Verdict.TRUE
    numbers = {"versions": case.versions, "above": max(above)}
    numbers["subtracted"] = 1e10 if subtracts else 0.0
    return Measured(verdict, numbers, asked=(*case.code_names, graph.name))


@evidence("outputs-independent")
@on_each_model
def independent(model: Model) -> Measured:
    """Another last token, and another first token."""
    tokens_T = model.probe
    if len(tokens_T) < 2:
        raise NotExamined("one position has no other before it")
    whole = model.logits(tokens_T)
    last = model.logits(_others(model, tokens_T, slice(0, -1)))
    first = model.logits(_others(model, tokens_T, slice(1, None)))
    earlier = same_bits(last[:-1], whole[:-1])
    after = int((first[1:] != whole[1:]).any(axis=-1).sum())
    verdict = Verdict.FALSE
    if earlier:
        verdict = Verdict.CORRECTED if after else Verdict.TRUE
    return Measured(verdict, {"before": len(tokens_T) - 1, "after": after})


@evidence("attn-sparse")
@on_each_model
def sparse(model: Model) -> Measured:
    patterns = model.patterns()
    below = np.tri(patterns.shape[-1], dtype=np.bool_)
    weights = patterns[..., below]
    zero = int((weights == 0).sum())
    numbers = {"weights": weights.size, "zero": zero or "none"}
    return Measured(Verdict.TRUE if zero else Verdict.FALSE, numbers)
