"""What a module hands out of its inside: hidden states and patterns of attention, by transformers'
arguments ``output_hidden_states`` and ``output_attentions``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import described
from gpt_verify.port import PATTERNS, STATES, NotExamined
from gpt_verify.ports.torch.copies import quietly
from gpt_verify.ports.torch.outputs import member
from gpt_verify.ports.torch.styles import takes_of
from gpt_verify.ports.torch.trace import to_numpy
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule

_STATES, _PATTERNS = "output_hidden_states", "output_attentions"


def add_outputs(port: TorchModule) -> None:
    """Offer what a module takes as an argument; transformers' models, whose version 5 names none
    of the two, have both in their configuration."""
    takes = takes_of(port.module)
    in_config = vars(getattr(port.module, "config", None) or object) if _of_library(port) else {}
    if _STATES in takes or _STATES in in_config or f"_{_STATES}" in in_config:
        port.offer(STATES, lambda tokens: _states(port, tokens))
    if _PATTERNS in takes or _PATTERNS in in_config or f"_{_PATTERNS}" in in_config:
        port.offer(PATTERNS, lambda tokens: _patterns(port, tokens))


def _of_library(port: TorchModule) -> bool:
    """A model of transformers, of which its documents speak."""
    return type(port.module).__module__.startswith("transformers.")


def _states(port: TorchModule, tokens: Tokens) -> list[tuple[tuple[str, ...], Floats]]:
    """The embedding, then what each block makes: the sum, or its norm in a model that norms after
    its sums. The last one after the last norm, where transformers hands it out, and where others
    do not say."""
    found = _asked(port, tokens, _STATES, "hidden_states")
    table = sites(port.config)
    embedded = tuple(name for name in ("embed", "ln_embed") if name in table)
    last: tuple[str, ...] = ("ln_f",) if "ln_f" in table else ()
    documented: list[tuple[str, ...]] = [embedded]
    made = "resid_post" if port.config.norm_first else "ln_2"
    for layer in range(port.config.n_layer):
        whole = layer == port.config.n_layer - 1
        stream: tuple[str, ...] = (f"h.{layer}.{made}",)
        if whole and last:
            stream = last if _of_library(port) else (*stream, *last)
        documented.append(stream)
    if len(found) != len(documented):
        return [((), value) for value in found]
    return list(zip(documented, found, strict=True))


def _patterns(port: TorchModule, tokens: Tokens) -> list[Floats]:
    return _asked(port, tokens, _PATTERNS, "attentions")


def _asked(port: TorchModule, tokens: Tokens, argument: str, name: str) -> list[Floats]:
    """What one call hands out.

    Raises:
        NotExamined: nothing: a fused kernel has no pattern.
    """
    takes = takes_of(port.module)
    more: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    ids = torch.as_tensor(np.ascontiguousarray(tokens, np.int64), device=port.device)
    try:
        # Of what a fused attention cannot hand out transformers would warn the user.
        with quietly(), torch.no_grad():
            output = port.module(ids, **{argument: True}, **more)
    except Exception as error:
        raise NotExamined(f"{argument}=True is refused: {described(error)}") from error
    found = member(output, name)
    if not isinstance(found, (tuple, list)) or not found:
        raise NotExamined(f"{argument}=True hands out nothing")
    if not all(isinstance(value, torch.Tensor) for value in found):
        raise NotExamined(f"{argument}=True hands out something else than tensors")
    return [np.array(to_numpy(value)) for value in found]
