"""Claims about how other people's code ties the head, decided on that code."""

from __future__ import annotations

from typing import Any

from gpt_verify.claims import first_gpt
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence
from gpt_verify.claims.same import SAME
from gpt_verify.claims.sources import CODE, GPT1, HF, MINGPT, OE, OUR_GRAPH, SE
from gpt_verify.port import META_GRAPH, TYING, StoredGraph

CLAIMS = (
    Claim(
        id="tie-graph",
        statement=(
            "OpenAI's code creates one variable and uses it for the lookup and for the last "
            "product."
        ),
        kind=Kind.DOCUMENT,
        expected=Verdict.TRUE,
        answer=(
            f"Yes. What ran here is not OpenAI's program but {OUR_GRAPH}, from the published "
            "src/model.py. Walking back from its logits: {graph}. {beside} Trained "
            "variables of {vocab} × {width} in the graph that ran: {tables}."
        ),
        sources=(OE, CODE),
    ),
    Claim(
        id="tie-gpt1",
        statement=(
            "The first GPT's paper uses one embedding matrix twice (its equation 2), and ports of "
            "GPT-1 do the same."
        ),
        kind=Kind.DOCUMENT,
        expected=Verdict.TRUE,
        answer=(
            "Yes. Equation 2 of Radford et al. 2018 has the one symbol W_e at the beginning and, "
            "transposed, at the end. The port of GPT-1 in {versions} is built like that: head "
            "and table share their memory, a write to the table shows in the logits, and the "
            "last state times the transposed table is the logits, to within the rounding of "
            "float64. Its logits also equal those of our reference of GPT-1, which has one table "
            "for both ends."
        ),
        sources=(OE, GPT1),
    ),
    Claim(
        id="tie-hf-swappable",
        statement=(
            "Hugging Face's design separates the body from the head, so that an untied head is "
            "possible."
        ),
        kind=Kind.DOCUMENT,
        expected=Verdict.TRUE,
        answer=(
            "Yes, possible, but not the default. In {versions} the body has {body_heads} head "
            "modules; GPT2LMHeadModel adds one and ties it. With tie_word_embeddings=False the two "
            "matrices are {untied} pieces of memory, and a write to one does not show in the "
            "other; as loaded by default they are {tied}."
        ),
        sources=(OE, HF),
    ),
    Claim(
        id="tie-mingpt",
        statement="Karpathy's minGPT uses two matrices of the same dimensions.",
        kind=Kind.DOCUMENT,
        expected=Verdict.TRUE,
        answer=(
            "Yes: its first version has tok_emb and, apart from it, head. (That is read in its "
            "code; what ran here is a model of the same design that we wrote, because minGPT "
            "cannot be installed as a package.) Once GPT-2's weights are loaded, both matrices "
            "hold the same bits, so that its logits are GPT-2's. After one step of training at "
            "least {percent} % of the {entries} entries differ: nothing holds the two together, "
            "and the model has {entries} parameters more than GPT-2."
        ),
        sources=(SE, MINGPT),
    ),
)


def _torch() -> Any:
    import torch

    return torch


def _beside(stored: StoredGraph, released: str | None) -> str:
    """Whose graph lies beside the weights, and what it says."""
    if released is None:
        own = "OpenAI's own graph is in the .meta file that it released with its weights"
        more = f"{own}; given those by --checkpoint, this test examines it as well."
        if not stored.found:
            return f"No forward pass is stored beside these weights. {more}"
        return f"Nor is the graph beside these weights OpenAI's: {stored.description}. {more}"
    if not stored.found:
        return f"OpenAI's own graph was not found in the .meta file: {stored.description}."
    return f"OpenAI's own graph, in the .meta file that it released: {stored.description}."


@evidence("tie-graph")
def one_variable(case: Case) -> Measured:
    """The graph that is run, and the graph in the checkpoint's ``.meta`` where it has a forward."""
    model = case.port("openai-tf")
    tied, graph = model.need(TYING)()
    stored = model.need(META_GRAPH)(model.probe[None], keep=True)
    shapes = [p.shape for p in model.subject.parameters]
    tables = shapes.count((case.config.n_vocab, case.config.n_embd))
    both = tied and stored.tied is not False
    numbers = {"graph": graph, "beside": _beside(stored, case.released), "tables": tables}
    sizes = {"vocab": case.config.n_vocab, "width": case.config.n_embd}
    verdict = Verdict.TRUE if both else Verdict.FALSE
    return Measured(verdict, {**numbers, **sizes}, asked=(model.name,))


@evidence("tie-gpt1")
def both_ends(case: Case) -> Measured:
    """transformers' GPT-1: memory, a write, the product, and the reference's logits."""
    facts = [code.facts["gpt1"] for code in case.code()]
    apart = [first_gpt.distance(f["tokens"], f["logits"]) for f in facts]
    product = max(f["distance_product"] for f in facts)
    tied = all(f["shares"] and f["write_shows"] for f in facts) and max(product, *apart) < SAME
    numbers = {"versions": case.versions, "distance": product, "distance_reference": max(apart)}
    return Measured(Verdict.TRUE if tied else Verdict.FALSE, numbers, asked=case.code_names)


@evidence("tie-hf-swappable")
def swappable(case: Case) -> Measured:
    """transformers' GPT-2 with and without tie_word_embeddings."""
    facts = [code.facts["tying"] for code in case.code()]
    apart = all(not f["untied_shares"] and not f["untied_follows"] for f in facts)
    separate = not any(f["body_has_head"] for f in facts)
    numbers = {
        "versions": case.versions,
        "body_heads": "no" if separate else "some",
        "untied": "two" if apart else "one",
        "tied": "one" if all(f["tied_shares"] for f in facts) else "two",
    }
    verdict = Verdict.TRUE if apart and separate else Verdict.FALSE
    return Measured(verdict, numbers, asked=case.code_names)


@evidence("tie-mingpt")
def two_matrices(case: Case) -> Measured:
    """A head of its own: equal after loading, another after one step of training."""
    model = case.untied()
    wte, head = model.wte, model.head_weight
    equal = bool((wte == head).all())
    apart = wte.data_ptr() != head.data_ptr()
    ids = _torch().as_tensor(case.reference.probe[None])
    loss = model(ids, labels=ids)["loss"]
    loss.backward()
    with _torch().no_grad():
        for parameter in (wte, head):
            parameter -= 0.1 * parameter.grad
    drifted = int((wte != head).sum())
    verdict = Verdict.TRUE if equal and apart and drifted else Verdict.FALSE
    entries = wte.numel()
    numbers = {"percent": 100 * drifted // entries, "entries": entries, "drifted": drifted}
    return Measured(verdict, numbers, asked=("minGPT-like",))
