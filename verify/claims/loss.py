"""Claims about the training loss: what each output is trained to predict."""

from __future__ import annotations

import math

import numpy as np

from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence, on_each_model
from gpt_verify.claims.models import Model
from gpt_verify.claims.sources import CODE, LW, OE
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.port import LOSS, TRAINING, NotExamined
from gpt_verify.reference.loss import log_softmax, token_losses_nats

CLAIMS = (
    Claim(
        id="loss-next",
        statement="Output i is trained to predict token i + 1.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. The loss that an implementation returns scores each output on the token that "
            "follows: {loss:.4f} nats for {tokens} random tokens. Scored on the token that was "
            "just read it would be {unshifted:.4f}, and on the one after next {far:.4f}."
        ),
        sources=(OE, LW),
    ),
    Claim(
        id="loss-all-positions",
        statement="N tokens in give guesses for tokens 2 … N + 1, not only for the last.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes: {tokens} tokens give {tokens} distributions over {vocab} tokens, and each is "
            "what the model predicts for a text that ends there, to within rounding; {ends} ends "
            "were compared. The last one is the guess for a token that is not there yet."
        ),
        sources=(LW,),
    ),
    Claim(
        id="loss-sum",
        statement="The loss is the sum of the losses of all positions.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.CORRECTED,
        answer=(
            "Up to a factor: implementations return the mean over the predictions. For {tokens} "
            "tokens there are {predictions} predictions, and the loss is {loss:.4f} nats, where "
            "the sum would be {sum:.2f}. The gradients are the same up to that factor."
        ),
        sources=(OE,),
    ),
    Claim(
        id="loss-others-silent",
        statement="Outputs at other positions play no part in the loss of output i.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.TRUE,
        answer=(
            "Yes. With all labels but one ignored, the loss is minus the log-probability of that "
            "one token by that one output, at each of {predictions} positions. (What earlier "
            "positions compute inside, their keys and values, does play a part: see "
            "outputs-independent.)"
        ),
        sources=(OE,),
    ),
    Claim(
        id="dropout-inference",
        statement="GPT-2's output is random because of dropout.",
        kind=Kind.ARCHITECTURE,
        expected=Verdict.FALSE,
        answer=(
            "Not when it is used: dropout belongs to training. The same {tokens} tokens give the "
            "same {logits} logits, bit for bit, each of {times} times, and {active} part of the "
            "model is in training mode. What is random in generated text is the choice of the next "
            "token."
        ),
        sources=(CODE,),
    ),
)


def _loss(model: Model) -> tuple[float, np.ndarray]:
    """The model's own loss of the probe, and the logits that it is of."""
    if len(model.probe) < 3:
        raise NotExamined("too short for a loss")
    tokens = model.probe[None]
    value = model.need(LOSS)(tokens, tokens)
    assert isinstance(value, float), "a loss is a number"
    return value, np.asarray(model.logits(model.probe), np.float64)


@evidence("loss-next")
@on_each_model
def predicts_next(model: Model) -> Measured:
    """The law of the loss, and what other shifts would give."""
    loss, logits_TV = _loss(model)
    log_TV, tokens_T = log_softmax(logits_TV), model.probe
    rows = np.arange(len(tokens_T))
    unshifted = float(-log_TV[rows, tokens_T].mean())
    far = float(-log_TV[rows[:-2], tokens_T[2:]].mean())
    verdict = Verdict.TRUE if model.passes("loss.value") else Verdict.FALSE
    numbers = {"loss": loss, "tokens": len(tokens_T), "unshifted": unshifted, "far": far}
    return Measured(verdict, numbers)


@evidence("loss-all-positions")
@on_each_model
def guess_at_each(model: Model) -> Measured:
    """Each row of a long run against the last row of a run that ends there."""
    tokens_T = model.probe
    whole = np.asarray(model.logits(tokens_T), np.float64)
    ends = sorted({1, 2, len(tokens_T) // 2, len(tokens_T)} - {0})
    same = len(whole) == len(tokens_T)
    for n in ends if same else []:
        last = np.asarray(model.logits(tokens_T[:n]), np.float64)[-1:]
        floors = model.subject.floors(last - whole[n - 1 : n], tokens_T[:n], n - 1)
        same &= floors <= LIMIT_FLOORS
    numbers = {"tokens": len(tokens_T), "vocab": model.config.n_vocab, "ends": len(ends)}
    return Measured(Verdict.TRUE if same else Verdict.FALSE, numbers)


@evidence("loss-sum")
@on_each_model
def is_sum(model: Model) -> Measured:
    """Mean or sum."""
    loss, logits_TV = _loss(model)
    each = token_losses_nats(logits_TV, model.probe)
    verdict = Verdict.FALSE
    if model.passes("loss.value"):
        verdict = Verdict.CORRECTED
    elif math.isclose(loss, each.sum(), rel_tol=1e-3):
        verdict = Verdict.TRUE
    numbers = {"tokens": len(model.probe), "predictions": len(each), "sum": float(each.sum())}
    return Measured(verdict, {**numbers, "loss": loss})


@evidence("loss-others-silent")
@on_each_model
def others_silent(model: Model) -> Measured:
    """The law of ignored labels, which asks for each prediction alone."""
    finding = model.passes("loss.ignored")
    length = min(model.config.n_ctx, 9)
    verdict = Verdict.TRUE if finding else Verdict.FALSE
    return Measured(verdict, {"predictions": length - 1})


@evidence("dropout-inference")
@on_each_model
def random_output(model: Model) -> Measured:
    """The same input three times, and what is in training mode."""
    runs = [model.logits(model.probe) for _ in range(3)]
    same = all(run.tobytes() == runs[0].tobytes() for run in runs)
    training = list(model.need(TRAINING)())
    numbers = {
        "tokens": len(model.probe),
        "logits": runs[0].size,
        "times": len(runs),
        "active": len(training) or "no",
    }
    return Measured(Verdict.FALSE if same and not training else Verdict.TRUE, numbers)
