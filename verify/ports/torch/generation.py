"""``generate`` of a module, as transformers, nanoGPT and minGPT have it, made greedy."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.port import GENERATE, NotExamined, Prompt
from gpt_verify.ports.torch.copies import quietly

if TYPE_CHECKING:
    from gpt_verify.port import Tokens
    from gpt_verify.ports.torch.module import TorchModule

#: Names of the token after which a row ends.
_ENDS = ("eos_token_id", "eos_id", "end_id", "stop_token", "eos_token", "eot_id")


def add_generation(port: TorchModule) -> None:
    """Offer what can be made greedy."""
    generate = getattr(port.module, "generate", None)
    if not callable(generate):
        return
    takes = inspect.signature(generate).parameters
    if hasattr(port.module, "generation_config") and "generation_config" in takes:
        port.offer(GENERATE, lambda prompt: _by_library(port, prompt))
    elif "max_new_tokens" in takes and _greedy(takes) is not None:
        port.offer(GENERATE, _ByArguments(port).generate)


def _greedy(takes: Mapping[str, inspect.Parameter]) -> dict[str, Any] | None:
    """Arguments by which the likeliest token is taken; None where they are not known.

    With none but a number of tokens there is nothing to draw by.
    """
    if "do_sample" in takes:
        return {"do_sample": False}
    if "top_k" in takes:
        return {"top_k": 1}
    others = [n for n, p in takes.items() if p.default is inspect.Parameter.empty]
    known = {"temperature", "top_p", "sample", "num_samples"} & takes.keys()
    return None if known or len(others) > 2 else {}


def _by_library(port: TorchModule, prompt: Prompt) -> Tokens:
    """transformers: nothing of the model's own settings is taken over."""
    module: Any = port.module
    ids, mask = _ids(port, prompt.tokens), prompt.mask
    settings = type(module.generation_config)(
        max_new_tokens=prompt.new,
        do_sample=False,
        num_beams=1,
        eos_token_id=prompt.end,
        pad_token_id=0,
        bos_token_id=None,
    )
    ones = np.ones_like(prompt.tokens) if mask is None else mask
    with quietly(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        before = module.generation_config
        module.generation_config = settings
        try:
            made = module.generate(ids, attention_mask=_ids(port, ones), generation_config=settings)
        finally:
            module.generation_config = before
    return _after(prompt, _tokens(made))


class _ByArguments:
    """nanoGPT, minGPT: ``generate(idx, max_new_tokens, …, top_k=1)``."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port
        #: Whether it returns the prompt as well; None before that was seen.
        self._whole: bool | None = None

    def generate(self, prompt: Prompt) -> Tokens:
        """The capability ``GENERATE``."""
        made = self._asked(prompt)
        length = prompt.tokens.shape[1]
        if prompt.end is None and made.shape[1] in (prompt.new, length + prompt.new):
            self._whole = made.shape[1] != prompt.new
        if self._whole is None:
            return _after(prompt, made)
        return made[:, length:] if self._whole else made

    def _asked(self, prompt: Prompt) -> Tokens:
        module: Any = self._port.module
        takes = inspect.signature(module.generate).parameters
        more: dict[str, Any] = dict(_greedy(takes) or {})
        more["max_new_tokens"] = prompt.new
        if prompt.mask is not None:
            if "attention_mask" not in takes:
                raise NotExamined("it takes no mask where it generates")
            more["attention_mask"] = _ids(self._port, prompt.mask)
        if prompt.end is not None:
            name = next((name for name in _ENDS if name in takes), None)
            if name is None:
                raise NotExamined("it takes no token that ends a row")
            more[name] = prompt.end
        with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng([]):
            warnings.simplefilter("ignore")
            return _tokens(module.generate(_ids(self._port, prompt.tokens), **more))


def _tokens(made: Any) -> Tokens:
    if not isinstance(made, torch.Tensor) or made.ndim != 2:
        raise NotExamined(f"generate returns {type(made).__name__}, not tokens")
    return np.asarray(made.cpu().numpy(), np.int64)


def _after(prompt: Prompt, made: Tokens) -> Tokens:
    """What follows the prompt, where that is returned as well."""
    length = prompt.tokens.shape[1]
    whole = made.shape[1] >= length and np.array_equal(made[:, :length], prompt.tokens)
    return made[:, length:] if whole else made


def _ids(port: TorchModule, ids: Tokens) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=port.device)
