"""What belongs to the whole process, and a port must therefore leave as it found it.

A port that sets the default dtype, turns gradients off or draws from a global generator changes
what its neighbours compute. Only libraries that are imported already are asked.

Not listed, because an ordinary import changes them: the environment, warning filters and loggers.
"""

from __future__ import annotations

import gc
import hashlib
import locale
import os
import signal
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

State = dict[str, Hashable]

_RECURSION = "the recursion limit"

#: Building a module draws its first weights, which is ordinary; running one draws nothing.
RANDOM_STATES = frozenset(
    {"torch's random state", "torch's CUDA random state", "NumPy's random state"}
    | {"Python's random state"}
)

#: Name → (path of a function or an attribute of torch, its arguments, its value in a new process
#: or None where that depends on the machine). What an older torch does not have is not asked.
TORCH: Mapping[str, tuple[str, tuple[Any, ...], Hashable]] = {
    "torch's default dtype": ("get_default_dtype", (), "torch.float32"),
    "torch's default device": ("get_default_device", (), "cpu"),
    "torch's grad mode": ("is_grad_enabled", (), True),
    "torch's inference mode": ("is_inference_mode_enabled", (), False),
    "torch's autocast on cpu": ("is_autocast_enabled", ("cpu",), False),
    "torch's autocast on cuda": ("is_autocast_enabled", ("cuda",), False),
    "torch's anomaly mode": ("is_anomaly_enabled", (), False),
    "torch's threads": ("get_num_threads", (), None),
    "torch's threads between operations": ("get_num_interop_threads", (), None),
    "torch's deterministic algorithms": ("are_deterministic_algorithms_enabled", (), False),
    "torch's deterministic algorithms, warnings only": (
        "is_deterministic_algorithms_warn_only_enabled",
        (),
        False,
    ),
    "torch's float32 matmul precision": ("get_float32_matmul_precision", (), "highest"),
    "TF32 in CUDA matmuls": ("backends.cuda.matmul.allow_tf32", (), False),
    "TF32 in cuDNN": ("backends.cudnn.allow_tf32", (), True),
    "float32 precision": ("backends.fp32_precision", (), "none"),
    "float32 precision of CUDA matmuls": ("backends.cuda.matmul.fp32_precision", (), "none"),
    "float32 precision of mkldnn matmuls": ("backends.mkldnn.matmul.fp32_precision", (), "none"),
    "float16 sums of CUDA matmuls": (
        "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
        (),
        True,
    ),
    "bfloat16 sums of CUDA matmuls": (
        "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
        (),
        True,
    ),
    "cuDNN": ("backends.cudnn.enabled", (), True),
    "cuDNN's benchmark mode": ("backends.cudnn.benchmark", (), False),
    "cuDNN's deterministic mode": ("backends.cudnn.deterministic", (), False),
    "mkldnn": ("backends.mkldnn.enabled", (), True),
    "flash attention": ("backends.cuda.flash_sdp_enabled", (), True),
    "memory-efficient attention": ("backends.cuda.mem_efficient_sdp_enabled", (), True),
    "attention in plain operations": ("backends.cuda.math_sdp_enabled", (), True),
    "hooks on every torch module": ("nn.modules.module._global_forward_hooks", (), 0),
    "hooks before every torch module": ("nn.modules.module._global_forward_pre_hooks", (), 0),
}

#: What a process is known to begin with, for libraries that were not imported when it was asked.
INITIAL: Mapping[str, Hashable] = {
    name: value
    for name, (_, _, value) in TORCH.items()
    # The variable is torch's own way of beginning with another value.
    if value is not None
    and not ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" in os.environ and "matmul" in name)
}


@dataclass(frozen=True)
class Change:
    """One name whose value is another one than before."""

    name: str
    before: Hashable
    after: Hashable

    @property
    def is_random(self) -> bool:
        return self.name in RANDOM_STATES

    def __str__(self) -> str:
        return self.name if self.is_random else f"{self.name} ({self.before} → {self.after})"


@dataclass(frozen=True)
class Loading:
    """The state of the process before a port was built, and after."""

    before: State
    after: State


def changes(before: State, after: State) -> list[Change]:
    """The names of what differs. A library that was imported in between began with ``INITIAL``.

    A recursion limit that was raised is no difference: whatever ran before runs the same.
    torch.compile raises it, whenever it finds nothing compiled in its cache.
    """
    known = {**INITIAL, **before}
    return [
        Change(name, known[name], value)
        for name, value in sorted(after.items())
        if name in known and known[name] != value and not _raised(name, known[name], value)
    ]


def _raised(name: str, before: Hashable, after: Hashable) -> bool:
    if name != _RECURSION:
        return False
    assert isinstance(before, int) and isinstance(after, int), "it is a number"
    return after > before


def changed_by(call: Callable[[], object]) -> list[Change]:
    """The changes that one call makes. The random states are as before afterwards.

    They are moved first: a call that always seeds leaves the state that it left the last time.
    """
    with _random_states_moved():
        before = snapshot()
        call()
        return changes(before, snapshot())


def seeded_by(call: Callable[[], object]) -> set[str]:
    """The random states that are the same after a call whatever they were before it. They are as
    before afterwards."""
    after = []
    for draws in (1, 2):
        with _random_states_moved(draws):
            call()
            after.append(snapshot())
    one, other = after
    return {name for name in RANDOM_STATES & one.keys() & other.keys() if one[name] == other[name]}


@contextmanager
def _random_states_moved(draws: int = 1) -> Iterator[None]:
    with ExitStack() as stack:
        for get, put, draw in generators():
            stack.callback(put, get())
            for _ in range(draws):
                draw()
        yield


def generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], Any]]]:
    """How to read, set and move each random state that is there."""
    if (random := sys.modules.get("random")) is not None:
        yield random.getstate, random.setstate, random.random
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        yield numpy.get_state, numpy.set_state, numpy.random
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        draw = partial(torch.rand, 1, device="cpu")
        yield torch.get_rng_state, torch.set_rng_state, draw


def snapshot() -> State:
    """Name → value of everything that can be read now. Random states are digests.

    Two snapshots are compared on the names that both have.
    """
    return dict([*_python(), *_numpy(), *_torch()])


def _python() -> Iterator[tuple[str, Hashable]]:
    yield _RECURSION, sys.getrecursionlimit()
    yield "the locale", locale.setlocale(locale.LC_ALL)
    yield "the working directory", os.getcwd()
    yield "garbage collection", gc.isenabled()
    yield "the handler of SIGINT", repr(signal.getsignal(signal.SIGINT))
    yield "the handler of SIGTERM", repr(signal.getsignal(signal.SIGTERM))
    smallest = sys.float_info.min
    yield "subnormal numbers", "kept" if smallest / 2 > 0 else "flushed to zero"
    if (random := sys.modules.get("random")) is not None:
        yield "Python's random state", _digest(repr(random.getstate()).encode())


def _numpy() -> Iterator[tuple[str, Hashable]]:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return
    yield "NumPy's error handling", repr(sorted(numpy.geterr().items()))
    yield "NumPy's print options", repr(numpy.get_printoptions())
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        state = random.get_state(legacy=False)
        yield "NumPy's random state", _digest(*map(_bytes, _leaves(state)))


def _torch() -> Iterator[tuple[str, Hashable]]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):  # absent, or half imported
        return
    for name, (path, arguments, _) in TORCH.items():
        try:
            value = attribute_at(torch, path)
            value = value(*arguments) if callable(value) else value
        except (AttributeError, RuntimeError):  # another version; or the two TF32 interfaces mixed
            continue
        if isinstance(value, Mapping):
            value = len(value)
        elif value == "ieee":  # what is left when "none", the same thing, was set back
            value = "none"
        yield name, value if isinstance(value, (bool, int, str)) else str(value)
    yield "torch's random state", _digest(torch.get_rng_state().numpy().tobytes())
    if torch.cuda.is_initialized():
        states = (state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
        yield "torch's CUDA random state", _digest(*states)


def attribute_at(root: Any, path: str) -> Any:
    """An attribute by its dotted path; a submodule that was not imported is not there."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(value[key])
    else:
        yield value


def _bytes(value: Any) -> bytes:
    return value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
