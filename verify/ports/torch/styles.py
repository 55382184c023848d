"""Arguments of a module's ``forward`` that mean the same under other names: ``targets`` for the
loss, and a cache that goes in as ``past`` or ``kv_cache`` and comes out again.

What a name means is not promised by anybody. So it is tried, on a few tokens, and said in the
report; what turns out otherwise is not examined rather than judged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_verify.errors import described
from gpt_verify.port import IGNORED, LAST_ONLY, NotExamined

if TYPE_CHECKING:
    from gpt_verify.port import Floats, Tokens
    from gpt_verify.ports.torch.module import TorchModule

#: Names under which a cache is handed in, and under which it is found in what is returned.
CACHES = ("past_key_values", "past", "layer_past", "past_kv", "past_kvs", "kv_cache", "cache")
RETURNED = (*CACHES, "presents", "present", "present_key_values", "new_kv_cache", "new_cache")
#: Labels that a loss may ignore.
IGNORES = (-1, IGNORED)

Call = Callable[..., Any]


class Targets:
    """A module whose ``forward`` takes ``targets``.

    Attributes:
        needed: only where they are given it returns the logits of all positions.
        shifts: it predicts each target from what is before it; otherwise who calls has shifted
            them, and each is predicted at its own place. None where it returns no loss.
    """

    def __init__(self, port: TorchModule, logits_of: Call) -> None:
        self._port, self._logits_of = port, logits_of
        self.needed = False
        self.shifts: bool | None = None
        self._ignored: int | None = None
        try:
            with torch.no_grad():
                self._try()
        except Exception:  # it is taken for a module without them
            self.needed, self.shifts = False, None

    def _try(self) -> None:
        """Call it with and without, on sequences in which no number means two things."""
        config = self._port.config
        length = min(3, config.n_ctx)
        rows = 3 if length == 2 else 2
        ids = torch.arange(rows * length).reshape(rows, length) % config.n_vocab
        ids = ids.to(self._port.device)
        module = self._port.module
        plain, output = self._logits_of(module(ids)), module(ids, targets=ids)
        logits = self._logits_of(output)
        if tuple(logits.shape[:2]) != (rows, length):
            return
        self.needed = length > 1 and _of_one_position(plain, rows)
        found = scalar_of(output)
        if found is not None and length > 1:
            # Who shifts them itself has no use for the first target of a row.
            other = ids.clone()
            other[:, 0] = (other[:, 0] + 1) % config.n_vocab
            self.shifts = bool(scalar_of(module(ids, targets=other)) == found)

    @property
    def remarks(self) -> list[str]:
        """Remarks that the reader of the report should know."""
        said = []
        if self.needed:
            said.append(
                "its logits are those that it returns where targets are given; without, it returns "
                "those of the last position, which are compared as well"
            )
        if self.shifts is not None:
            whom = "itself" if self.shifts else "its caller"
            said.append(f"its loss takes targets, which are taken to be shifted by {whom}")
        return said

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        """``Port.loss``."""
        if not self.shifts:
            tokens, labels = tokens[:, :-1], labels[:, 1:]
        if (labels == IGNORED).any():
            if self._ignored is None:
                self._ignored = self._find_ignored()
            labels = np.where(labels == IGNORED, self._ignored, labels)
        return self._loss(tokens, labels)

    def _loss(self, tokens: Tokens, targets: Tokens) -> float:
        with torch.no_grad():
            output = self._port.module(self._ids(tokens), targets=self._ids(targets))
        found = scalar_of(output)
        if found is None:
            raise NotExamined("forward takes targets and returns no loss")
        return float(found)

    def _find_ignored(self) -> int:
        """The label that it ignores. One that an index from the end stands for is not ignored.

        Raises:
            NotExamined: it ignores none.
        """
        if self._port.device != "cpu":  # elsewhere a label that is no index ends the process
            raise NotExamined("which label its loss ignores is found out on the CPU only")
        n_vocab = self._port.config.n_vocab
        tokens = np.arange(4)[None] % n_vocab
        for ignored in IGNORES:
            targets = tokens.copy()
            targets[0, 2] = ignored
            try:
                loss = self._loss(tokens, targets)
                if n_vocab + ignored >= 0:
                    targets[0, 2] += n_vocab
                    if self._loss(tokens, targets) == loss:
                        continue
            except NotExamined:
                raise
            except Exception:
                continue
            return ignored
        raise NotExamined(f"its loss ignores neither {' nor '.join(map(str, IGNORES))}")

    def _ids(self, ids: Tokens) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(ids, np.int64), device=self._port.device)


class OtherCache:
    """A cache that goes in under one name and comes out under another, or at the end of a tuple.

    Args:
        call: runs the module on tokens, with keywords.
        logits_of: the logits in what that returns.
        name: of the argument.
        takes: all the arguments.
    """

    def __init__(self, call: Call, logits_of: Call, name: str, takes: Mapping[str, Any]) -> None:
        self._call, self._logits_of, self._name = call, logits_of, name
        self._use = {"use_cache": True} if "use_cache" in takes else {}
        self._placed = "position_ids" in takes
        self._worked = False

    def step(self, tokens: Tokens, cache: Any) -> tuple[Floats, Any]:
        """``Port.step``. The cache is how many tokens it has, and what the module returned.

        Raises:
            NotExamined: it does not take what it returns, or returns none.
        """
        start = cache[0] if cache else 0
        more: dict[str, Any] = {}
        if self._placed:
            at = np.arange(start, start + tokens.shape[1])
            more["position_ids"] = at[None].repeat(len(tokens), axis=0)
        return self._step(tokens, cache, more)

    def step_padded(
        self, tokens: Tokens, cache: Any, mask: Tokens, positions: Tokens | None = None
    ) -> tuple[Floats, Any]:
        """``Port.step_padded`` and ``Port.step_padded_at``."""
        more: dict[str, Any] = {"attention_mask": mask}
        if positions is not None:
            more["position_ids"] = positions
        return self._step(tokens, cache, more)

    def _step(self, tokens: Tokens, cache: Any, more: dict[str, Any]) -> tuple[Floats, Any]:
        start, held = cache or (0, None)
        more |= self._use
        end = start + tokens.shape[1]
        if held is not None:
            more[self._name] = held
        try:
            output = self._call(tokens, **more)
            logits: Floats = self._logits_of(output)
        except Exception as error:
            if self._worked or held is None:
                raise
            why = f"how {self._name} is used is not known: {described(error)}"
            raise NotExamined(why) from error
        self._worked = self._worked or held is not None
        found = _cache_of(output)
        if found is None:
            raise NotExamined(f"forward takes {self._name} and returns no cache")
        if logits.shape[1] == 1 < tokens.shape[1]:
            raise NotExamined(f"with a cache {LAST_ONLY}")
        return logits, (end, found)


def cache_argument(takes: Mapping[str, Any]) -> str | None:
    """The name of the argument by which a cache is handed in; None where there is none, or where
    who calls must also say where the tokens are, in words that are not known."""
    placing = ("pos", "start", "offset", "step")
    others = (n for n in takes if n not in ("position_ids", *CACHES))
    if any(word in name.lower() for name in others for word in placing):
        return None
    return next((name for name in CACHES if name in takes), None)


def scalar_of(output: Any) -> torch.Tensor | None:
    """The loss in what a module returned: ``.loss``, ``["loss"]``, or the one number of a tuple."""
    named = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(named, torch.Tensor) and named.numel() == 1:
        return named
    parts = output if isinstance(output, (tuple, list)) else ()
    numbers = [p for p in parts if isinstance(p, torch.Tensor) and p.ndim == 0]
    return numbers[0] if len(numbers) == 1 else None


def _cache_of(output: Any) -> Any:
    """The cache in what a module returned; None where there is none."""
    for name in RETURNED:
        named = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if named is not None:
            return named
    if not isinstance(output, (tuple, list)):
        return None
    rest = [p for p in output[1:] if not (isinstance(p, torch.Tensor) and p.ndim == 0)]
    return next((part for part in reversed(rest) if part is not None), None)


def _of_one_position(logits: Any, rows: int) -> bool:
    shape = tuple(getattr(logits, "shape", ()))
    return len(shape) in (2, 3) and shape[0] == rows and (len(shape) == 2 or shape[1] == 1)


def takes_of(module: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of a module's ``forward``."""
    return inspect.signature(module.forward).parameters
