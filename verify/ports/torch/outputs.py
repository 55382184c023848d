"""What is where in what a module returns, and in the module."""

from __future__ import annotations

import re
from typing import Any

import torch

#: Names of the id of a token.
_SPECIAL = re.compile(r"^(pad|padding|eos|bos|eot|end_of_text|unk|sep|mask)(_token)?_id$")


def logits_of(output: Any) -> Any:
    """A tensor, or where libraries put it: ``.logits``, ``["logits"]``, the first of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    found = member(output, "logits")
    if found is not None:
        return found
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    return output


def special_ids(module: torch.nn.Module) -> dict[str, int]:
    """What a module, or its configuration, calls the id of a token: ``eos_token_id``, ``pad_id``;
    also the row that an embedding takes for padding."""
    found: dict[str, int] = {}
    for held in (module, getattr(module, "config", None)):
        for name, value in getattr(held, "__dict__", {}).items():
            if _SPECIAL.match(name) and type(value) is int:
                found[name] = value
    for part in module.modules():
        if type(row := getattr(part, "padding_idx", None)) is int:
            found["padding_idx"] = row
    return found


def member(output: Any, name: str) -> Any:
    """An entry of a mapping or an attribute; None where there is neither."""
    if isinstance(output, dict):  # transformers' outputs are ordered dicts
        return output.get(name)
    return getattr(output, name, None)
