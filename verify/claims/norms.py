"""Claims about layer norms, residual sums and the layers as a whole."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import AR, CODE, LW, PAPER, TRANSFORMER
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import run
from gpt_verify.port import NotExamined
from gpt_verify.reference import ops
from gpt_verify.reference.lens import total_variation
from gpt_verify.reference.loss import log_softmax

Array = ops.Array

CLAIMS = (
    Claim(
        id="ln-unit-norm",
        statement="Layer norm gives a vector of mean 0 and length (L2 norm) 1.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Mean 0, but not length 1: it is the variance that becomes 1, so that the length is "
            "about √{width} = {root:.2f} (here {length:.2f} on average), before gain and bias are "
            "applied. All layer norms of the model fit this, and none fits a division by the "
            "length."
        ),
        sources=(LW,),
    ),
    Claim(
        id="ln-eps",
        statement="The ε of GPT-2's layer norms is 1e-6, or 1e-12 as in BERT.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "It is 1e-5, inside the root. With that, all {norms} layer norms equal the model's, "
            "to within the rounding of float64; with 1e-6 or 1e-12 {others} of them do. (Keras' "
            "own default, 1e-3, is a third value to look out for.)"
        ),
        sources=(CODE,),
    ),
    Claim(
        id="ln-count",
        statement="GPT-2 has two layer norms in each block and no other.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "There is one more, ln_f, after the last block: {layers} blocks make {norms} layer "
            "norms, each with a gain and a bias of {width}."
        ),
        sources=(CODE, PAPER),
    ),
    Claim(
        id="resid-form",
        statement="Every connection has the form x + f(x).",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, {sums} times: after attention and after the MLP of each of {layers} blocks the "
            "new state is the old one plus what the sub-block wrote, {entries} entries compared. "
            "(What f reads is the normed state.)"
        ),
        sources=(LW,),
    ),
    Claim(
        id="resid-scaled",
        statement="What each layer adds to the residual stream is scaled by 1/√N.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Not when the model runs: the paper scales the weights of residual layers by 1/√N "
            "once, at initialisation. In the forward pass all {sums} sums are plain; multiplying "
            "what is added by 1/√{sums} = {factor:.3f} would change the states."
        ),
        sources=(PAPER,),
    ),
    Claim(
        id="layers-unshared",
        statement="GPT's layers do not share weights.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Right. Each of {layers} layers has {tensors} tensors of its own, in memory of its "
            "own; of {pairs} pairs of the same tensor in two layers {equal} hold the same numbers."
        ),
        sources=(LW,),
    ),
    Claim(
        id="pre-ln",
        statement="A block is attention and MLP; there is no layer norm in it.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "Incomplete. Attention and MLP are there, but each reads the state through a layer "
            "norm of its own ({norms} in {layers} blocks), and one more follows the last block. "
            "Without the norms in the blocks the predictions change, by a total variation of "
            "{variation:.2f} (1 is the most)."
        ),
        sources=(AR,),
    ),
    Claim(
        id="post-ln",
        statement="GPT-2 norms after each sub-block, like the Transformer of 2017 and GPT-1.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: GPT-2 moved the norm to the input of each sub-block, so that the residual stream "
            "itself is never normed on its way. In all {layers} blocks attention and MLP read the "
            "normed state, and the sums that follow are plain."
        ),
        sources=(TRANSFORMER, PAPER),
    ),
    Claim(
        id="final-ln",
        statement="The last residual state is projected straight to the vocabulary.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No, ln_f comes between. The logits are those of the normed state; the last state "
            "times wteᵀ without it differs from them in {differ} of {logits} logits."
        ),
        sources=(AR,),
    ),
)


def normed(eps: float) -> Override:
    """Layer norm with another ε."""

    def act(c: Call) -> Array:
        centred = c.x - c.x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        value: Array = c.own(0) * (centred / np.sqrt(variance + eps)) + c.own(1)
        return value

    return act


def to_unit_length(c: Call) -> Array:
    centred = c.x - c.x.mean(-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    value: Array = c.own(0) * (centred / length) + c.own(1)
    return value


def untouched(c: Call) -> Array:
    return c.x


def norm_sites(model: Model) -> list[str]:
    return [f"h.{i}.{kind}" for i in model.layers for kind in ("ln_1", "ln_2")] + ["ln_f"]


def _all(model: Model, sites: list[str], act: Override | None = None) -> int:
    """How many of these sites a formula fits."""
    return sum(bool(model.fit(s, act) if act else model.fit(s)) for s in sites)


@evidence("ln-unit-norm")
@on_each_model
def unit_norm(model: Model) -> Measured:
    sites = norm_sites(model)
    fits, unit = _all(model, sites), _all(model, sites, to_unit_length)
    x_TD = model.at("embed")
    z_TD = ops.layer_norm(x_TD, np.ones(x_TD.shape[-1]), np.zeros(x_TD.shape[-1]))
    numbers = {
        "width": x_TD.shape[-1],
        "root": math.sqrt(x_TD.shape[-1]),
        "length": float(np.linalg.norm(z_TD, axis=-1).mean()),
    }
    verdict = Verdict.FALSE if fits == len(sites) and not unit else Verdict.TRUE
    return Measured(verdict, numbers)


@evidence("ln-eps")
@on_each_model
def epsilon(model: Model) -> Measured:
    sites = norm_sites(model)
    fits = _all(model, sites)
    others = _all(model, sites, normed(1e-6)) + _all(model, sites, normed(1e-12))
    verdict = Verdict.FALSE if fits == len(sites) and not others else Verdict.TRUE
    return Measured(verdict, {"norms": fits, "others": others or "none"})


@evidence("ln-count")
@on_each_model
def number_of_norms(model: Model) -> Measured:
    fits = _all(model, norm_sites(model))
    layers = model.config.n_layer
    verdict = Verdict.FALSE if fits == 2 * layers + 1 else Verdict.TRUE
    return Measured(verdict, {"layers": layers, "norms": fits, "width": model.config.n_embd})


def _sums(model: Model) -> list[str]:
    return [f"h.{i}.{kind}" for i in model.layers for kind in ("resid_mid", "resid_post")]


@evidence("resid-form")
@on_each_model
def plain_sums(model: Model) -> Measured:
    fits = [model.fit(site) for site in _sums(model)]
    verdict = Verdict.TRUE if all(fits) else Verdict.FALSE
    entries = sum(fit.elements for fit in fits)
    numbers = {"sums": len(fits), "layers": model.config.n_layer, "entries": entries}
    return Measured(verdict, numbers)


@evidence("resid-scaled")
@on_each_model
def scaled_sums(model: Model) -> Measured:
    sites = _sums(model)
    factor = 1 / math.sqrt(len(sites))
    plain = _all(model, sites)
    scaled = _all(model, sites, lambda c: c.x + factor * c.values[c.site.inputs[1]])
    verdict = Verdict.FALSE if plain == len(sites) and not scaled else Verdict.TRUE
    return Measured(verdict, {"sums": len(sites), "factor": factor})


@evidence("layers-unshared")
@on_each_model
def unshared(model: Model) -> Measured:
    """Equal tensors in two layers, and memory in common."""
    layers = model.config.n_layer
    if layers == 1:
        raise NotExamined("there is one layer only")
    kinds = [name.partition("/")[2] for name in model.tensors if name.startswith("h0/")]
    pairs = equal = 0
    for kind in kinds:
        values = [np.asarray(model.tensors[f"h{i}/{kind}"]) for i in model.layers]
        for a in range(layers):
            for b in range(a):
                pairs += 1
                equal += np.array_equal(values[a], values[b])
    parameters = model.subject.parameters
    own = len({p.storage for p in parameters}) >= len(kinds) * layers + 3
    verdict = Verdict.TRUE if not equal and own else Verdict.FALSE
    numbers = {"layers": layers, "tensors": len(kinds), "pairs": pairs}
    return Measured(verdict, {**numbers, "equal": equal or "none"})


@evidence("pre-ln")
@on_each_model
def norms_in_the_blocks(model: Model) -> Measured:
    """Do the norms, and what reads them, fit; and what becomes of the predictions without."""
    inside = norm_sites(model)[:-1]
    fits, absent = _all(model, inside), _all(model, inside, untouched)
    read = bool(model.fits("attn.qkv")) and bool(model.fits("mlp.pre"))
    overrides = dict.fromkeys(inside, untouched)
    without = run(model.tensors.__getitem__, model.config, model.probe, overrides)
    ((_, logits_TV),) = deque(without, maxlen=1)
    variation = total_variation(log_softmax(model.at("logits")), log_softmax(logits_TV))
    verdict = Verdict.FALSE
    if fits == len(inside) and read and model.fit("ln_f"):
        verdict = Verdict.CORRECTED
    elif absent == len(inside):
        verdict = Verdict.TRUE
    numbers = {"norms": fits, "layers": model.config.n_layer, "variation": float(variation.mean())}
    return Measured(verdict, numbers)


@evidence("post-ln")
@on_each_model
def norms_after(model: Model) -> Measured:
    before = bool(model.fits("ln_1")) and bool(model.fits("ln_2"))
    plain = all(model.fit(site) for site in _sums(model))
    verdict = Verdict.FALSE if before and plain else Verdict.TRUE
    return Measured(verdict, {"layers": model.config.n_layer})


@evidence("final-ln")
@on_each_model
def final_norm(model: Model) -> Measured:
    last = f"h.{model.config.n_layer - 1}.resid_post"
    through = bool(model.fit("ln_f")) and bool(model.fit("logits"))
    straight_TV = ops.unembed(model.at(last), model.w("wte"))
    straight = model.fit("logits", lambda c: ops.unembed(c.values[last], c.own(0)))
    logits_TV = model.at("logits")
    verdict = Verdict.FALSE if through and not straight else Verdict.TRUE
    differ = int((straight_TV != logits_TV).sum())
    return Measured(verdict, {"differ": differ, "logits": logits_TV.size})
