"""A torch module that learns: in evaluation mode, in training mode with every dropout at 0, and
with gradient checkpointing, where it has a switch for that. It is put back as it was.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from gpt_verify.errors import described
from gpt_verify.port import IGNORED, Floats, GradientSink, Lesson, NotExamined, TrainingMode
from gpt_verify.ports.torch.gradients import (
    Arriving,
    Differentiation,
    overwrites,
    set_hooks,
    wide,
)
from gpt_verify.ports.torch.outputs import logits_of, member
from gpt_verify.ports.torch.state import kept
from gpt_verify.ports.torch.styles import Targets, scalar_of, takes_of
from gpt_verify.ports.torch.trace import to_numpy
from gpt_verify.process.memory import require

if TYPE_CHECKING:
    from gpt_verify.ports.torch.module import TorchModule

#: Flags by which modules checkpoint: ``gradient_checkpointing``, ``use_checkpoint``.
_FLAG = re.compile(r"^_?(use|do|enable|grad|gradient|act|activation)?\w*checkpoint(ing)?$")
#: What is called so and saves the weights.
_NO_FLAG = re.compile(r"load|save|resum|init|best|from|path")
#: Methods of transformers' models.
_ENABLE = ("activation_checkpointing_enable", "gradient_checkpointing_enable")


class Training:
    """``learn``, ``modes`` and ``unfrozen`` of a torch module: see ``gpt_verify.port``.

    Args:
        port: the module.
        differentiation: its derivatives.
        targets: how its ``forward`` takes targets, where it takes those in place of labels.
    """

    def __init__(
        self, port: TorchModule, differentiation: Differentiation, targets: Targets | None
    ) -> None:
        self._port, self._differentiation, self._targets = port, differentiation, targets
        self._drops = False

    def learn(self, lessons: Sequence[Lesson], sink: GradientSink) -> list[tuple[float, Floats]]:
        """The capability ``LEARN``."""
        for scale in self._differentiation.scales():
            sink.restart()
            arriving = Arriving(self._port, sink, scale)
            with self._differentiation.recording(), self._own_gradients() as leaves:
                outcomes = [self._learnt(lesson, scale) for lesson in lessons]
                for leaf in leaves:
                    if leaf.grad is not None:
                        arriving.at_leaf(leaf, leaf.grad)
            if arriving.finite:
                break
        return outcomes

    def _learnt(self, lesson: Lesson, scale: float) -> tuple[float, Floats]:
        """Forwards and backwards, once."""
        before = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a switch that is called otherwise from now on
            loss, logits = self._loss(lesson)
            if not (loss.requires_grad and logits.requires_grad):
                raise NotExamined("no gradients: its output does not depend on its parameters")
            drawn = not torch.equal(before, torch.get_rng_state())
            if drawn and self._port.module.training and not self._drops:
                raise NotExamined("it draws at random although every dropout that it shows is 0")
            try:
                (loss * lesson.share * scale).backward()
            except RuntimeError as error:
                if not overwrites(error):
                    raise
                why = "it overwrites what its backward pass needs: it is for inference"
                raise NotExamined(f"no training: {why}") from error
        return float(loss.detach()), np.array(to_numpy(self._port.bare(logits.detach())))

    def _loss(self, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
        """By the module's own code, where it has one; and the logits."""
        module, takes = self._port.module, takes_of(self._port.module)
        ids, labels = self._tensor(lesson.tokens), self._tensor(lesson.labels)
        more: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        if lesson.mask is not None:
            more["attention_mask"] = self._tensor(lesson.mask)
            if lesson.positions is not None:
                more["position_ids"] = self._tensor(lesson.positions)
        if lesson.items is not None:
            more |= self._items(lesson.items)
        if "labels" in takes and not lesson.plain:
            output = module(ids, labels=labels, **more)
            loss, logits = member(output, "loss"), logits_of(output)
            if isinstance(loss, torch.Tensor) and isinstance(logits, torch.Tensor):
                return loss, logits
        own = self._targets is not None and self._targets.shifts is not None and not lesson.plain
        if own and not more and not (lesson.labels[:, 1:] == IGNORED).any():
            return self._by_targets(ids, labels)
        logits = logits_of(module(ids, **more)) if more else self._port.run(lesson.tokens)
        return _mean_loss(logits, labels), logits

    def _by_targets(
        self, ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._targets is not None
        if not self._targets.shifts:
            ids, labels = ids[:, :-1], labels[:, 1:]
        output = self._port.module(ids, targets=labels)
        loss, logits = scalar_of(output), logits_of(output)
        if loss is None:
            raise NotExamined("forward takes targets and returns no loss")
        return loss, logits

    def _items(self, items: int) -> dict[str, Any]:
        """transformers' name for the number of predictions of all batches of a step."""
        takes, name = takes_of(self._port.module), "num_items_in_batch"
        loose = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
        if name in takes or (loose and hasattr(self._port.module, "loss_function")):
            return {name: torch.tensor(items, device=self._port.device)}
        raise NotExamined("its loss takes no number of predictions")

    def modes(self) -> list[TrainingMode]:
        """The capability ``MODES``."""
        found = [TrainingMode("train()", False, partial(self._mode, lambda: None))]
        for name, switch in _switches(self._port.module).items():
            enter = partial(self._mode, switch)
            found.append(TrainingMode(f"train() and {name}", True, enter))
        return found

    @contextmanager
    def unfrozen(self) -> Iterator[None]:
        """The capability ``UNFROZEN``: by its own methods, where it has them."""
        module: Any = self._port.module
        with self._kept():
            own: list[Any] = [getattr(module, name, None) for name in ("freeze", "unfreeze")]
            if all(_takes_nothing(method) for method in own):
                for method in own:
                    method()
            module.requires_grad_(False)
            module.requires_grad_(True)
            yield

    @contextmanager
    def _mode(self, switch: Callable[[], None], drops: bool) -> Iterator[None]:
        module = self._port.module
        with self._kept():
            if not drops:
                _drop_nothing(module)
            try:
                module.train()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    switch()
            except Exception as error:
                raise NotExamined(f"it cannot be put into that mode: {described(error)}") from error
            self._drops = drops
            try:
                yield
            finally:
                self._drops = False

    def _kept(self) -> AbstractContextManager[None]:
        """Everything is put back; the weights themselves where the module has a ``train`` of its
        own, which may write to them."""
        module = self._port.module
        own = any(
            getattr(type(part), name) is not getattr(torch.nn.Module, name)
            for part in module.modules()
            for name in ("train", "requires_grad_")
        )
        if own:
            require(sum(tensor.nbytes for tensor in module.parameters()))
        return kept(module, values=own)

    @contextmanager
    def _own_gradients(self) -> Iterator[list[torch.Tensor]]:
        """The parameters without what they have accumulated, and without anybody who trains while
        the backward pass runs."""
        leaves = [p for p in self._port.module.parameters() if p.is_floating_point()]
        before = [(p, p.grad, p._post_accumulate_grad_hooks) for p in leaves]
        for p in leaves:
            p.grad = None
            set_hooks(p, None)
        try:
            yield leaves
        finally:
            for p, grad, hooks in before:
                p.grad = grad
                set_hooks(p, hooks)

    def _tensor(self, ids: Any) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self._port.device)


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    targets = labels[:, 1:].flatten()
    return functional.cross_entropy(wide(logits)[:, :-1].flatten(0, 1), targets)


def _configs(module: torch.nn.Module) -> list[Any]:
    """The objects in which modules keep their settings."""
    held = (getattr(part, name, None) for part in module.modules() for name in ("config", "cfg"))
    found = {id(c): c for c in held if hasattr(c, "__dict__") and not isinstance(c, type)}
    return list(found.values())


def _drop_nothing(module: torch.nn.Module) -> None:
    """Every probability of a dropout becomes 0."""
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
    for held in (*module.modules(), *_configs(module)):
        for name, value in list(vars(held).items()):
            if "drop" in name.lower() and isinstance(value, float) and 0.0 < value <= 1.0:
                object.__setattr__(held, name, 0.0)


def _switches(module: Any) -> dict[str, Callable[[], None]]:
    """What turns checkpointing on: transformers' method, or flags that are off."""
    for name in _ENABLE:
        if callable(how := getattr(module, name, None)):
            offered = getattr(module, "supports_gradient_checkpointing", True)
            return {f"{name}()": how} if offered and _takes_nothing(how) else {}
    flags: dict[str, list[Any]] = {}
    for held in (*module.modules(), *_configs(module)):
        for name, value in vars(held).items():
            if value is False and _FLAG.match(name) and not _NO_FLAG.search(name):
                flags.setdefault(name, []).append(held)
    return {f"{name} = True": partial(_set, name, held) for name, held in flags.items()}


def _set(name: str, held: Sequence[Any]) -> None:
    for each in held:
        object.__setattr__(each, name, True)


def _takes_nothing(method: Any) -> bool:
    """It can be called without arguments."""
    if not callable(method):
        return False
    empty = inspect.Parameter.empty
    loose = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    takes = inspect.signature(method).parameters.values()
    return all(p.default is not empty or p.kind in loose for p in takes)
