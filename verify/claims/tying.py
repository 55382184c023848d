"""Claims about the last product: whether lm_head is wte, and in which sense."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import LW, OE, PAPER, README, SE
from gpt_verify.laws.tying.check import tables_of
from gpt_verify.port import NotExamined
from gpt_verify.reference.config import GPT1, RELEASED, Config
from gpt_verify.reference.weights import parameter_count

#: Parameters of the released models, by the names that OpenAI gave them in the end.
COUNTED = {
    "124M": 124_439_808,
    "355M": 354_823_168,
    "774M": 774_030_080,
    "1558M": 1_557_611_200,
}
#: Millions of parameters that the paper gives for the same four models (its table 2). The README of
#: openai/gpt-2 says that they were wrong, not how they came about.
IN_THE_PAPER = {"124M": 117, "355M": 345, "774M": 762, "1558M": 1542}

CLAIMS = (
    Claim(
        id="tie-transpose",
        statement="The last step multiplies by the transpose of the input embedding.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The model looks tokens up in the table wte ({vocab} × {width}) and, at the "
            "end, multiplies the normed last state by the transpose of that very table; there is "
            "no other output matrix. Recomputed in this way from the state that the model hands "
            "to its last step, all {logits} logits of a {tokens}-token sequence equal the "
            "model's own, to within the rounding of float64. The comparison can fail: with the "
            "rows of the table in another order, {shuffled} logits differ."
        ),
        sources=(LW, OE),
    ),
    Claim(
        id="tie-new-matrix",
        statement="The last step uses a completely new matrix of the same shape.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Not in GPT-2. Among its {tensors} trained tensors there is {tables} table of "
            "{vocab} × {width}: tokens are looked up in it, and the last product reads it. A "
            "second one would add {extra} parameters, for which the published counts leave no "
            "room (see tie-param-count). Libraries that show lm_head as a layer of its own give "
            "the same memory a second name."
        ),
        sources=(OE,),
    ),
    Claim(
        id="tie-shapes",
        statement="wte is stored as vocab × embed and lm_head as embed × vocab.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "As maps, yes: one takes {vocab} numbers to {width}, the other {width} to {vocab}. "
            "As stored, no: there is one matrix, of {vocab} × {width}, and the last product "
            "transposes it on the fly (torch's Linear keeps its weight as [out, in], and "
            "OpenAI's src/model.py says transpose_b=True). {transposed} stored matrix is {width} "
            "× {vocab}."
        ),
        sources=(OE,),
    ),
    Claim(
        id="tie-set-equal",
        statement="lm_head was set equal to the transpose of wte.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, and more than equal: it is the same memory, not a copy that happens to agree. "
            "Overwriting half of the table's {vocab} rows changes how those tokens are embedded "
            "and what their logits are, and the logits of no other token. The two are still one "
            "after every way of copying the model that an implementation offers."
        ),
        sources=(OE,),
    ),
    Claim(
        id="tie-param-count",
        statement="The published parameter counts imply a single matrix.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "The corrected counts do; those in the paper were wrong. The paper has {paper} "
            "million; OpenAI later renamed the same models {names}. With one table they have "
            "{sizes} parameters, which round to the new names; a second table would add "
            "{second} to the smallest, and no published figure allows for one. (The paper's "
            "figures are the right ones for one table of the {first_vocab} tokens of the first "
            "GPT. That is our observation; OpenAI only said that there was an error.) On this "
            "checkpoint every implementation has {counted} parameters, shared memory counted once, "
            "as one table requires; an untied head would make it {untied}."
        ),
        sources=(SE, PAPER, README),
    ),
)


@evidence("tie-transpose")
@on_each_model
def transpose(model: Model) -> Measured:
    """The logits against ln_f · wteᵀ, and against the same with other rows."""
    fit = model.fit("logits")
    order = model.rng(1).permutation(model.config.n_vocab)
    right = model.at("ln_f") @ model.w("wte").T
    moved = int((right[:, order] != right).sum())
    return Measured(
        Verdict.TRUE if fit else Verdict.FALSE,
        {
            "vocab": model.config.n_vocab,
            "width": model.config.n_embd,
            "tokens": len(model.probe),
            "logits": fit.elements,
            "shuffled": moved,
            "score_over_limit": fit.ratio,
        },
    )


@evidence("tie-new-matrix")
@on_each_model
def new_matrix(model: Model) -> Measured:
    """How many matrices of wte's size there are, and whether the last product reads the table."""
    subject, config = model.subject, model.config
    tables = tables_of(subject.parameters, subject.matching)
    one = not tables.own and bool(model.fit("logits"))
    return Measured(
        Verdict.FALSE if one else Verdict.TRUE,
        {
            "tensors": len({p.storage for p in subject.parameters}),
            "tables": 1 + len(tables.own),
            "vocab": config.n_vocab,
            "width": config.n_embd,
            "extra": config.n_vocab * config.n_embd,
        },
    )


@evidence("tie-shapes")
@on_each_model
def stored_shapes(model: Model) -> Measured:
    """The shapes of everything that stands for wte or for the head."""
    subject, config = model.subject, model.config
    tables = tables_of(subject.parameters, subject.matching)
    names = {*tables.names, *(head.parameter for head in tables.own)}
    shapes = [p.shape for p in subject.parameters if p.name in names]
    other_way = sum(shape == (config.n_embd, config.n_vocab) for shape in shapes)
    same_map = bool(model.fit("logits"))
    verdict = Verdict.TRUE if other_way else Verdict.CORRECTED if same_map else Verdict.FALSE
    numbers = {"vocab": config.n_vocab, "width": config.n_embd}
    return Measured(verdict, {**numbers, "transposed": other_way or "No"})


@evidence("tie-set-equal")
@on_each_model
def one_storage(model: Model) -> Measured:
    """The laws of tying by storage and through copies."""
    shared = model.passes("tying.storage")
    with suppress(NotExamined):  # where it cannot be copied, what storage says stands
        shared = shared and model.passes("tying.persistence")
    return Measured(Verdict.TRUE if shared else Verdict.FALSE, {"vocab": model.config.n_vocab})


def millions(config: Config, tables: int = 1) -> int:
    """Parameters of a model with so many tables of tokens, in millions, rounded."""
    more = (tables - 1) * config.n_vocab * config.n_embd
    return round((parameter_count(config) + more) / 1e6)


@evidence("tie-param-count")
@on_each_model
def parameter_counts(model: Model) -> Measured:
    """Numbers in distinct memory, and the published counts, against those of one table and two."""
    sizes = {p.storage: math.prod(p.shape) for p in model.subject.parameters}
    if not sizes:
        raise NotExamined("no parameters shown")
    counted, expected = sum(sizes.values()), parameter_count(model.config)
    published = {name: parameter_count(config) for name, config in RELEASED.items()}
    renamed = all(f"{millions(config)}M" == name for name, config in RELEASED.items())
    no_room = all(millions(RELEASED[n], 2) > max(int(n[:-1]), IN_THE_PAPER[n]) for n in RELEASED)
    older = {name: replace(config, n_vocab=GPT1.n_vocab) for name, config in RELEASED.items()}
    smallest = RELEASED["124M"]
    verdict = Verdict.FALSE
    if counted == expected and published == COUNTED and renamed and no_room:
        as_printed = all(millions(RELEASED[name]) == said for name, said in IN_THE_PAPER.items())
        verdict = Verdict.TRUE if as_printed else Verdict.CORRECTED
    return Measured(
        verdict,
        {
            "counted": counted,
            "expected": expected,
            "untied": expected + model.config.n_vocab * model.config.n_embd,
            "paper": _list(f"{said:,}" for said in IN_THE_PAPER.values()),
            "names": _list(RELEASED),
            "sizes": _list(f"{size:,}" for size in published.values()),
            "second": smallest.n_vocab * smallest.n_embd,
            "first_vocab": GPT1.n_vocab,
            "first_vocab_millions": _list(f"{millions(config):,}" for config in older.values()),
            **published,
        },
    )


def _list(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}"
