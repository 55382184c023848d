"""Copies of a torch module, made in the ways in which its users make them."""

from __future__ import annotations

import copy
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verify.ports.port import Port
from verify.ports.torch_gradients import Differentiation, mean_loss
from verify.ports.torch_memory import clusters, span, view_like

if TYPE_CHECKING:
    from verify.ports.torch_module import TorchModule

Way = Callable[[], torch.nn.Module]

#: Of the one step of training: enough to move every weight that the loss depends on.
_RATE = 0.1


class Copies:
    """``copies`` of a torch module: see ``verify.ports.port.Port``."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port

    def copies(self) -> Iterator[tuple[str, Port | str]]:
        """One at a time, at most one of them in memory beside the port."""
        for how, way in self._ways().items():
            made: TorchModule | None = None
            try:
                with _quiet():
                    made = self._port.like(way())
                made.logits(self._probe(1))
            # Whatever a class has against being copied like this is its own affair.
            except Exception as error:
                made = None
                yield how, textwrap.shorten(f"{type(error).__name__}: {error}", 120)
                continue
            try:
                yield how, made
            finally:
                made.close()

    def _ways(self) -> dict[str, Way]:
        ways: dict[str, Way] = {"deepcopy": self._deepcopy}
        for name, dtype in (("float64", torch.float64), ("bfloat16", torch.bfloat16)):
            if name != self._port.dtype:
                ways[f"to({name})"] = lambda dtype=dtype: self._rebuilt().to(dtype)  # type: ignore[misc]  # bound now
        other = "cpu" if torch.device(self._port.device).type == "cuda" else "cuda"
        if other == "cpu" or torch.cuda.is_available():
            ways[f"to({other})"] = lambda: self._rebuilt().to(other)
        ways["state_dict"] = self._state_dict
        ways["torch.save of the state_dict"] = self._saved_state
        ways["torch.save of the module"] = self._saved_whole
        ways["safetensors"] = self._safetensors
        if hasattr(self._port.module, "save_pretrained"):
            ways["save_pretrained"] = self._pretrained
        ways["one optimiser step"] = self._stepped
        return ways

    def _deepcopy(self) -> torch.nn.Module:
        return copy.deepcopy(self._port.module)

    def _rebuilt(self) -> torch.nn.Module:
        """What building it anew would give, which is more than a deepcopy: of two parameters that
        lie in one memory, that makes two memories."""
        made = self._deepcopy()
        original = dict(self._port.module.named_parameters(remove_duplicate=False))
        copies = {id(original[n]): p for n, p in made.named_parameters(remove_duplicate=False)}
        for cluster in clusters(original.values()):
            if len(cluster) > 1:
                first, size = span(cluster)
                flat = cluster[0].detach().as_strided((size,), (1,), first).clone()
                for tensor in cluster:
                    copies[id(tensor)].data = view_like(flat, tensor, first)
        return made

    def _blank(self) -> torch.nn.Module:
        """The same structure; whatever is not loaded into it shows as NaN."""
        made = self._rebuilt()
        with torch.no_grad():
            for value in made.state_dict().values():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    value.fill_(torch.nan)
        return made

    def _state_dict(self) -> torch.nn.Module:
        made = self._blank()
        made.load_state_dict(self._port.module.state_dict())
        return made

    def _saved_state(self) -> torch.nn.Module:
        made = self._blank()
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "state.pt"
            torch.save(self._port.module.state_dict(), file)
            made.load_state_dict(torch.load(file, weights_only=True))
        return made

    def _saved_whole(self) -> torch.nn.Module:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "module.pt"
            torch.save(self._port.module, file)
            # Written a moment ago, by this process.
            made: torch.nn.Module = torch.load(file, weights_only=False)
        return made

    def _safetensors(self) -> torch.nn.Module:
        from safetensors.torch import load_model, save_model

        made = self._blank()
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "model.safetensors"
            save_model(self._port.module, str(file))
            load_model(made, str(file))
        return made

    def _pretrained(self) -> torch.nn.Module:
        module: Any = self._port.module
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        options = {} if attention is None else {"attn_implementation": attention}
        with tempfile.TemporaryDirectory() as directory:
            module.save_pretrained(directory)
            made: torch.nn.Module = type(module).from_pretrained(directory, **options)
        return made.to(next(module.parameters()).dtype)

    def _stepped(self) -> torch.nn.Module:
        if self._port.config.n_ctx < 2:
            raise ValueError("one position predicts nothing")
        made = self._port.like(self._rebuilt())
        tokens = self._probe(8)
        with Differentiation(made).recording():
            trained = [p for p in made.module.parameters() if p.is_floating_point()]
            optimiser = torch.optim.SGD(trained, lr=_RATE)
            mean_loss(made.run(tokens), tokens).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        module = made.module
        made.close()
        return module

    def _probe(self, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        config = self._port.config
        shape = (1, min(length, config.n_ctx))
        return np.random.default_rng(0).integers(0, config.n_vocab, shape, dtype=np.int64)


def _quiet() -> AbstractContextManager[None]:
    """No progress bars of transformers, where that is what copies."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return nullcontext()
    from verify.ports.huggingface import quiet

    return quiet(transformers)
