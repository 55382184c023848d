"""Global state: what is read, that reading changes nothing, and that each change shows."""

from __future__ import annotations

import gc
import locale
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random  # which is otherwise loaded at its first use
import pytest
import torch
from torch.nn.modules import module as torch_module

from gpt_verify.process.restored import restored
from gpt_verify.process.state import INITIAL, RANDOM_STATES, TORCH, changes, snapshot

ROOT = Path(__file__).resolve().parents[2]


def new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_no_library_is_imported() -> None:
    code = (
        "import sys\nfrom gpt_verify.process.state import snapshot\n"
        "before = set(sys.modules)\nstate = snapshot()\n"
        "assert set(sys.modules) == before and 'torch' not in before\n"
        "assert not any('torch' in name or 'NumPy' in name for name in state)\n"
        "print(len(state))"
    )
    assert int(new_process(code)) >= 7


def test_initial_is_what_a_new_process_has() -> None:
    """Also after everything that the ports of transformers import."""
    code = (
        "import torch\nfrom gpt_verify.process.state import INITIAL, snapshot\n"
        "def wrong():\n"
        "    state = snapshot()\n"
        "    assert INITIAL.keys() <= state.keys(), INITIAL.keys() - state.keys()\n"
        "    return {n: state[n] for n in INITIAL if state[n] != INITIAL[n]}\n"
        "assert not wrong(), wrong()\nbefore = snapshot()\n"
        "from transformers import GPT2LMHeadModel, GPT2Config, GPT2TokenizerFast\n"
        "import safetensors.torch\n"
        "model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5))\n"
        "after = snapshot()\n"
        "print([n for n in before if before[n] != after[n]])"
    )
    assert new_process(code).strip() == '["torch\'s random state"]'  # the first weights


def test_it_is_the_same_twice() -> None:
    assert snapshot() == snapshot()


def test_every_name_is_read_here() -> None:
    """None is misspelt: this torch has them all."""
    assert TORCH.keys() <= snapshot().keys()
    assert RANDOM_STATES - {"torch's CUDA random state"} <= snapshot().keys()
    assert INITIAL.keys() <= TORCH.keys()


@contextmanager
def attribute(of: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)


@contextmanager
def called(change: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


@contextmanager
def torch_hook() -> Iterator[None]:
    handle = torch_module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def drawn(get: Callable[[], Any], put: Callable[[Any], Any], draw: Any) -> Iterator[None]:
    state = get()
    draw()
    try:
        yield
    finally:
        put(state)


def flush(on: bool) -> None:
    assert torch.set_flush_denormal(on)


def set_locale(name: str) -> None:
    locale.setlocale(locale.LC_ALL, name)


def _another_handler() -> signal.Handlers:
    """Not the present one: what runs in the background of a shell ignores the signal already."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return signal.SIG_DFL if ignored else signal.SIG_IGN


def set_interrupt(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)


CHANGES: dict[str, Callable[[], Any]] = {
    "torch's default dtype": lambda: called(
        torch.set_default_dtype, torch.float64, torch.get_default_dtype()
    ),
    "torch's default device": lambda: called(torch.set_default_device, "meta", None),
    "torch's grad mode": torch.no_grad,
    "torch's inference mode": torch.inference_mode,
    "torch's autocast on cpu": lambda: torch.autocast("cpu"),
    "torch's anomaly mode": lambda: called(torch.autograd.set_detect_anomaly, True, False),
    "torch's threads": lambda: called(
        torch.set_num_threads, torch.get_num_threads() + 1, torch.get_num_threads()
    ),
    "torch's deterministic algorithms": lambda: called(
        torch.use_deterministic_algorithms, True, False
    ),
    "torch's float32 matmul precision": lambda: called(
        torch.set_float32_matmul_precision, "high", "highest"
    ),
    "float32 precision of CUDA matmuls": lambda: attribute(
        torch.backends.cuda.matmul, "fp32_precision", "tf32"
    ),
    "TF32 in CUDA matmuls": lambda: attribute(torch.backends.cuda.matmul, "allow_tf32", True),
    "TF32 in cuDNN": lambda: attribute(torch.backends.cudnn, "allow_tf32", False),
    "cuDNN's benchmark mode": lambda: attribute(torch.backends.cudnn, "benchmark", True),
    "cuDNN's deterministic mode": lambda: attribute(torch.backends.cudnn, "deterministic", True),
    "flash attention": lambda: called(torch.backends.cuda.enable_flash_sdp, False, True),
    "hooks on every torch module": torch_hook,
    "torch's random state": lambda: drawn(
        torch.get_rng_state, torch.set_rng_state, lambda: torch.rand(1)
    ),
    "NumPy's random state": lambda: drawn(
        np.random.get_state, np.random.set_state, lambda: np.random.rand()
    ),
    "Python's random state": lambda: drawn(random.getstate, random.setstate, random.random),
    "NumPy's error handling": lambda: np.errstate(all="ignore"),
    "NumPy's print options": lambda: np.printoptions(precision=3),
    "subnormal numbers": lambda: called(flush, True, False),
    "the recursion limit": lambda: called(
        sys.setrecursionlimit, sys.getrecursionlimit() + 1, sys.getrecursionlimit()
    ),
    "the locale": lambda: called(set_locale, "C", locale.setlocale(locale.LC_ALL)),
    "the handler of SIGINT": lambda: called(
        set_interrupt, _another_handler(), signal.getsignal(signal.SIGINT)
    ),
    "garbage collection": lambda: drawn(gc.isenabled, lambda on: on and gc.enable(), gc.disable),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows(name: str) -> None:
    if name == "the locale" and locale.setlocale(locale.LC_ALL) == "C":
        set_locale("C.UTF-8")
    before = snapshot()
    with CHANGES[name]():
        during = snapshot()
    assert during[name] != before[name]
    after = snapshot()
    assert {n: v for n, v in after.items() if n in before} == before


def test_a_recursion_limit_may_be_raised() -> None:
    """As torch.compile does; lowered, it breaks what ran before."""
    name, limit = "the recursion limit", sys.getrecursionlimit()
    assert changes({name: limit}, {name: 2 * limit}) == []
    assert [c.name for c in changes({name: limit}, {name: limit - 1})] == [name]


def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    monkeypatch.chdir(tmp_path)
    assert snapshot()["the working directory"] != before["the working directory"]


#: What cannot be set back, or in the main thread alone; what is no difference where it is raised.
STAYS = {"the recursion limit", "the handler of SIGINT", "subnormal numbers"}
STAYS |= {"torch's inference mode"}


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in STAYS])
def test_a_change_is_put_back(name: str) -> None:
    before = snapshot()
    change = CHANGES[name]()
    with restored():
        change.__enter__()
        assert name in {c.name for c in changes(before, snapshot())}
    assert changes(before, snapshot()) == []
    change.__exit__(None, None, None)


def test_it_is_put_back_after_an_error() -> None:
    before = snapshot()
    with pytest.raises(KeyError), restored():
        torch.manual_seed(7)
        torch.set_default_dtype(torch.float64)
        raise KeyError
    assert changes(before, snapshot()) == []
