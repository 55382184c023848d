"""Copies of a torch module, made in the ways in which its users make them.

A copy holds anew what is wte, and whatever lies in its memory; the original lends it the rest
(``torch_skeleton.py``). Only a module that cannot be copied so is copied as a whole, where the
memory for that is free.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import shortened
from gpt_verify.port import NotExamined, Port
from gpt_verify.ports.torch.float64 import cast_to, converted
from gpt_verify.ports.torch.gradients import Differentiation, mean_loss
from gpt_verify.ports.torch.skeleton import Skeleton, copies_itself, tensors_of
from gpt_verify.process.memory import require
from gpt_verify.process.scratch import scratch

if TYPE_CHECKING:
    from gpt_verify.ports.torch.module import TorchModule

#: Of the one step of training: enough to move every weight that the loss depends on.
_RATE = 0.1


@dataclass(frozen=True)
class _Way:
    """One way of copying.

    Attributes:
        copy: makes the copy.
        times: what it takes at its height, in times what is copied.
    """

    copy: Callable[[Skeleton], torch.nn.Module]
    times: float


class Copies:
    """``copies`` of a torch module: see ``gpt_verify.port.Port``."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port

    def copies(self) -> Iterator[tuple[str, Port | str]]:
        """One at a time, at most one of them in memory beside the port."""
        skeletons = self._skeletons()
        for how, way in self._ways().items():
            with ExitStack() as stack:
                made = self._made(way, skeletons, stack)
                try:
                    yield how, made
                finally:
                    if not isinstance(made, str):
                        made.close()

    def _made(self, way: _Way, skeletons: list[Skeleton], stack: ExitStack) -> TorchModule | str:
        """The copy, made of the first skeleton that allows it; the reason where none does."""
        reason = ""
        for skeleton in skeletons:
            try:
                require(int(way.times * skeleton.size))
                with ExitStack() as attempt:
                    made = self._running(way, skeleton, attempt)
                    stack.push(attempt.pop_all())
                return made
            except NotExamined as error:
                return str(error)
            # Whatever a class has against being copied like this is its own affair.
            except Exception as error:
                reason = textwrap.shorten(f"{type(error).__name__}: {shortened(error)}", 120)
        return reason

    def _running(self, way: _Way, skeleton: Skeleton, stack: ExitStack) -> TorchModule:
        with quietly():
            copied = way.copy(skeleton)
        # A class that is built anew may have other parts than the module that was saved.
        names = {name for name, _ in copied.named_parameters(remove_duplicate=False)}
        if absent := [p.parameter for p in self._port.pieces if p.parameter not in names]:
            raise ValueError(f"it has no {absent[0]}")
        made = self._port.like(copied)
        formats = skeleton.lend(made.module)
        if formats:
            lent = [t for t in tensors_of(made.module).values() if id(t) in formats]
            size = sum(t.numel() * formats[id(t)][1].itemsize for t in lent)
            stack.enter_context(
                converted(
                    made.module,
                    lambda: made.logits(self._probe(1)),
                    lambda tensor: formats.get(id(tensor)),
                    before_whole=lambda: require(size),
                )
            )
        logits = made.logits(self._probe(1))
        if skeleton.partial and not np.isfinite(logits).all():
            raise ValueError("its logits are not finite")
        return made

    def _skeletons(self) -> list[Skeleton]:
        """The skeleton that copies the tables alone, where that can be, then the one that copies
        everything."""
        module = self._port.module
        whole = Skeleton(module)
        tables = [table.tensor for table in Differentiation(self._port).tables()]
        if not tables or copies_itself(module):
            return [whole]
        return [Skeleton(module, tables), whole]

    def _ways(self) -> dict[str, _Way]:
        ways = {"deepcopy": _Way(Skeleton.deepcopy, 1)}
        own = next(self._port.module.parameters()).dtype
        for name, dtype in (("float64", torch.float64), ("bfloat16", torch.bfloat16)):
            if name != self._port.dtype:
                ways[f"to({name})"] = _Way(partial(_moved, dtype), dtype.itemsize / own.itemsize)
        other = "cpu" if torch.device(self._port.device).type == "cuda" else "cuda"
        if other == "cpu" or torch.cuda.is_available():
            ways[f"to({other})"] = _Way(partial(_moved, torch.device(other)), 1)
        ways["state_dict"] = _Way(_state_dict, 1)
        ways["torch.save of the state_dict"] = _Way(_saved_state, 2)
        ways["torch.save of the module"] = _Way(_saved_whole, 1)
        ways["safetensors"] = _Way(_safetensors, 2)
        if hasattr(self._port.module, "save_pretrained"):
            ways["save_pretrained"] = _Way(_pretrained, 2)
        # The gradient comes in by both ends before it is added up.
        ways["one optimiser step"] = _Way(self._stepped, 2)
        return ways

    def _stepped(self, skeleton: Skeleton) -> torch.nn.Module:
        if self._port.config.n_ctx < 2:
            raise ValueError("one position predicts nothing")
        made = self._port.like(skeleton.lent())
        tokens = self._probe(8)
        with Differentiation(made).recording():
            for name, parameter in made.module.named_parameters():
                parameter.requires_grad_(name in skeleton.anew)
            mean_loss(made.run(tokens), tokens).backward()
            # Memory of its own only now, when there is one gradient of each table and not one from
            # either end.
            skeleton.parted(made.module)
            trained = [p for p in made.module.parameters() if p.requires_grad]
            optimiser = torch.optim.SGD(trained, lr=_RATE)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        module = made.module
        made.close()
        return module

    def _probe(self, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        config = self._port.config
        shape = (1, min(length, config.n_ctx))
        return np.random.default_rng(0).integers(0, config.n_vocab, shape, dtype=np.int64)


def _moved(to: torch.dtype | torch.device, skeleton: Skeleton) -> torch.nn.Module:
    """Cast, or on another device. Both make new memory; what was left where it is gets its own."""
    module = skeleton.in_place()
    moved = cast_to(module, to) if isinstance(to, torch.dtype) else module.to(to)
    return skeleton.parted(moved)


def _blank(skeleton: Skeleton) -> torch.nn.Module:
    """The same structure; whatever is not loaded into it shows as NaN."""
    made = skeleton.parted(skeleton.in_place())
    with torch.no_grad():
        for value in made.state_dict().values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.fill_(torch.nan)
    return made


def _state_dict(skeleton: Skeleton) -> torch.nn.Module:
    made = _blank(skeleton)
    made.load_state_dict(skeleton.in_place().state_dict())
    # A loader may keep the very tensors that it is handed.
    return skeleton.parted(made)


def _saved_state(skeleton: Skeleton) -> torch.nn.Module:
    with scratch() as directory:
        file = Path(directory) / "state.pt"
        torch.save(skeleton.in_place().state_dict(), file)
        made = _blank(skeleton)
        made.load_state_dict(torch.load(file, weights_only=True))
    return made


def _saved_whole(skeleton: Skeleton) -> torch.nn.Module:
    with scratch() as directory:
        file = Path(directory) / "module.pt"
        torch.save(skeleton.in_place(), file)
        # Written a moment ago, by this process.
        made: torch.nn.Module = torch.load(file, weights_only=False)
    return made


def _safetensors(skeleton: Skeleton) -> torch.nn.Module:
    from safetensors.torch import load_model, save_model

    with scratch() as directory:
        file = Path(directory) / "model.safetensors"
        save_model(skeleton.in_place(), str(file))
        made = _blank(skeleton)
        load_model(made, str(file))
    return made


def _pretrained(skeleton: Skeleton) -> torch.nn.Module:
    """What is stored and loaded of a skeleton has one block; all of them are lent afterwards."""
    module: Any = skeleton.module
    saved: Any = _one_block(skeleton) if skeleton.partial else module
    attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
    options = {} if attention is None else {"attn_implementation": attention}
    with scratch() as directory:
        saved.save_pretrained(directory)
        made: Any = type(module).from_pretrained(directory, **options)
    made = cast_to(made, next(module.parameters()).dtype)
    if skeleton.partial:
        whole = skeleton.lent()
        for name, _ in _blocks(module):
            made.set_submodule(name, whole.get_submodule(name))
        made.config.num_hidden_layers = module.config.num_hidden_layers
    return made


def _one_block(skeleton: Skeleton) -> torch.nn.Module:
    """A module on the original's memory, without the blocks after the first.

    Raises:
        ValueError: it has no list of blocks that its configuration counts.
    """
    made: Any = skeleton.lent()
    for name, blocks in _blocks(made):
        made.set_submodule(name, blocks[:1])
    made.config.num_hidden_layers = 1
    return made


def _blocks(module: Any) -> list[tuple[str, Any]]:
    """Lists of as many parts as the model has layers, with their names."""
    layers = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    found = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == layers
    ]
    if not found:
        raise ValueError("no list of blocks that its configuration counts")
    return found


def quietly() -> AbstractContextManager[None]:
    """No progress bars of transformers, where that is what copies."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return nullcontext()
    from gpt_verify.ports.quiet import quiet

    return quiet(transformers)
