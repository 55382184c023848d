"""Claims about the logit lens, and about what libraries call the last hidden state."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.same import SAME, distance
from gpt_verify.claims.sources import HF, LW
from gpt_verify.lens import is_state, lens, oracle_states
from gpt_verify.reference.lens import kl_nats, lens_logits
from gpt_verify.reference.loss import log_softmax

CLAIMS = (
    Claim(
        id="lens-hf-last",
        statement="The last of Hugging Face's hidden_states is before the final layer norm.",
        kind=Kind.DOCUMENT,
        expected=Verdict.FALSE,
        answer=(
            "No, it is after it: in {versions} hidden_states[-1] times wteᵀ already gives the "
            "logits. Applying ln_f once more norms twice: on the default checkpoint the "
            "predictions then differ from the model's by a KL of {kl_twice_nats:.4f} nats on "
            "average, which is small enough to be overlooked, and wrong all the same."
        ),
        sources=(HF,),
    ),
    Claim(
        id="hidden-states-count",
        statement="hidden_states has one entry for each block.",
        kind=Kind.DOCUMENT,
        expected=Verdict.FALSE,
        answer=(
            "One more: in {versions} a model of {layers} blocks returns {states} states. The first "
            "is the sum of embeddings before any block; the last is behind the last block and "
            "behind ln_f, so that the bare output of the last block is not among them."
        ),
        sources=(HF,),
    ),
    Claim(
        id="hf-api-drift",
        statement="Changes in transformers broke the notebook that the lens was shown with.",
        kind=Kind.DOCUMENT,
        expected=Verdict.TRUE,
        answer=(
            "There are such changes. Of {idioms} things that code of 2020 does, these no longer "
            "work in {versions}: {broken}. (The output [0] of a block was the state of the whole "
            "batch; where it has become its first row, no error is raised.) The lens itself is "
            "unchanged: the top tokens of {states} states and their probabilities are the same "
            "in that library and in our reference."
        ),
        sources=(LW,),
    ),
    Claim(
        id="lens-final",
        statement="The lens at the last layer is the model's output.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, by construction: what the lens does to a state, ln_f and then wteᵀ, is what the "
            "model does to the last one. All {logits} logits agree to within the rounding of "
            "float64."
        ),
        sources=(LW,),
    ),
    Claim(
        id="kl-not-metric",
        statement="KL is neither symmetric nor does it obey the triangle inequality.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Right, and the model's own lens has counterexamples. For two of its distributions p, "
            "q KL(p ‖ q) = {there:.2f} nats and KL(q ‖ p) = {back:.2f}; for three of them KL(p ‖ "
            "r) = {direct:.2f} nats is more than KL(p ‖ q) + KL(q ‖ r) = {detour:.2f}."
        ),
        sources=(LW,),
        proof="One counterexample refutes each of the two properties, and these are two.",
    ),
)


@evidence("lens-hf-last")
def hidden_last(case: Case) -> Measured:
    """The head applied to the last hidden state, with and without a further norm."""
    code = case.code()
    facts = [c.facts["hidden"] for c in code]
    after = [f["distance_once"] < SAME < f["distance_twice"] for f in facts]
    before = [f["distance_twice"] < SAME < f["distance_once"] for f in facts]
    verdict = Verdict.UNDECIDABLE
    if all(after):
        verdict = Verdict.FALSE
    elif any(before):
        verdict = Verdict.TRUE
    numbers = {"versions": case.versions, "kl_twice_nats": facts[0]["kl_twice_nats"]}
    return Measured(verdict, numbers, asked=case.code_names)


@evidence("hidden-states-count")
def number_of_states(case: Case) -> Measured:
    facts = [code.facts["hidden"] for code in case.code()]
    verdict = Verdict.FALSE
    if any(f["states"] == f["layers"] for f in facts):
        verdict = Verdict.TRUE
    numbers = {"versions": case.versions, "layers": facts[0]["layers"]}
    numbers["states"] = facts[0]["states"]
    return Measured(verdict, numbers, asked=case.code_names)


@evidence("hf-api-drift")
def drift(case: Case) -> Measured:
    """What old code does, by version; and whether the lens gives what the reference gives."""
    facts = [code.facts for code in case.code()]
    broken = {n: how for f in facts for n, how in f["idioms"].items() if how != "works"}
    words = ", ".join(f"{name} ({how})" for name, how in broken.items())
    tokens_T = np.asarray(facts[0]["tokens"])
    source = open_checkpoint()
    states = oracle_states(source.tensors, source.config, tokens_T)
    whole = [(site, x_TD) for site, x_TD in states if not site.endswith("resid_mid")]
    own = lens(whole, source.tensors, tokens_T, dtype=np.float64, engine="numpy")
    probabilities = own.top_probabilities[..., 0]
    same = all(
        f["hidden"]["lens_top1"] == own.top1_NT.tolist()
        and distance(f["hidden"]["lens_probability"], probabilities) < SAME
        for f in facts
    )
    numbers: dict[str, Any] = {
        "idioms": len(facts[0]["idioms"]),
        "broken": words,
        "states": len(own.sites),
    }
    numbers["how"] = {f["version"]: f["idioms"] for f in facts}
    verdict = Verdict.TRUE if broken and same else Verdict.FALSE
    return Measured(verdict, {**numbers, "versions": case.versions}, asked=case.code_names)


@evidence("lens-final")
@on_each_model
def last_is_output(model: Model) -> Measured:
    last_TD = model.at(f"h.{model.config.n_layer - 1}.resid_post")
    weights = {name: model.w(name) for name in ("wte", "ln_f/g", "ln_f/b")}
    own, logits_TV = lens_logits(weights, last_TD), model.at("logits")
    same = bool(model.fit("ln_f")) and bool(model.fit("logits"))
    verdict = Verdict.TRUE if same and distance(own, logits_TV) < SAME else Verdict.FALSE
    return Measured(verdict, {"logits": logits_TV.size})


@evidence("kl-not-metric")
@on_each_model
def not_a_metric(model: Model) -> Measured:
    """The clearest counterexamples among the states of the last position."""
    weights = {name: model.w(name) for name in ("wte", "ln_f/g", "ln_f/b")}
    states = [x_TD[-1:] for site, x_TD in model.sites().items() if is_state(site)]
    log_NV = np.concatenate([log_softmax(lens_logits(weights, x_TD)) for x_TD in states])
    kl = np.array([[kl_nats(p[None], q[None])[0] for q in log_NV] for p in log_NV])
    at = np.unravel_index(np.argmax(np.abs(kl - kl.T)), kl.shape)
    detour = kl[:, :, None] + kl[None, :, :]  # p to q to r
    p, q, r = np.unravel_index(np.argmax(kl[:, None, :] - detour), detour.shape)
    there, back = float(kl[at]), float(kl.T[at])
    direct, around = float(kl[p, r]), float(detour[p, q, r])
    there, back = max(there, back), min(there, back)
    clear = there - back > SAME and direct - around > SAME
    numbers = {"there": there, "back": back, "direct": direct, "detour": around}
    return Measured(Verdict.TRUE if clear else Verdict.UNDECIDABLE, numbers)
