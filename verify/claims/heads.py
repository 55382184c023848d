"""Claims about what a head computes: its scale, its softmax, and how q, k and v are laid out."""

from __future__ import annotations

import math

import numpy as np

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import AR, CODE, TRANSFORMER
from gpt_verify.graph.call import Call, Override
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.port import NotExamined
from gpt_verify.reference import ops

Array = ops.Array

CLAIMS = (
    Claim(
        id="attn-scale",
        statement="The scores are divided by the square root of the key dimension.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes: by that of one head's keys, √{head} = {root:.3f}, not of the whole width "
            "{width}. Divided by it, the model's own q and k give all its {scores} scores; in "
            "every size that OpenAI released it is √64 = 8."
        ),
        sources=(AR, TRANSFORMER),
    ),
    Claim(
        id="softmax-props",
        statement="Softmax is non-negative and sums to 1.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes: of {weights} attention weights none is negative, and all {rows} rows sum to 1 to "
            "within the rounding of float64."
        ),
        sources=(AR,),
        proof="Each term is an exponential, hence positive, divided by the sum of all of them.",
    ),
    Claim(
        id="softmax-maxent",
        statement=(
            "Softmax is the distribution of largest entropy for a given mean score, and a smaller "
            "β is closer to uniform."
        ),
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes; it is a theorem, proved below. To illustrate it with the model's attention: of "
            "{trials} other distributions with the same mean score none has a larger entropy. With "
            "the scores multiplied by β = 1, 0.5 and 0.1 the mean entropy is {one:.2f}, {half:.2f} "
            "and {tenth:.2f} nats; the uniform distribution has {uniform:.2f}."
        ),
        sources=(AR,),
        proof=(
            "With p = softmax(βs), ln p = βs − ln Z. For every q with Σ q s = Σ p s, therefore, "
            "−Σ q ln p = −Σ p ln p, so that H(p) − H(q) = Σ q ln(q/p) ≥ 0, and 0 only for q = p. "
            "For β ≥ 0, dH/dβ = −β Var(s) ≤ 0, and β = 0 is the uniform distribution."
        ),
    ),
    Claim(
        id="qkv-interleaved",
        statement="c_attn puts out q, k and v of the first head, then of the second, and so on.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "No: first q of all {heads} heads side by side, then all k, then all v, {width} "
            "numbers each. Split in this way, c_attn's output gives the model's own {scores} "
            "scores; split head by head, as some later models lay it out, it does not."
        ),
        sources=(CODE,),
    ),
    Claim(
        id="attn-biases",
        statement="GPT-2's attention projections have no biases.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "They do have biases: that of c_attn has {qkv} entries and that of c_proj {out}, and "
            "removing them changes the output of both in all {layers} layers. (Only the last "
            "product, to the vocabulary, has none.)"
        ),
        sources=(CODE,),
    ),
)


def _scaled_by(size: float) -> Override:
    def act(c: Call) -> Array:
        q_HTK, k_HSK, _ = c.heads()
        return (q_HTK @ k_HSK.transpose(0, 2, 1)) * (1.0 / math.sqrt(size))

    return act


def entropy(p: Array) -> Array:
    """−Σ p ln p over the last axis, nats."""
    terms = np.multiply(p, np.log(p, out=np.zeros_like(p), where=p > 0))
    total: Array = -terms.sum(-1)
    return total


def _head_by_head(c: Call) -> Array:
    qkv_TC, heads = c.at("attn.qkv"), c.config.n_head
    parts = qkv_TC.reshape(len(qkv_TC), heads, 3, -1).transpose(2, 1, 0, 3)
    return ops.attention_scores(parts[0], parts[1])


def _no_bias(c: Call) -> Array:
    return c.x @ c.own(0)


@evidence("attn-scale")
@on_each_model
def scale(model: Model) -> Measured:
    head, width = model.config.head_size, model.config.n_embd
    fit = model.fits("attn.scores")
    by_width = model.fits("attn.scores", _scaled_by(width))
    apart = head == width or not by_width
    numbers = {"head": head, "root": math.sqrt(head), "width": width, "scores": fit.elements}
    return Measured(Verdict.TRUE if fit and apart else Verdict.FALSE, numbers)


@evidence("softmax-props")
@on_each_model
def distribution(model: Model) -> Measured:
    patterns = model.patterns()
    sums = patterns.sum(-1)
    # Each weight is rounded twice (exponential, quotient) and the sum once a term.
    allowed = 2 * (patterns.shape[-1] + 8) * FLOAT64.u
    right = bool((patterns >= 0).all() and (np.abs(sums - 1) <= allowed).all())
    numbers = {"weights": patterns.size, "rows": sums.size}
    return Measured(Verdict.TRUE if right else Verdict.FALSE, numbers)


def _slack(p: Array, q: Array, s: Array) -> float:
    """By how much rounding may let H(q) exceed H(p).

    H(q) ≤ H(p) − Σ (q − p)(s − ln Z) + Σ (p − q), where both sums would be 0 without rounding; each
    is a sum of as many terms as there are positions, and so are the entropies.
    """
    apart, log_z = q - p, float(np.logaddexp.reduce(s))
    residue = abs(apart @ s) + abs(apart.sum()) * (abs(log_z) + 1)
    terms = entropy(p) + entropy(q) + q @ np.abs(s) + p @ np.abs(s) + abs(log_z)
    return float(residue + 4 * (len(p) + 8) * FLOAT64.u * terms)


@evidence("softmax-maxent")
@on_each_model
def most_entropy(model: Model) -> Measured:
    """Distributions p (1 ± w) with Σ p w = 0 and Σ p w s = 0 have the same sum and mean score."""
    rng, trials, best = model.rng(12), 0, True
    entropies = {beta: [] for beta in (1.0, 0.5, 0.1)}  # type: dict[float, list[float]]
    for layer in model.layers:
        for p, s in zip(
            model.at(f"h.{layer}.attn.pattern")[:, -1],
            model.at(f"h.{layer}.attn.scores")[:, -1],
            strict=True,
        ):
            for beta, found in entropies.items():
                found.append(float(entropy(ops.softmax(beta * s))))
            for _ in range(4):
                w = rng.standard_normal(len(p))
                basis = np.stack([np.ones_like(s), s - p @ s], axis=-1)
                gram = basis.T @ (p[:, None] * basis)
                w -= basis @ np.linalg.lstsq(gram, basis.T @ (p * w), rcond=None)[0]
                w /= 2 * max(np.abs(w).max(), 1e-300)
                for q in (p * (1 + w), p * (1 - w)):
                    trials += 1
                    best &= bool(entropy(q) <= entropy(p) + _slack(p, q, s))
    one, half, tenth = (float(np.mean(found)) for found in entropies.values())
    uniform = math.log(len(model.probe))
    numbers = {"trials": trials, "one": one, "half": half, "tenth": tenth, "uniform": uniform}
    verdict = Verdict.TRUE if best and one < half < tenth < uniform else Verdict.FALSE
    return Measured(verdict, numbers)


@evidence("qkv-interleaved")
@on_each_model
def interleaved(model: Model) -> Measured:
    if model.config.n_head == 1:
        raise NotExamined("with one head both are the same")
    fit, other = model.fits("attn.scores"), model.fits("attn.scores", _head_by_head)
    mixed = model.fits("attn.mix")
    numbers = {"heads": model.config.n_head, "width": model.config.n_embd, "scores": fit.elements}
    verdict = Verdict.FALSE if fit and mixed and not other else Verdict.TRUE
    return Measured(verdict, numbers)


@evidence("attn-biases")
@on_each_model
def biases(model: Model) -> Measured:
    kinds = ("attn.qkv", "attn.out")
    with_bias = all(model.fits(kind) for kind in kinds)
    without = [model.fit(f"h.{i}.{k}", _no_bias) for i in model.layers for k in kinds]
    width = model.config.n_embd
    numbers = {"qkv": 3 * width, "out": width, "layers": model.config.n_layer}
    verdict = Verdict.FALSE if with_bias and not any(without) else Verdict.TRUE
    return Measured(verdict, numbers)
