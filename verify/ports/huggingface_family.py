"""transformers' models of the families, with weights of their own or with the checkpoint's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import stored_tensors
from gpt_verify.errors import PortError
from gpt_verify.reference.config import Config

#: What transformers' configurations call the way in which experts are computed.
_EXPERTS = "_experts_implementation"


@dataclass(frozen=True)
class Altered:
    """A model that is not as the checkpoint says, on purpose.

    Attributes:
        name: of the port.
        config: changes the configuration that it is built from.
        module: changes what is built, each time.
    """

    name: str
    config: Callable[[Any], None]
    module: Callable[[Any], None]


def family_model(
    transformers: Any,
    checkpoint: Checkpoint,
    options: dict[str, Any],
    altered: Altered | None = None,
) -> Any:
    """The model of the checkpoint's ``config.json`` with the checkpoint's tensors.

    Args:
        transformers: the library.
        checkpoint: the tensors, and the directory of the configuration.
        options: of ``from_pretrained``.
        altered: what is done to it.

    Raises:
        PortError: there is no ``config.json``.
    """
    import torch

    if not (checkpoint.path / "config.json").is_file():
        raise PortError(f"{checkpoint.path}: has no config.json, which transformers reads")
    model_class = model_class_of(transformers, checkpoint.config)
    config = transformers.AutoConfig.from_pretrained(checkpoint.path)
    # A copy of every tensor, made once: what ``make`` returns is nobody else's.
    state = {
        stored.name: torch.from_numpy(stored.make())
        for stored in stored_tensors(checkpoint.config, checkpoint.tensors)
    }
    if altered is not None:
        altered.config(config)
    model = model_class.from_pretrained(None, config=config, state_dict=state, **options)
    if altered is not None:
        altered.module(model)
    return model


def again(model: Any, altered: Altered | None) -> Any:
    """Another model of the same kind, whatever its weights; it asks one expert after the other,
    because the kernel for all of them at once does not take float64."""
    config = copy.deepcopy(model.config)
    if getattr(config, _EXPERTS, None) is not None:
        setattr(config, _EXPERTS, "eager")
    made = type(model)(config)
    if altered is not None:
        altered.module(made)
    return made


def model_class_of(transformers: Any, config: Config) -> Any:
    """The class with a head."""
    return getattr(transformers, FAMILIES[config.architecture].model)
