"""Faults of soft caps: of the scores, and of the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpt_verify.faults.attention import right_scale
from gpt_verify.faults.decoder import Decoder, rebind
from gpt_verify.faults.fault import AtSites, Fault, InTransformers
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import Array, sees, soft_cap, softmax


def _cap(call: Call) -> float:
    assert call.config.keys.cap is not None, "scores that are capped"
    return call.config.keys.cap


def _before_scale(call: Call) -> Array:
    """The scores were scaled; what is capped is the product before that."""
    scale = right_scale(call.config)
    return scale * soft_cap(call.x / scale, _cap(call))


def _after_mask(call: Call) -> Array:
    """What the mask hides is as low as the cap lets it be, and seen."""
    shown_TS = sees(call.x.shape[-2:], call.config.window(call.layer))
    return softmax(np.where(shown_TS, call.x, -_cap(call)))


def _uncapped(call: Call) -> Array:
    keys = replace(call.config.keys, cap_logits=None)
    return right(replace(call, config=replace(call.config, own=keys)))


def _exchanged(call: Call) -> Array:
    cap = call.config.keys.cap_logits
    assert cap is not None, "logits that are capped"
    return soft_cap(call.x, cap)


def _other_cap(call: Call) -> Array:
    return soft_cap(_uncapped(call), _cap(call))


# In torch: q·k, the scale, the cap and the mask → what the softmax reads
Capped = Callable[[Any, float, float, Any], Any]


def _inject(capped: Capped, decoder: Decoder, layers: Sequence[int]) -> None:
    def attend(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        *,
        scaling: float,
        softcap: float,
        **_: Any,
    ) -> Any:
        times = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
        pattern = capped(query @ key.mT, scaling, softcap, mask).softmax(-1)
        return (pattern @ value).transpose(1, 2), pattern

    for layer in layers:
        rebind(decoder.attention(layer), "forward", eager_attention_forward=attend)


def _scores(config: Config) -> bool:
    return config.keys.cap is not None


def _logits(config: Config) -> bool:
    return config.keys.cap_logits is not None


def _fault(
    name: str, summary: str, kind: str, act: Override, capped: Capped, seen: str = ""
) -> Fault:
    """A cap of the scores that is another, or in another place."""
    how = InTransformers(module=partial(_inject, capped))
    predict = AtSites({kind: act})
    return Fault(name, "cap", summary, seen, predict=predict, in_family=how, of=_scores)


def _set(**keys: Any) -> Callable[[Any, Config], None]:
    def change(config: Any, _: Config) -> None:
        for key, value in keys.items():
            setattr(config, key, value)

    return change


def _exchange(config: Any, _: Config) -> None:
    scores, logits = config.attn_logit_softcapping, config.final_logit_softcapping
    config.attn_logit_softcapping, config.final_logit_softcapping = logits, scores


FAULTS = (
    Fault(
        "cap-scores-missing",
        "cap",
        "does not cap the scores",
        "fused kernels without a cap, in ports of Gemma 2",
        predict=AtSites({"attn.capped": lambda call: call.x}),
        in_family=InTransformers(config=_set(attn_logit_softcapping=None)),
        of=_scores,
    ),
    Fault(
        "cap-logits-missing",
        "cap",
        "does not cap the logits",
        "a head that is written for other families",
        predict=AtSites({"logits": _uncapped}),
        in_family=InTransformers(config=_set(final_logit_softcapping=None)),
        of=_logits,
    ),
    Fault(
        "cap-exchanged",
        "cap",
        "caps the scores by the cap of the logits, and the logits by that of the scores",
        predict=AtSites({"attn.capped": _exchanged, "logits": _other_cap}),
        in_family=InTransformers(config=_exchange),
        of=lambda config: _scores(config) and _logits(config),
    ),
    _fault(
        "cap-after-mask",
        "caps the scores when they are masked already, so that what is hidden is seen",
        "attn.pattern",
        _after_mask,
        lambda qk, scale, cap, mask: cap * torch.tanh((qk * scale + mask) / cap),
    ),
    _fault(
        "cap-before-scale",
        "caps the scores before they are scaled",
        "attn.capped",
        _before_scale,
        lambda qk, scale, cap, mask: torch.tanh(qk / cap) * (cap * scale) + mask,
    ),
    _fault(
        "cap-not-multiplied",
        "does not multiply by the cap after the hyperbolic tangent",
        "attn.capped",
        lambda call: np.tanh(call.x / _cap(call)),
        lambda qk, scale, cap, mask: torch.tanh(qk * (scale / cap)) + mask,
    ),
    _fault(
        "cap-clipped",
        "clips the scores at the cap",
        "attn.capped",
        lambda call: np.clip(call.x, -_cap(call), _cap(call)),
        lambda qk, scale, cap, mask: (qk * scale).clamp(-cap, cap) + mask,
    ),
)
