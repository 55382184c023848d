"""Claims about the two tables: how tokens and positions enter, and how the last vector is read."""

from __future__ import annotations

import math

import numpy as np

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.same import SAME, SAME_FLOAT32, distance
from gpt_verify.claims.sources import AR, CODE, LW, SE, TRANSFORMER
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.reference import ops
from gpt_verify.reference.lens import entropy_nats
from gpt_verify.reference.loss import log_softmax

CLAIMS = (
    Claim(
        id="tie-formula",
        statement=(
            "With an embedding E of shape V × D, the input is E x for a one-hot x, and the output "
            "softmax(Eᵀ y)."
        ),
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "The idea is right, one matrix that is used twice, but the transposes are the wrong "
            "way round. With E of {vocab} × {width}, E x would need an x of {width} entries. It "
            "is Eᵀ x that picks the row of a token, and E y, one number for each of the {vocab} "
            "tokens, that goes into the softmax. Both give the model's own values; {logits} "
            "logits were compared."
        ),
        sources=(SE,),
    ),
    Claim(
        id="tie-same-ids",
        statement=(
            "The model can read its own output because input and output use one fixed set of "
            "tokens."
        ),
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The table has {rows} rows and each position has {columns} logits, so that "
            "whatever is chosen can be looked up again. Given its own choice as the next input "
            "{steps} times in a row, the model never picks an id that it cannot read."
        ),
        sources=(SE,),
    ),
    Claim(
        id="tie-row-select",
        statement="A token selects one row of the embedding matrix.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. Multiplying one-hot vectors by wte and looking up its rows give the same "
            "result, bit for bit, in all {entries} entries of a {tokens}-token sequence. With "
            "the rows of wpe added, that is what the model starts from, bit for bit again."
        ),
        sources=(SE,),
    ),
    Claim(
        id="tie-dot-product",
        statement="Each logit is the dot product of the final vector with that token's row.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes, and nothing is added: the head has no bias. Each of {logits} logits is the dot "
            "product of a normed last state with one of the {vocab} rows of wte, to within the "
            "rounding of float64."
        ),
        sources=(SE,),
    ),
    Claim(
        id="tie-magnitude",
        statement="The magnitude of the output vector means nothing.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "It depends on which vector. Before the final layer norm it means nothing, because "
            "the norm divides it out: making a state ten times as long does no more than an ε of "
            "1e-7 in place of 1e-5 would. After the norm it is an inverse temperature: with the "
            "vector halved, left alone and doubled, the mean entropy of the predictions is "
            "{half:.2f}, {whole:.2f} and {double:.2f} nats."
        ),
        sources=(SE,),
    ),
    Claim(
        id="wwt-singular",
        statement="W Wᵀ is not invertible.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Right: W Wᵀ is {vocab} × {vocab}, but its rank is that of W, which is {rank} here and "
            "can be no more than the width {width}. So at least {nullity} directions of logit "
            "space are out of the model's reach, and embedding followed by unembedding cannot be "
            "undone."
        ),
        sources=(LW,),
        proof=(
            "W Wᵀ has the rank of W, which is at most the number of its columns, n_embd; an "
            "invertible matrix of n_vocab rows would need the rank n_vocab, which is larger."
        ),
    ),
    Claim(
        id="wte-linear",
        statement="wte acts as a linear layer without bias.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The first state minus the rows of wpe equals the one-hot input times wte in "
            "all {entries} entries, to within one rounding: nothing is added, nothing scaled."
        ),
        sources=(AR,),
    ),
    Claim(
        id="wpe-added",
        statement="A position embedding is added to the token embedding.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes: one learned row for each of the {positions} positions, added once, before the "
            "first block. Token row plus position row gives all {entries} entries of the first "
            "state; without the position rows {without} of them differ."
        ),
        sources=(AR,),
    ),
    Claim(
        id="embed-scaled",
        statement="The embeddings are multiplied by the square root of the width.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Not in GPT-2. The Transformer of 2017 does so (its section 3.4); GPT-2 adds the "
            "rows as they are. Multiplying the token rows by √{width} = {root:.2f} would change "
            "{differ} of {entries} entries of the first state."
        ),
        sources=(TRANSFORMER, CODE),
    ),
    Claim(
        id="wpe-sinusoidal",
        statement="The position embeddings are fixed sines and cosines.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Not in GPT-2: wpe is a trained tensor of {positions} × {width}, stored like any "
            "other. The cosine between it and the sinusoids of the Transformer of 2017 is "
            "{cosine:.2f}, where 1 would be equal."
        ),
        sources=(TRANSFORMER, CODE),
    ),
)


def _one_hot(model: Model) -> np.ndarray:
    one_hot = np.zeros((len(model.probe), model.config.n_vocab), np.float32)
    one_hot[np.arange(len(model.probe)), model.probe] = 1
    return one_hot


def _rows(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """One-hot inputs times wte, and the rows of wpe, each float64[T, D]."""
    token_TD = (_one_hot(model) @ np.asarray(model.tensors["wte"])).astype(np.float64)
    return token_TD, model.w("wpe")[: len(model.probe)]


@evidence("tie-formula")
@on_each_model
def formula(model: Model) -> Measured:
    """Eᵀ x and E y against the model, with the shapes that the claim has them in."""
    fits = bool(model.fit("embed")) and bool(model.fit("logits"))
    e_VD = model.w("wte")
    y_D = model.at("ln_f")[-1]
    as_said = len(y_D) == e_VD.shape[0]  # only then would Eᵀ y be defined
    same = fits and distance(e_VD @ y_D, model.at("logits")[-1]) < SAME
    verdict = Verdict.FALSE if not same else Verdict.TRUE if as_said else Verdict.CORRECTED
    numbers = {"vocab": len(e_VD), "width": e_VD.shape[1], "logits": model.at("logits").size}
    return Measured(verdict, numbers)


@evidence("tie-same-ids")
@on_each_model
def same_ids(model: Model) -> Measured:
    """Rows against logits, and a few greedy steps."""
    rows, n_ctx = len(model.tensors["wte"]), model.config.n_ctx
    tokens = list(map(int, model.probe[:4]))
    steps = min(4, n_ctx - len(tokens))
    columns = model.logits(np.asarray(tokens)).shape[-1]
    readable = columns == rows
    for _ in range(steps):
        chosen = int(np.argmax(model.logits(np.asarray(tokens))[-1]))
        readable &= chosen < rows
        if not readable:
            break
        tokens.append(chosen)
    numbers = {"rows": rows, "columns": columns, "steps": steps}
    return Measured(Verdict.TRUE if readable else Verdict.FALSE, numbers)


@evidence("tie-row-select")
@on_each_model
def row_select(model: Model) -> Measured:
    """One-hot product, gather and the model's first state, bit for bit."""
    token_TD, position_TD = _rows(model)
    gathered = np.array_equal(token_TD, model.w("wte")[model.probe])
    same = np.array_equal(token_TD + position_TD, model.at("embed"))
    verdict = Verdict.TRUE if gathered and same else Verdict.FALSE
    return Measured(verdict, {"entries": token_TD.size, "tokens": len(token_TD)})


@evidence("tie-dot-product")
@on_each_model
def dot_products(model: Model) -> Measured:
    """Each logit by a sum of its own."""
    fit = model.fit("logits", lambda c: np.einsum("td,vd->tv", c.x, c.w("wte")))
    verdict = Verdict.TRUE if fit else Verdict.FALSE
    return Measured(verdict, {"logits": fit.elements, "vocab": model.config.n_vocab})


@evidence("tie-magnitude")
@on_each_model
def magnitude(model: Model) -> Measured:
    """The last state made longer before the norm, and after it."""
    fits = bool(model.fit("ln_f")) and bool(model.fit("logits"))
    x_TD, times = model.at(f"h.{model.config.n_layer - 1}.resid_post"), 10.0
    g_D, b_D, wte_VD = model.w("ln_f/g"), model.w("ln_f/b"), model.w("wte")
    longer_TD = ops.layer_norm(times * x_TD, g_D, b_D)
    centred_TD = x_TD - x_TD.mean(-1, keepdims=True)
    variance_T1 = (centred_TD**2).mean(-1, keepdims=True)
    smaller = ops.LAYER_NORM_EPSILON / times**2
    unchanged = distance(longer_TD, g_D * centred_TD / np.sqrt(variance_T1 + smaller) + b_D) < SAME

    normed_TD = model.at("ln_f")
    half, whole, double = (
        float(entropy_nats(log_softmax(ops.unembed(scale * normed_TD, wte_VD))).mean())
        for scale in (0.5, 1.0, 2.0)
    )
    verdict = Verdict.CORRECTED if fits and unchanged and half > whole > double else Verdict.FALSE
    return Measured(verdict, {"half": half, "whole": whole, "double": double})


@evidence("wwt-singular")
@on_each_model
def singular(model: Model) -> Measured:
    """The rank of W, which is that of W Wᵀ."""
    w_VD = model.w("wte")
    rank = int(np.linalg.matrix_rank(w_VD))
    vocab, width = w_VD.shape
    numbers = {"vocab": vocab, "width": width, "rank": rank, "nullity": vocab - min(width, vocab)}
    return Measured(Verdict.TRUE if rank < vocab else Verdict.FALSE, numbers)


@evidence("wte-linear")
@on_each_model
def linear_without_bias(model: Model) -> Measured:
    """What is left of the first state without wpe and the one-hot product."""
    token_TD, position_TD = _rows(model)
    embed_TD = model.at("embed")
    left_TD = np.abs(embed_TD - position_TD - token_TD)
    # Three additions, each rounded once.
    allowed_TD = FLOAT64.u * (np.abs(embed_TD) + 2 * np.abs(position_TD) + 2 * np.abs(token_TD))
    verdict = Verdict.TRUE if (left_TD <= allowed_TD).all() else Verdict.FALSE
    return Measured(verdict, {"entries": left_TD.size})


@evidence("wpe-added")
@on_each_model
def position_added(model: Model) -> Measured:
    """Row plus row, and rows without positions."""
    fit = model.fit("embed")
    token_TD, _ = _rows(model)
    without = int((token_TD != model.at("embed")).sum())
    verdict = Verdict.TRUE if fit and without else Verdict.FALSE
    numbers = {"entries": fit.elements, "positions": model.config.n_ctx, "without": without}
    return Measured(verdict, numbers)


@evidence("embed-scaled")
@on_each_model
def scaled(model: Model) -> Measured:
    """The first state with and without the factor."""
    root = math.sqrt(model.config.n_embd)
    token_TD, position_TD = _rows(model)
    as_they_are = bool(model.fit("embed"))
    differ = int((root * token_TD + position_TD != model.at("embed")).sum())
    numbers = {"root": root, "width": model.config.n_embd, "entries": token_TD.size}
    verdict = Verdict.FALSE if as_they_are and differ else Verdict.TRUE
    return Measured(verdict, {**numbers, "differ": differ})


@evidence("wpe-sinusoidal")
@on_each_model
def sinusoidal(model: Model) -> Measured:
    """wpe against sin and cos of position / 10000^(2i/D) (Vaswani et al. 2017, section 3.5)."""
    wpe_PD = model.w("wpe")
    positions, width = wpe_PD.shape
    rate_i = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle_PD = np.arange(positions)[:, None] * rate_i
    sinusoid_PD = np.where(np.arange(width) % 2, np.cos(angle_PD), np.sin(angle_PD))
    norms = float(np.linalg.norm(wpe_PD) * np.linalg.norm(sinusoid_PD))
    cosine = float((wpe_PD * sinusoid_PD).sum()) / norms
    learned = bool(model.fit("embed")) and distance(wpe_PD, sinusoid_PD) > SAME_FLOAT32
    numbers = {"positions": positions, "width": width, "cosine": cosine}
    return Measured(Verdict.FALSE if learned else Verdict.TRUE, numbers)
