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
from gradients import gathered
from models import CONFIG, checkpoint
from test_torch_capabilities import STYLES, TOKENS, linear_of, with_forward, with_head
from torch import nn

from gpt_verify.port import TYING, NotExamined, Port
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.process import memory
from gpt_verify.reference import Config

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
#: In which a module reads another one's parameters.
READ_FROM_ELSEWHERE = {"upcasting", "library", "functional", "einsum"}


def shared(port: Port) -> list[list[str]]:
    """Names of parameters, those in one memory together."""
    together: dict[Any, list[str]] = {}
    for parameter in port.parameters():
        together.setdefault(parameter.storage, []).append(parameter.name)
    return list(together.values())


def lent(copy: Port, made: TorchModule) -> set[str]:
    """Names of what lies in the memory of the original."""
    theirs = {p.storage for p in made.parameters()}
    return {p.name for p in copy.parameters() if p.storage in theirs}  # type: ignore[misc]


def tables(made: TorchModule) -> set[str]:
    """Names in the memory of wte."""
    wte = {p.parameter for p in made.matching.placements if p.tensor == "wte"}
    places = {p.storage for p in made.parameters() if p.name in wte}
    return {p.name for p in made.parameters() if p.storage in places}


class LooksAtShapes(torch_styles.Model):
    """It loads nothing of another shape than it was built with, whoever copied it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.width = self.wpe.weight.shape[1]

    def load_state_dict(self, state: dict[str, Any], *args: Any, **more: Any) -> Any:
        if state["wpe.weight"].shape[1] != self.width:
            raise ValueError("another width")
        return super().load_state_dict(state, *args, **more)


class CopiesItself(torch_styles.Model):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        made = LooksAtShapes(SOURCE, torch_styles.SplitBlock)
        made.load_state_dict(self.state_dict())
        return made


class LosesTable(torch_styles.Model):
    """It does not load wte, and does not say so."""

    def load_state_dict(self, state: dict[str, Any], strict: bool = True, **more: Any) -> Any:
        kept = {name: value for name, value in state.items() if "wpe" in name}
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
            others = {p.name for p in made.parameters()} - tables(made)
            if how in CASTS and style in READ_FROM_ELSEWHERE:
                others = set()  # converted as a whole
            elif how == "save_pretrained":
                others = {name for name in others if ".h." in name}  # what is not small
            assert lent(copy, made) == others
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
        """The structure that is loaded into holds none of the original's values, neither in a copy
        of the tables alone nor in one of everything, which is the second try."""
        made = TorchModule(LosesTable(SOURCE, torch_styles.SplitBlock), SOURCE, "loses wte")
        finite = {}
        for how, copy in made.copies():
            if isinstance(copy, str):  # its loader looks for itself
                assert how == "safetensors" and "Missing key(s)" in copy
            else:
                finite[how] = bool(np.isfinite(copy.logits(TOKENS)).any())
        lost = {how for how, found in finite.items() if not found}
        assert lost == {"state_dict", "torch.save of the state_dict"}

    @pytest.mark.parametrize(
        ("kind", "whole"),
        [
            (LooksAtShapes, {"state_dict", "torch.save of the state_dict", "safetensors"}),
            (CopiesItself, {*EXACT, *CASTS, "one optimiser step"}),
        ],
    )
    def test_what_nothing_can_stand_in_for_is_copied_as_a_whole(
        self, kind: Any, whole: set[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = TorchModule(kind(SOURCE, torch_styles.SplitBlock), SOURCE, "its own")
        copied = set()
        for how, copy in made.copies():
            assert not isinstance(copy, str), copy
            assert np.isfinite(copy.logits(TOKENS)).all()
            if not lent(copy, made):
                copied.add(how)
        assert copied == whole
        # For the tables alone there is memory, for everything there is not.
        size = sum(p.numel() * p.itemsize for p in made.module.parameters())
        monkeypatch.setattr(memory, "available_bytes", lambda: size // 2 - 1)
        refused = {how for how, copy in made.copies() if str(copy).startswith("needs ")}
        assert refused == whole

    def test_a_cast_of_what_is_read_from_elsewhere_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A function of all parameters is converted as a whole, or not at all."""
        made = written.port("functional")
        table = sum(p.numel() * 8 for p in made.module.parameters() if p.shape[0] == CONFIG.n_vocab)
        for free, examined in ((table, False), (10**9, True)):
            monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
            for how, copy in made.copies():
                if how == "to(float64)":
                    assert str(copy).startswith("needs ") != examined

    def test_nothing_is_written_to_the_original_by_a_loader_that_keeps_what_it_is_handed(
        self,
    ) -> None:
        class Assigns(torch_styles.Model):
            def load_state_dict(self, state: dict[str, Any], *args: Any, **more: Any) -> Any:
                return super().load_state_dict(state, *args, assign=True, **more)

            def to(self, *args: Any, **more: Any) -> Any:
                return self

        made = TorchModule(torch_styles.split_linears(SOURCE), SOURCE, "assigns")
        made.module.__class__ = Assigns
        for _, copy in made.copies():
            if not isinstance(copy, str):
                assert lent(copy, made).isdisjoint(tables(made))

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
        slope = gathered(made, tokens).parameters
        for parameter in made.parameters():
            after = stepped[parameter.name].astype(np.float64)
            moved = parameter.read() - after
            # All but the tables is lent, and trained in no copy.
            table = parameter.name in ("wte.weight", "head.weight")
            expected = 0.1 * slope[parameter.name].astype(np.float64) * table
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
        assert written.port(style).offers()[TYING]() == (True, line)

    @pytest.mark.parametrize("style", STYLES)
    def test_in_every_style(self, style: str) -> None:
        made = written.port(style)
        tied, line = made.offers()[TYING]()
        assert tied and "read the one parameter" in line
        with made.float64() as float64_copy:
            assert float64_copy.offers()[TYING]() == (tied, line)

    @pytest.mark.parametrize("name", written.modules())
    def test_however_it_is_read(self, name: str) -> None:
        tied, line = TorchModule(written.modules()[name], SOURCE, name).offers()[TYING]()
        assert tied
        one = "one memory, that of wte.weight = head.weight"
        assert (one in line) == ("memory" in name)

    @pytest.mark.parametrize("equal", [True, False])
    def test_two_matrices(self, equal: bool) -> None:
        assert TorchModule(untied(equal), SOURCE, "untied").offers()[TYING]() == (
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
        tied, line = TorchModule(with_forward(forward), SOURCE, "x").offers()[TYING]()
        assert not tied and words in line

    # torch's own, about a reentrant checkpoint that is run forwards alone.
    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_what_cannot_be_seen(self) -> None:
        made = TorchModule(with_forward(written.reentrant_head), SOURCE, "x")
        with pytest.raises(NotExamined, match="does not show what it runs"):
            made.offers()[TYING]()

    def test_no_graph(self) -> None:
        model = torch_styles.split_linears(SOURCE)
        model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
        with pytest.raises(NotExamined, match="no gradients and no graph"):
            TorchModule(model, SOURCE, "x").offers()[TYING]()


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
