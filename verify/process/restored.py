"""A process put back as it was, so that ports that are tried in it one after another do not inherit
what one of them has changed.

What is watched is the table of ``gpt_verify.process.state``; here is how each of it is set.
"""

from __future__ import annotations

import gc
import locale
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt_verify.process.state import TORCH, attribute_at, generators


@dataclass(frozen=True)
class _Setting:
    """How one thing is read and set."""

    get: Callable[[], Any]
    put: Callable[[Any], object]

    def put_back(self, value: Any) -> None:
        """Only where it is another one: to set some of torch's settings sets others too."""
        if self.get() != value:
            self.put(value)


#: Of torch, what is read by a function → the function that sets it. What is an attribute is
#: assigned; inference mode and the threads between operations cannot be set.
_PUT: Mapping[str, str] = {
    "get_default_dtype": "set_default_dtype",
    "get_default_device": "set_default_device",
    "is_grad_enabled": "set_grad_enabled",
    "is_autocast_enabled": "set_autocast_enabled",
    "is_anomaly_enabled": "set_anomaly_enabled",
    "get_num_threads": "set_num_threads",
    "are_deterministic_algorithms_enabled": "use_deterministic_algorithms",
    "get_float32_matmul_precision": "set_float32_matmul_precision",
    "backends.cuda.flash_sdp_enabled": "backends.cuda.enable_flash_sdp",
    "backends.cuda.mem_efficient_sdp_enabled": "backends.cuda.enable_mem_efficient_sdp",
    "backends.cuda.math_sdp_enabled": "backends.cuda.enable_math_sdp",
}


@contextmanager
def restored() -> Iterator[None]:
    """Whatever runs inside, the process is as before afterwards: settings of torch, of NumPy and of
    Python, and the random states on the CPU. Of libraries that are imported by now."""
    kept = [(setting, setting.get()) for setting in _settings()]
    with ExitStack() as stack:
        for get, put, _ in generators():
            stack.callback(put, get())
        stack.callback(_put_back, kept)
        yield


def _put_back(kept: Sequence[tuple[_Setting, Any]]) -> None:
    """Twice: while torch's two interfaces to TF32 contradict each other, one cannot be read."""
    for setting, value in kept:
        with suppress(RuntimeError):
            setting.put_back(value)
    for setting, value in kept:
        setting.put_back(value)


def _settings() -> Iterator[_Setting]:
    yield _Setting(
        partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)
    )
    yield _Setting(os.getcwd, os.chdir)
    yield _Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    if (numpy := sys.modules.get("numpy")) is not None:
        yield _Setting(numpy.geterr, lambda errors: numpy.seterr(**errors))
        yield _Setting(numpy.get_printoptions, lambda options: numpy.set_printoptions(**options))
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        yield from _of_torch(torch)


def _of_torch(torch: Any) -> Iterator[_Setting]:
    for path, arguments, _ in TORCH.values():
        try:
            found = attribute_at(torch, path)
        except (AttributeError, RuntimeError):  # another version; or the two TF32 interfaces mixed
            continue
        if callable(found) and path in _PUT:
            yield _Setting(
                partial(found, *arguments), partial(attribute_at(torch, _PUT[path]), *arguments)
            )
        elif isinstance(found, dict):
            yield _Setting(partial(dict, found), partial(_refill, found))
        elif not callable(found):
            owner, _, name = path.rpartition(".")
            of = attribute_at(torch, owner)
            yield _Setting(partial(_read, of, name), partial(setattr, of, name))


def _read(of: Any, name: str) -> Any:
    """ "ieee" is what is left of "none" where another precision was set and taken back."""
    value = getattr(of, name)
    return "none" if value == "ieee" else value


def _refill(hooks: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    hooks.clear()
    hooks.update(before)
