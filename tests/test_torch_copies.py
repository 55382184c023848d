"""Copies of a torch port, its graph at both ends of wte, and its stay on another device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_torch_capabilities as written
import torch
import torch_styles
from models import CONFIG, checkpoint
from test_torch_capabilities import STYLES, TOKENS, linear_of, with_forward, with_head
from torch import nn

from reference import Config
from verify.ports.port import NotExamined, Port
from verify.ports.torch_module import TorchModule

SOURCE = checkpoint()
CASTS = {"to(float64)", "to(bfloat16)"}
EXACT = {
    "deepcopy",
    "state_dict",
    "torch.save of the state_dict",
    "torch.save of the module",
    "safetensors",
}
#: Runs that write over what their backward pass needs, and a local function.
NOT_OFFERED = {
    "fused_in_place": {"one optimiser step": "RuntimeError: one of the variables needed"},
    "time_first": {"one optimiser step": "RuntimeError: one of the variables needed"},
    "row_by_row": {"one optimiser step": "RuntimeError: one of the variables needed"},
    "library": {"torch.save of the module": "AttributeError: Can't pickle local object"},
}


def shared(port: Port) -> list[list[str]]:
    """Names of parameters, those in one memory together."""
    together: dict[Any, list[str]] = {}
    for parameter in port.parameters():
        together.setdefault(parameter.storage, []).append(parameter.name)
    return list(together.values())


class LosesPositions(torch_styles.Model):
    """It does not load wpe, and does not say so."""

    def load_state_dict(self, state: dict[str, Any], strict: bool = True, **more: Any) -> Any:
        kept = {name: value for name, value in state.items() if not name.startswith("wpe")}
        return super().load_state_dict(kept, strict=False, **more)


class TestCopies:
    @pytest.mark.parametrize(
        "style", [*STYLES, "huggingface-sdpa-float32", "huggingface-eager-bfloat16"]
    )
    def test_every_way(self, style: str) -> None:
        made = written.port(style)
        bits, names = made.logits(TOKENS), shared(made)
        reasons, ways = dict(NOT_OFFERED.get(style, {})), []
        for how, copy in made.copies():
            ways.append(how)
            if isinstance(copy, str):
                assert copy.startswith(reasons.pop(how))
                continue
            assert shared(copy) == names
            values = copy.logits(TOKENS)
            assert np.isfinite(values).all()
            assert (values.tobytes() == bits.tobytes()) == (how in {*EXACT, "save_pretrained"})
            if how in CASTS:
                assert copy.dtype == how.removeprefix("to(").removesuffix(")")
        assert not reasons
        expected = EXACT | {f"to({d})" for d in ("float64", "bfloat16") if d != made.dtype}
        expected |= {"save_pretrained"} if style.startswith("huggingface") else set()
        if torch.cuda.is_available():
            expected.add("to(cuda)")
        assert set(ways) == expected | {"one optimiser step"}
        assert made.logits(TOKENS).tobytes() == bits.tobytes()

    def test_what_is_not_stored_is_missed(self) -> None:
        """The structure that is loaded into holds none of the original's values."""
        made = TorchModule(LosesPositions(SOURCE, torch_styles.SplitBlock), SOURCE, "loses wpe")
        finite = {}
        for how, copy in made.copies():
            if isinstance(copy, str):  # its loader looks for itself
                assert how == "safetensors" and "Missing key(s)" in copy
            else:
                finite[how] = bool(np.isfinite(copy.logits(TOKENS)).any())
        lost = {how for how, found in finite.items() if not found}
        assert lost == {"state_dict", "torch.save of the state_dict"}

    def test_two_parameters_of_one_memory_part_where_torch_parts_them(self) -> None:
        made = TorchModule(with_head(linear_of), SOURCE, "one memory")
        assert ["wte.weight", "head.weight"] in shared(made)
        parted = {how for how, copy in made.copies() if ["wte.weight"] in shared(copy)}
        assert parted == {"deepcopy", *CASTS}

    def test_a_step_moves_an_equal_head_away(self) -> None:
        made = TorchModule(with_head(lambda w: linear_of(w.clone())), SOURCE, "copy")
        for how, copy in made.copies():
            read = {p.name: p.read() for p in copy.parameters()}  # type: ignore[union-attr,misc]
            same = np.array_equal(read["wte.weight"], read["head.weight"])
            assert same == (how != "one optimiser step")

    def test_the_step_is_the_gradient(self) -> None:
        made = written.port("split_linears")
        (stepped,) = (
            {p.name: p.read().copy() for p in copy.parameters()}  # type: ignore[union-attr,misc]
            for how, copy in made.copies()
            if how == "one optimiser step"
        )
        tokens = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (1, 8))
        slope = made.gradients(tokens).parameters
        for parameter in made.parameters():
            after = stepped[parameter.name].astype(np.float64)
            moved = parameter.read() - after
            expected = 0.1 * slope[parameter.name].astype(np.float64)
            # Three roundings: of 0.1 (by a quarter of u), of the product and of the sum.
            bound = 2.0**-24 * (1.25 * np.abs(expected) + np.abs(after))
            assert (np.abs(moved - expected) <= bound).all(), parameter.name

    def test_the_original_is_left_alone(self) -> None:
        model = torch_styles.split_linears(SOURCE).requires_grad_(False)
        made = TorchModule(model, SOURCE, "frozen")
        bits = {name: p.numpy().tobytes() for name, p in model.named_parameters()}
        rng = torch.get_rng_state()
        assert not any(isinstance(copy, str) for _, copy in made.copies())
        assert {name: p.numpy().tobytes() for name, p in model.named_parameters()} == bits
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), rng)

    @pytest.mark.parametrize("style", ["split_linears", "huggingface-sdpa-float32"])
    def test_one_is_released_before_the_next_is_made(self, style: str) -> None:
        gc.collect()
        gc.disable()  # what waits for it is not released
        try:
            alive: list[weakref.ref[Any]] = []
            for how, copy in written.port(style).copies():
                assert not any(ref() is not None for ref in alive), how
                alive.append(weakref.ref(next(copy.module.parameters())))  # type: ignore[union-attr]
        finally:
            gc.enable()

    def test_one_position_cannot_be_trained(self) -> None:
        source = checkpoint(Config(5, 1, 4, 2, 1))
        made = dict(TorchModule(torch_styles.split_linears(source), source, "x").copies())
        assert made.pop("one optimiser step") == "ValueError: one position predicts nothing"
        assert not any(isinstance(copy, str) for copy in made.values())


def untied(equal: bool = True) -> nn.Module:
    return with_head(lambda w: linear_of(w.clone() if equal else w * 2))


class TestTying:
    @pytest.mark.parametrize(
        ("style", "line"),
        [
            (
                "split_linears",
                "EmbeddingBackward0 (lookup) and MmBackward0 (last product) "
                "read the one parameter wte.weight = head.weight",
            ),
            (
                "einsum",
                "IndexBackward0 (lookup) and BmmBackward0 (last product) "
                "read the one parameter weights.wte",
            ),
            (
                "huggingface-eager-bfloat16",
                "EmbeddingBackward0 (lookup) and MmBackward0 (last product) "
                "read the one parameter transformer.wte.weight = lm_head.weight",
            ),
        ],
    )
    def test_the_line(self, style: str, line: str) -> None:
        assert written.port(style).tying() == (True, line)

    @pytest.mark.parametrize("style", STYLES)
    def test_in_every_style(self, style: str) -> None:
        made = written.port(style)
        tied, line = made.tying()
        assert tied and "read the one parameter" in line
        with made.float64() as twin:
            assert twin.tying() == (tied, line)

    @pytest.mark.parametrize("name", written.modules())
    def test_however_it_is_read(self, name: str) -> None:
        tied, line = TorchModule(written.modules()[name], SOURCE, name).tying()
        assert tied
        one = "one memory, that of wte.weight = head.weight"
        assert (one in line) == ("memory" in name)

    @pytest.mark.parametrize("equal", [True, False])
    def test_two_matrices(self, equal: bool) -> None:
        assert TorchModule(untied(equal), SOURCE, "untied").tying() == (
            False,
            "EmbeddingBackward0 (lookup) reads wte.weight, "
            "but MmBackward0 (last product) reads head.weight: two matrices",
        )

    @pytest.mark.parametrize(
        ("forward", "words"),
        [
            (written.head_detached, "the head is detached from it"),
            (written.head_detached_one_hot, "the head is detached from it"),
            (written.head_detached_masked_sum, "the head is detached from it"),
            (written.lookup_detached, "no lookup leads back to wte.weight = head.weight"),
            (written.stream_detached, "no lookup leads back to wte.weight = head.weight"),
        ],
    )
    def test_a_detached_end(self, forward: written.Forward, words: str) -> None:
        tied, line = TorchModule(with_forward(forward), SOURCE, "x").tying()
        assert not tied and words in line

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_what_cannot_be_seen(self) -> None:
        made = TorchModule(with_forward(written.reentrant_head), SOURCE, "x")
        with pytest.raises(NotExamined, match="does not show what it runs"):
            made.tying()

    def test_no_graph(self) -> None:
        model = torch_styles.split_linears(SOURCE)
        model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
        with pytest.raises(NotExamined, match="no gradients and no graph"):
            TorchModule(model, SOURCE, "x").tying()


def state(model: nn.Module) -> list[Any]:
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return [
        (
            name,
            id(t),
            t.device,
            t.dtype,
            t.data_ptr(),
            None if t.grad is None else t.grad.data_ptr(),
        )
        for name, t in tensors
    ]


class Elsewhere(torch_styles.Model):
    """Converts where a device would be changed, so that a machine with none can see it undone."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return super().to(torch.float64)


class TestElsewhere:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_it_is_put_back_as_it_was(self, device: str) -> None:
        model: Callable[..., Any] = Elsewhere if device == "cpu" else torch_styles.Model
        block = torch_styles.SplitBlock if device == "cpu" else torch_styles.FusedBlock
        made = TorchModule(model(SOURCE, block), SOURCE, "x")
        made.module.float()
        made.module.wpe.weight.grad = torch.ones_like(made.module.wpe.weight)
        before, bits = state(made.module), made.logits(TOKENS).tobytes()
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        with made.elsewhere(device) as other:
            assert other.device == device
            assert other.logits(TOKENS).tobytes() != bits
        assert made.device == "cpu"
        assert state(made.module) == before
        assert made.logits(TOKENS).tobytes() == bits

    def test_also_when_something_breaks(self) -> None:
        made = TorchModule(Elsewhere(SOURCE, torch_styles.SplitBlock), SOURCE, "x")
        made.module.float()
        before = state(made.module)
        with pytest.raises(ZeroDivisionError), made.elsewhere("cpu"):
            raise ZeroDivisionError
        assert state(made.module) == before

    def test_a_device_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        made = written.port("split_linears")
        with pytest.raises(NotExamined, match="no CUDA device"), made.elsewhere("cuda"):
            pass

    def test_a_module_that_stays_at_home(self) -> None:
        """A device on which nothing can be computed stands for one whose tensors do not meet."""
        made = written.port("split_linears")
        before = state(made.module)
        with pytest.raises(NotExamined, match="it does not run on meta"), made.elsewhere("meta"):
            pass
        assert state(made.module) == before
