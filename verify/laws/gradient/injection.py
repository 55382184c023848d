"""Wrong derivatives of correct values, in torch: what injects the faults of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_verify.faults.inject import replace, wrap

Inject = Callable[[Any, Sequence[int]], None]
#: The derivative with respect to the value, and the inputs → that with respect to each input.
Pull = Callable[..., Tensor | tuple[Tensor, ...]]

#: What ``scaled`` multiplies by.
FACTOR = 0.5


class _Pulled(torch.autograd.Function):  # type: ignore[misc]  # torch has no type for it
    """A value, and another rule for its derivative than its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pull: Pull, *inputs: Tensor) -> Tensor:
        ctx.pull = pull
        ctx.save_for_backward(*inputs)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        found = ctx.pull(d, *ctx.saved_tensors)
        return None, None, *(found if isinstance(found, tuple) else (found,))


def pulled(value: Tensor, pull: Pull, *inputs: Tensor) -> Tensor:
    """``value``, whose derivative with respect to the inputs is ``pull(d, *inputs)``."""
    result: Tensor = _Pulled.apply(value.detach(), pull, *inputs)
    return result


def _slope(slope: Callable[[Tensor], Tensor]) -> Inject:
    """Another derivative of GELU."""

    def act(self: Any, right: Any, x: Tensor) -> Tensor:
        return pulled(right(x), lambda d, x: d * slope(x), x)

    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            wrap(block.mlp, "act", act)

    return inject


def _slope_of_erf(x: Tensor) -> Tensor:
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density


def _slope_without_exponent(x: Tensor) -> Tensor:
    """x³ counted as if its derivative were x²."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = torch.tanh(scale * (x + cubic * x * x * x))
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * scale * (1 + cubic * x * x)


def _norms(method: str, function: Callable[..., Tensor]) -> Inject:
    """``function(norm, …)`` in place of a step of a layer norm."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        for norm in model.norms(layers):
            replace(norm, method, function)

    return inject


def _normalise(of_mean: bool, self: Any, x: Tensor) -> Tensor:
    """The deviation counts as a constant; the mean too where ``of_mean``."""
    mean = x.mean(-1, keepdim=True)
    centred = x - (mean.detach() if of_mean else mean)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + self.eps).detach()


def _without_gain(self: Any, x: Tensor) -> Tensor:
    """What goes on to the input has not passed through the gain."""
    normed = self.normalise(x)
    scaled = self.weight * normed.detach() + self.bias
    return scaled + pulled(torch.zeros_like(scaled), lambda d, x: d, normed)


def _averaged(self: Any, x: Tensor) -> Tensor:
    """Each position is handed the mean over the sequence."""
    shared = pulled(x, lambda d, x: d.mean(1, keepdim=True).expand_as(d), x)
    return type(self).forward(self, shared)


def _wired(wire: Callable[[Any, Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Inject:
    """Another way of joining a block's parts."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            replace(block, "wire", wire)

    return inject


def _attention_detached(self: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    x = x + attend(self.ln_1(x)).detach()
    return x + self.mlp(self.ln_2(x))


def _mlp_detached(self: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    x = x + attend(self.ln_1(x))
    return x + self.mlp(self.ln_2(x)).detach()


def _skips_detached(self: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.detach() + attend(self.ln_1(x))
    return x.detach() + self.mlp(self.ln_2(x))


def _input_detached(self: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.detach()
    x = x + attend(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


def _scaled(model: Any, layers: Sequence[int]) -> None:
    """What comes back into one block, in the middle of those that are given."""

    def wire(self: Any, right: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        made = right(x, attend)
        return pulled(made, lambda d, y: d * FACTOR, made)

    wrap(model.h[layers[len(layers) // 2]], "wire", wire)


def _attention(method: str, change: Callable[..., Tensor]) -> Inject:
    """``change(attention, right, …)`` in place of one step of attention."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            wrap(block.attn, method, change)

    return inject


def _detached(method: str, which: int) -> Inject:
    """One input of a step of attention counts as a constant."""

    def change(self: Any, right: Any, *given: Tensor) -> Tensor:
        made: Tensor = right(*(x.detach() if i == which else x for i, x in enumerate(given)))
        return made

    return _attention(method, change)


def _scores_unscaled(self: Any, right: Any, q: Tensor, k: Tensor) -> Tensor:
    return pulled(right(q, k), lambda d, q, k: (d @ k, d.transpose(-1, -2) @ q), q, k)


def _softmax_without_sum(self: Any, right: Any, scores: Tensor) -> Tensor:
    pattern = right(scores).detach()
    return pulled(pattern, lambda d, x: d * pattern, scores)


def _mask_straight_through(
    self: Any, right: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor
) -> Tensor:
    scores = self.scores(q, k)
    pattern, open_ = self.softmax(self.mask(scores, allowed)), self.softmax(scores)

    def pull(d: Tensor, x: Tensor) -> Tensor:
        found: Tensor = torch.autograd.grad(open_, scores, d, retain_graph=True)[0]
        return found

    made: Tensor = self.mix(pulled(pattern, pull, scores), v)
    return made


def _backward_without_mask(
    self: Any, right: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor
) -> Tensor:
    """A fused attention whose kernel for the backward pass was given no mask."""
    scale = self.scale(q)

    def pull(d: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(*leaves, scale=scale)
        found: tuple[Tensor, ...] = torch.autograd.grad(out, leaves, d)
        return found

    return pulled(right(q, k, v, allowed), pull, q, k, v)


def _linear(forward: Callable[[Any, Tensor], Tensor], *names: str) -> Inject:
    """Another linear map in place of some of a block's (``mlp.c_fc``)."""

    def inject(model: Any, layers: Sequence[int]) -> None:
        for block in model.blocks(layers):
            for name in names:
                replace(block.get_submodule(name), "forward", forward)

    return inject


def _frozen(self: Any, x: Tensor) -> Tensor:
    made: Tensor = x @ self.weight.detach() + self.bias
    return made


def _counted_twice(self: Any, x: Tensor) -> Tensor:
    made, again = x @ self.weight + self.bias, x.detach() @ self.weight
    return pulled(made, lambda d, y, z: (d, d), made, again)


def _bias_averaged(self: Any, x: Tensor) -> Tensor:
    positions = x[..., 0].numel()
    made: Tensor = x @ self.weight + pulled(self.bias, lambda d, b: d / positions, self.bias)
    return made


#: Name of the fault, without its family → what injects it.
INJECTIONS: dict[str, Inject] = {
    "gelu-straight-through": _slope(torch.ones_like),
    "gelu-erf": _slope(_slope_of_erf),
    "gelu-exponent": _slope(_slope_without_exponent),
    "norm-statistics": _norms("normalise", partial(_normalise, True)),
    "norm-deviation": _norms("normalise", partial(_normalise, False)),
    "norm-gain": _norms("forward", _without_gain),
    "averaged": _norms("forward", _averaged),
    "attention-detached": _wired(_attention_detached),
    "mlp-detached": _wired(_mlp_detached),
    "skips-detached": _wired(_skips_detached),
    "blocks-apart": _wired(_input_detached),
    "pattern-detached": _detached("mix", 0),
    "query-detached": _detached("scores", 0),
    "key-detached": _detached("scores", 1),
    "value-detached": _detached("mix", 1),
    "scores-unscaled": _attention("scores", _scores_unscaled),
    "softmax-diagonal": _attention("softmax", _softmax_without_sum),
    "mask-straight-through": _attention("attend", _mask_straight_through),
    "mask-missing": _attention("attend", _backward_without_mask),
    "bias-averaged": _linear(
        _bias_averaged, "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
    ),
    "frozen": _linear(_frozen, "mlp.c_fc"),
    "counted-twice": _linear(_counted_twice, "attn.c_proj"),
    "scaled": _scaled,
}
