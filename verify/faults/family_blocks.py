"""Faults of the way in which a family's block is joined: what each part reads, and adds to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt_verify.faults.decoder import Decoder
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.inject import replace, wrap
from gpt_verify.graph.call import Call
from gpt_verify.reference.branches import norm
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, linear


def _norm(call: Call, x_TD: Array, kind: str) -> Array:
    return norm(x_TD, f"h{call.layer}/{kind}", call.config, call.w)


def _product(call: Call, x_TD: Array) -> Array:
    return linear(x_TD, *map(call.own, range(len(call.site.weights))))


# Parallel and sequential


def _after_attention(call: Call) -> Array:
    """What a block that is parallel would read if it were sequential, by the norm of both."""
    stream_TD = call.at("attn.out") + call.values[_entering(call)]
    return _product(call, _norm(call, stream_TD, "ln_1"))


def _entering(call: Call) -> str:
    """The site of the stream that enters this block."""
    return "embed" if call.layer == 0 else f"h.{call.layer - 1}.resid_post"


def _sequential(decoder: Decoder, layers: Sequence[int]) -> None:
    """What attention returned is kept, and added to the stream before the MLP norms it."""
    for layer in layers:
        first, attn = decoder.at("ln_1", layer), decoder.attention(layer)
        mlp, kept = decoder.around("mlp/c_fc", layer), _Kept()
        wrap(first, "forward", partial(_keeps_input, kept))
        wrap(attn, "forward", partial(_keeps_output, kept))

        def read(mlp: Any, act: Any, _: Any, kept: _Kept = kept, first: Any = first) -> Any:
            return act(type(first).forward(first, kept.entered + kept.attended))

        wrap(mlp, "forward", read)


def _after(call: Call) -> Array:
    """The second norm reads the stream with attention's part in it."""
    return _norm(call, call.values[_entering(call)] + call.at("attn.out"), "ln_2")


def _in_turn(decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        decoder.around("ln_1", layer).use_parallel_residual = False


class _Kept:
    """What one part of a block leaves for another."""

    entered: Any = None
    attended: Any = None


def _keeps_input(kept: _Kept, norm: Any, act: Any, x: Any) -> Any:
    kept.entered = x
    return act(x)


def _keeps_output(kept: _Kept, attn: Any, act: Any, *args: Any, **more: Any) -> Any:
    made = act(*args, **more)
    kept.attended = made[0]
    return made


def parallel(decoder: Decoder, layers: Sequence[int]) -> None:
    """The second norm reads the stream that entered the block."""
    for layer in layers:
        kept = _Kept()
        wrap(decoder.at("ln_1", layer), "forward", partial(_keeps_input, kept))
        wrap(decoder.at("ln_2", layer), "forward", partial(_reads_entered, kept))


def _reads_entered(kept: _Kept, norm: Any, act: Any, x: Any) -> Any:
    return act(kept.entered.reshape(x.shape))


def parallel_one_norm(decoder: Decoder, layers: Sequence[int]) -> None:
    """The MLP reads what the first norm has made of that."""
    for layer in layers:
        kept, first = _Kept(), decoder.at("ln_1", layer)
        wrap(first, "forward", partial(_keeps_input, kept))
        again = partial(_reads_first, kept, first)
        replace(decoder.at("ln_2", layer), "forward", partial(_called, again))


def _reads_first(kept: _Kept, first: Any, x: Any) -> Any:
    return type(first).forward(first, kept.entered).reshape(x.shape)


def _called(act: Any, norm: Any, x: Any) -> Any:
    return act(x)


# Where a norm stands


def _early(call: Call) -> Array:
    """The branch reads what its norm, which stands behind it, makes of the stream."""
    kind = "ln_1_after" if call.site.kind.startswith("attn") else "ln_2_after"
    return _product(call, _norm(call, call.x, kind))


def _before(decoder: Decoder, layers: Sequence[int]) -> None:
    for layer in layers:
        for part, scope in ((decoder.attention(layer), "ln_1_after"), (None, "ln_2_after")):
            part = part if part is not None else decoder.around("mlp/down", layer)
            behind = decoder.at(scope, layer)
            wrap(part, "forward", partial(_normed_first, behind))
            replace(behind, "forward", lambda _, x: x)


def _normed_first(behind: Any, part: Any, act: Any, *args: Any, **more: Any) -> Any:
    stream = args[0] if args else more.pop("hidden_states")
    return act(type(behind).forward(behind, stream), *args[1:], **more)


def unnormed(scope: str) -> InTransformers:
    """Without one of the norms."""

    def module(decoder: Decoder, layers: Sequence[int]) -> None:
        for one in decoder.norms((scope,), layers):
            replace(one, "forward", lambda _, x: x)

    return InTransformers(module=module, layered=scope != "ln_f")


def _missing(name: str, scope: str, where: str) -> Fault:
    return Fault(
        name,
        "block",
        f"leaves out the norm {where}",
        predict=AtSites({scope: lambda call: call.x}),
        in_family=unnormed(scope),
        of=lambda config: config.keys.norm_branch,
    )


# In place


def overwritten(call: Call) -> Array:
    """The sum has the normed stream in the place of the stream."""
    kind = "ln_1" if call.site.kind == "resid_mid" or call.config.keys.parallel else "ln_2"
    total = call.at(kind)
    for name in call.site.inputs[1:]:
        total = total + call.values[name]
    return total


def in_place(decoder: Decoder, layers: Sequence[int]) -> None:
    """Each norm writes over what it has read."""
    for one in decoder.norms(("ln_1", "ln_2"), layers):
        wrap(one, "forward", lambda _, act, x: x.copy_(act(x)))


def _two_norms(config: Config) -> bool:
    return config.keys.parallel == 2


_READ_ATTENTION = ("attn.q", "attn.k", "attn.v")


FAULTS = (
    Fault(
        "block-sequential",
        "block",
        "feeds the MLP with the stream after attention, where both read the same",
        "use_parallel_residual that is not read",
        predict=AtSites({"mlp.pre": _after_attention}),
        in_family=InTransformers(module=_sequential),
        of=lambda config: config.keys.parallel == 1,
    ),
    Fault(
        "block-in-turn",
        "block",
        "feeds the MLP's norm with the stream after attention, where both norms read the same",
        "use_parallel_residual that is not read",
        predict=AtSites({"ln_2": _after}),
        in_family=InTransformers(module=_in_turn),
        of=_two_norms,
    ),
    Fault(
        "block-one-norm",
        "block",
        "feeds the MLP with what the norm before attention has made, where it has one of its own",
        "the block of GPT-J, in code for GPT-NeoX",
        predict=AtSites({"ln_2": lambda call: call.at("ln_1")}),
        in_family=InTransformers(module=parallel_one_norm),
        of=_two_norms,
    ),
    Fault(
        "block-norm-before",
        "block",
        "norms what each branch reads, where the model norms what it has made",
        "OLMo 2's weights in code for Llama",
        predict=AtSites(
            {
                **dict.fromkeys((*_READ_ATTENTION, "mlp.gate", "mlp.up"), _early),
                "ln_1_after": lambda call: call.x,
                "ln_2_after": lambda call: call.x,
            }
        ),
        in_family=InTransformers(module=_before, layered=False),
        of=lambda config: config.keys.norm_branch and not config.keys.norm_first,
    ),
    _missing("block-norm-1-after-missing", "ln_1_after", "after attention"),
    _missing("block-norm-2-after-missing", "ln_2_after", "after the MLP"),
)
