"""Faults of training: what is correct in evaluation mode is trained as something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpt_verify.faults.fault import Fault, Inject, InModel
from gpt_verify.faults.inject import replace, wrap
from gpt_verify.faults.later import torch

#: What a checkpointed block does: ``again(run, x)`` where ``run(x)`` is the block.
Call = Callable[..., Any]


def _trains(module: Any) -> bool:
    return bool(module.training) and torch.is_grad_enabled()


def _again(run: Call, x: Any, **more: Any) -> Any:
    """torch's own: ``run`` is called a second time in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(run, x, use_reentrant=False, **more)


def _checkpointing(block: Any, call: Call) -> None:
    """A block with a switch; ``call(block, right, x, past, real)`` is what it does when that is
    on."""
    block.gradient_checkpointing = False

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        if not (self.gradient_checkpointing and _trains(self)):
            return right(x, past, real)
        return call(self, right, x, past, real)

    wrap(block, "forward", forward)


def _each_block(call: Call) -> Inject:
    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            _checkpointing(block, call)

    return inject


def _each_trained_block(call: Call) -> Inject:
    """The same whenever it trains, without a switch."""

    def forward(self: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
        return call(self, right, x, past, real) if _trains(self) else right(x, past, real)

    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            wrap(block, "forward", forward)

    return inject


def _both(*every: Inject) -> Inject:
    def inject(model: Any, layers: Sequence[int]) -> None:
        for one in every:
            one(model, layers)

    return inject


def _all_seen(wanted: Callable[[Any], bool]) -> Inject:
    """No causal mask where it is wanted so."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        def allowed(self: Any, right: Any, targets: Any, sources: Any) -> Any:
            seen = right(targets, sources)
            return torch.ones_like(seen) if wanted(self) else seen

        for block in model.blocks(layers):
            wrap(block.attn, "allowed", allowed)

    return inject


def _checkpointed_unmasked(block: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
    def run(x: Any) -> Any:
        block.attn.unmasked = True
        try:
            return right(x, past, real)
        finally:
            block.attn.unmasked = False

    return _again(run, x)


def _no_causal_mask(model: Any, layers: Sequence[int]) -> None:
    _each_block(_checkpointed_unmasked)(model, layers)
    _all_seen(lambda attn: getattr(attn, "unmasked", False))(model, layers)


def _without_padding(block: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
    return _again(lambda x: right(x, past, None), x)


def _detached(block: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
    return _again(lambda x: right(x, past, real), x.detach().requires_grad_())


def _otherwise_again(block: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
    """The second time without the mask of padding."""
    calls: list[Any] = []

    def run(x: Any) -> Any:
        calls.append(None)
        again = len(calls) > 1 and real is not None
        return right(x, past, torch.ones_like(real) if again else real)

    return _again(run, x)


def _as_it_is(block: Any, right: Any, x: Any, past: Any, real: Any) -> Any:
    return _again(lambda x: right(x, past, real), x)


def _checkpoints(model: Any) -> bool:
    return _trains(model) and any(block.gradient_checkpointing for block in model.h)


def _positions_lost(wanted: Callable[[Any], bool]) -> Inject:
    """Positions count the padding where it is wanted so."""

    def embed(self: Any, right: Any, ids: Any, at: Any) -> Any:
        if wanted(self):
            at = torch.arange(ids.shape[1], device=ids.device)
        return right(ids, at)

    return lambda model, layers: wrap(model, "embed", embed)


def _drawn_anew(model: Any, layers: Sequence[int]) -> None:
    for block in model.blocks(layers):
        block.mlp.drop = torch.nn.Dropout(0.1).train(block.training)
        wrap(block.mlp, "forward", lambda self, right, x: self.drop(right(x)))
        _checkpointing(
            block,
            lambda self, right, x, past, real: _again(
                lambda x: right(x, past, real), x, preserve_rng_state=False
            ),
        )


def _loss_scaled(wanted: Callable[[Any], bool]) -> Inject:
    def loss(self: Any, right: Any, logits: Any, labels: Any) -> Any:
        return right(logits, labels) / (4 if wanted(self) else 1)

    return lambda model, layers: wrap(model, "loss", loss)


def _embedding_detached(model: Any, layers: Sequence[int]) -> None:
    def embed(self: Any, right: Any, ids: Any, at: Any) -> Any:
        x = right(ids, at)
        return x.detach() if _trains(self) else x

    wrap(model, "embed", embed)


def _zeroed_on_call(model: Any, layers: Sequence[int]) -> None:
    def forward(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            self.zero_grad()
        return right(*args, **kwargs)

    wrap(model, "forward", forward)


def _unties(model: Any, layers: Sequence[int]) -> None:
    """The head gets a matrix of its own when everything is made trainable again."""

    def requires_grad_(self: Any, right: Any, wanted: bool = True) -> Any:
        if wanted:
            self.lm_head = torch.nn.Parameter(self.wte.detach().clone())
        return right(wanted)

    def head(self: Any, right: Any, x: Any) -> Any:
        own = getattr(self, "lm_head", None)
        return right(x) if own is None else x @ own.T

    wrap(model, "requires_grad_", requires_grad_)
    wrap(model, "head", head)


def _training(name: str, law: str, summary: str, inject: Inject, seen: str = "") -> Fault:
    return Fault(name, "training", summary, seen, InModel(inject, layered=False), law=law)


_MODE, _AGAIN = "training.mode", "training.checkpointing"
FAULTS = (
    _training(
        "training-no-causal-mask",
        _MODE,
        "trains without the causal mask: each token sees those after it",
        _all_seen(_trains),
        "lightly-ai/lightly#2050",
    ),
    _training(
        "training-detached",
        _MODE,
        "detaches the embedding when it trains, so that tables are trained by the head alone",
        _embedding_detached,
    ),
    _training(
        "training-loss-scaled",
        _MODE,
        "divides the loss by the number of steps of accumulation when it trains",
        _loss_scaled(_trains),
    ),
    _training(
        "training-loses-padding",
        _MODE,
        "calls its blocks without the mask of padding when it trains",
        _each_trained_block(lambda block, right, x, past, real: right(x, past, None)),
    ),
    _training(
        "training-loses-positions",
        _MODE,
        "does not hand on positions when it trains",
        _positions_lost(_trains),
    ),
    _training(
        "training-loses-padding-and-positions",
        _MODE,
        "hands on neither positions nor the mask of padding when it trains",
        _both(
            _each_trained_block(lambda block, right, x, past, real: right(x, past, None)),
            _positions_lost(_trains),
        ),
    ),
    _training(
        "training-recomputes-otherwise",
        _MODE,
        "always computes its blocks again in the backward pass, and then something else",
        _each_trained_block(_otherwise_again),
    ),
    _training(
        "training-checkpointing-no-causal-mask",
        _AGAIN,
        "calls its blocks without the causal mask where it checkpoints them",
        _no_causal_mask,
        "lightly-ai/lightly#2050",
    ),
    _training(
        "training-checkpointing-loses-padding",
        _AGAIN,
        "calls its blocks without the mask of padding where it checkpoints them",
        _each_block(_without_padding),
    ),
    _training(
        "training-checkpointing-loses-positions",
        _AGAIN,
        "does not hand on positions where it checkpoints",
        _both(_each_block(_as_it_is), _positions_lost(_checkpoints)),
    ),
    _training(
        "training-checkpointing-loses-padding-and-positions",
        _AGAIN,
        "hands on neither positions nor the mask of padding where it checkpoints",
        _both(_each_block(_without_padding), _positions_lost(_checkpoints)),
    ),
    _training(
        "training-checkpointing-loss-scaled",
        _AGAIN,
        "divides the loss by a number where it checkpoints",
        _both(_each_block(_as_it_is), _loss_scaled(_checkpoints)),
    ),
    _training(
        "training-checkpointing-detached",
        _AGAIN,
        "detaches what goes into each block that it checkpoints",
        _each_block(_detached),
    ),
    _training(
        "training-checkpointing-recomputes-otherwise",
        _AGAIN,
        "computes something else when a block is computed again in the backward pass",
        _each_block(_otherwise_again),
    ),
    _training(
        "training-checkpointing-draws-anew",
        _AGAIN,
        "drops other numbers when a block is computed again in the backward pass",
        _drawn_anew,
    ),
    _training(
        "training-gradients-zeroed",
        "training.accumulation",
        "forgets the gradients of the batches before in place of accumulating them",
        _zeroed_on_call,
    ),
    _training(
        "training-accumulation-mean-of-means",
        "training.accumulation",
        "takes num_items_in_batch, and divides by the predictions of each part all the same",
        lambda model, layers: replace(model, "divided", lambda self, loss, labels, items: loss),
        "huggingface/transformers#34191",
    ),
    _training(
        "training-freezing-unties",
        "training.freezing",
        "gives the head a matrix of its own when its parameters are unfrozen",
        _unties,
    ),
)
