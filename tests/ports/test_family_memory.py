"""A model of a family is built from one copy of its weights, and its float64 copy holds no other:
tensor by tensor they are widened while they are used."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from families import Sources
from models import failures
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_hook

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.progress import Silent
from gpt_verify.port import FLOAT64_COPY, GRADIENTS, Gradients
from gpt_verify.ports import huggingface_family
from gpt_verify.ports.huggingface import huggingface
from gpt_verify.ports.huggingface_family import again
from gpt_verify.ports.torch import widening
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.process import memory

#: Among them a tied head and one of its own, norms with an offset, stacked experts, a softcap.
NAMES = ("qwen3", "llama", "gemma2", "gpt_oss", "bloom", "mixtral")
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2]])


def module_in_float64(port: TorchModule) -> Any:
    """The same model, wholly in float64: what the copy must compute, whatever it holds."""
    with widening.widening():
        made = again(port.module, None).double()
    made.load_state_dict({k: v.double() for k, v in port.module.state_dict().items()})
    return made.eval()


def logits_in_float64(port: TorchModule) -> NDArray[Any]:
    made = module_in_float64(port)
    with torch.no_grad(), widening.widening():
        output: NDArray[Any] = made(torch.as_tensor(TOKENS), use_cache=False).logits.numpy()
    return output


@contextmanager
def widened_bytes(module: torch.nn.Module) -> Iterator[list[int]]:
    """How much of a module's parameters is in float64 when each of its parts has run."""
    seen: list[int] = []

    def look(*_: Any) -> None:
        held = {id(p): p for part in module.modules() for p in part._parameters.values()}
        wide = [p for p in held.values() if p is not None and p.dtype == torch.float64]
        seen.append(sum(p.nbytes for p in wide))

    handles = [part.register_forward_hook(look, prepend=True) for part in module.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_at_no_time_is_more_than_one_part_of_it_widened(sources: Sources) -> None:
    """Whoever holds it: the module, a graph that was recorded, or what a backward pass needs."""
    port = huggingface(sources("qwen3"), "eager")
    shapes = {tuple(p.shape) for p in port.module.parameters() if p.ndim == 2}
    seen: list[int] = []

    def look(*_: Any) -> None:
        held = {}
        for tensor in gc.get_objects():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64:
                continue
            if tuple(tensor.shape) in shapes:
                held[tensor.data_ptr()] = tensor.nbytes
        seen.append(sum(held.values()))

    own = [sum(p.numel() for p in part.parameters(recurse=False)) for part in port.module.modules()]
    handle = register_module_forward_hook(look)
    try:
        with port.offers()[FLOAT64_COPY]() as copy:
            copy.logits(TOKENS)
            # What comes back to a tensor has its shape, and is no copy of it: counted forwards.
            copy.offers()[GRADIENTS](TOKENS, Gradients())
    finally:
        handle.remove()
    # One that is widened and one that has been and is freed next.
    assert 8 * max(own) <= max(seen) <= 2 * 8 * max(own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_float64_copy_lies_in_the_memory_of_the_port(
    sources: Sources, name: str, dtype: Any
) -> None:
    port = huggingface(sources(name), "eager", dtype)
    before = {k: v.clone() for k, v in port.module.state_dict().items()}
    with port.offers()[FLOAT64_COPY]() as copy:
        assert isinstance(copy, TorchModule)
        ours = dict(port.module.named_parameters())
        for parameter, tensor in copy.module.named_parameters():
            assert tensor.data_ptr() == ours[parameter].data_ptr(), parameter
        with widened_bytes(copy.module) as wide:
            made = copy.logits(TOKENS)
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, logits_in_float64(port))
    own = [sum(p.numel() for p in part.parameters(recurse=False)) for part in port.module.modules()]
    assert 0 < max(wide) <= 8 * max(own)
    for key, value in port.module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_port_whose_head_was_parted_is_parted_in_float64_as_well(sources: Sources) -> None:
    """A model that is built anew is tied again; the copy must be what the port is."""
    port = huggingface(sources("gemma2"), "eager")
    port.module.lm_head.weight = torch.nn.Parameter(port.module.lm_head.weight.detach() * 2)
    doubled = port.logits(TOKENS)
    with port.offers()[FLOAT64_COPY]() as copy:
        made = copy.logits(TOKENS)
    assert np.abs(made - doubled).max() < 1e-3 * np.abs(doubled).max()


def test_derivatives_in_float64_are_those_of_a_module_wholly_in_it(sources: Sources) -> None:
    port = huggingface(sources("qwen3"), "eager")
    found = Gradients()
    with port.offers()[FLOAT64_COPY]() as copy:
        copy.offers()[GRADIENTS](TOKENS, found)
    whole = module_in_float64(port)
    with widening.widening():
        logits = whole(torch.as_tensor(TOKENS), use_cache=False).logits
        ids = torch.as_tensor(TOKENS)[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids).backward()
    named = dict(whole.named_parameters())
    assert set(named) <= set(found.parameters)
    for parameter, tensor in named.items():
        got, expected = found.parameters[parameter], tensor.grad.numpy()
        assert got.dtype == np.float64
        # Two sums of the same numbers in another order.
        assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max(), parameter


def test_there_is_room_for_the_largest_part_or_it_is_not_begun(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources("qwen3")
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    report = judge(
        "huggingface-eager",
        source,
        [seeded(source.config, 7, 0)],
        None,
        "cpu",
        Silent(),
        build=lambda: huggingface(source, "eager"),
        laws=(),
    )
    found = [f for f in report.findings if f.id == "architecture"]
    assert {f.status for f in found} == {Status.NOT_EXAMINED}
    assert {f.message for f in found} == {"needs 0.1 GB, 0 are free"}
    assert failures(report) == [] and report.verdict is Verdict.VERIFIED


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_from_one_copy_of_the_weights(
    sources: Sources, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers is handed is what the model keeps, and nothing of the checkpoint's."""
    handed: list[NDArray[Any]] = []
    real = huggingface_family.stored_tensors

    def watched(config: Any, tensors: Any) -> Any:
        for stored in real(config, tensors):
            make = stored.make

            def kept(make: Any = make) -> NDArray[Any]:
                handed.append(make())
                return handed[-1]

            object.__setattr__(stored, "make", kept)
            yield stored

    monkeypatch.setattr(huggingface_family, "stored_tensors", watched)
    source: Checkpoint = sources(name)
    port = huggingface(source, "eager")
    made = {array.ctypes.data for array in handed}
    named = dict(port.module.named_parameters())
    inside = {key for key, tensor in named.items() if tensor.data_ptr() in made}
    outside = sum(named[key].nbytes for key in named.keys() - inside)
    # transformers stacks the experts of some families itself.
    assert outside == 0 or source.config.keys.experts is not None
    theirs = {source.tensors[key].ctypes.data for key in source.tensors}
    assert not theirs & {tensor.data_ptr() for tensor in named.values()}
