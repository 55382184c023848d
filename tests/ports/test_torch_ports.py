"""Correct modules, however they are written, are verified: nothing is said about any of them.

Where a style hides a site (a fused attention has no pattern), the report must name it, and must
not have missed anything else.
"""

from __future__ import annotations

from functools import cache

import functional_styles
import layout_styles
import numpy as np
import pytest
import torch
import torch_styles
from models import CONFIG, INPUTS, TESTS, checkpoint, failures, finding, judged, statuses

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import default_inputs
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import Config, tensor_table

#: What a fused or a hand-written softmax does not show, in every layer.
HIDDEN = {f"h.{i}.attn.{what}" for i in range(CONFIG.n_layer) for what in ("scores", "pattern")}

#: Style → (its file, sites that it does not show).
STYLES: dict[str, tuple[str, set[str]]] = {
    "split_linears": ("torch_styles", set()),
    "fused_in_place": ("torch_styles", HIDDEN),
    "hand_written": ("torch_styles", HIDDEN),
    "upcasting": ("torch_styles", set()),
    "recomputing": ("torch_styles", set()),
    "time_first": ("torch_styles", set()),
    "row_by_row": ("torch_styles", HIDDEN),
    "library": ("torch_styles", HIDDEN),
    "functional": ("functional_styles", HIDDEN),
    "einsum": ("functional_styles", set()),
    "nameless": ("functional_styles", set()),
    "convolutions": ("functional_styles", HIDDEN),
    "by_head": ("layout_styles", set()),
    "put_in_order": ("layout_styles", HIDDEN),
    "head_axes": ("layout_styles", set()),
    "stacked": ("layout_styles", set()),
    "padded": ("layout_styles", set()),
    "folded": ("layout_styles", set()),
}
HALF = [
    ("split_linears", "bfloat16"),
    ("hand_written", "float16"),
    ("upcasting", "bfloat16"),
    ("time_first", "bfloat16"),
    ("functional", "float16"),
    ("nameless", "bfloat16"),
    ("by_head", "bfloat16"),
    ("stacked", "float16"),
]
NUMPY = f"{TESTS / 'functional_styles.py'}:numpy_function"
SOURCE = checkpoint()


@cache
def report(style: str, dtype: str | None = None) -> PortReport:
    file = TESTS / f"{STYLES[style][0]}.py"
    return judged(f"{file}:{style}", SOURCE, dtype=dtype)


def module(style: str) -> torch.nn.Module:
    files = {file.__name__: file for file in (torch_styles, functional_styles, layout_styles)}
    made: torch.nn.Module = getattr(files[STYLES[style][0]], style)(SOURCE)
    return made


@pytest.mark.parametrize(
    ("style", "dtype"), [*((s, None) for s in STYLES), *HALF], ids=lambda x: str(x or "float32")
)
class TestCorrect:
    def test_verified(self, style: str, dtype: str | None) -> None:
        found = report(style, dtype)
        assert found.error is None
        assert failures(found) == []
        assert found.verdict is Verdict.VERIFIED
        assert found.dtype == (dtype or "float32")

    def test_every_site_is_examined_or_named(self, style: str, dtype: str | None) -> None:
        for law in ("architecture", "activations.local", "activations.cascaded"):
            of_law = statuses(report(style, dtype), law)
            hidden = {site for site, status in of_law.items() if status is Status.NOT_EXAMINED}
            assert hidden == STYLES[style][1], law
            for site in hidden:
                assert "not shown by the port" in finding(report(style, dtype), law, site).message

    def test_every_weight_is_placed(self, style: str, dtype: str | None) -> None:
        found = report(style, dtype)
        placed = {place.tensor for place in found.mapping.values()} - {None}
        folded = {name for name in tensor_table(CONFIG) if "ln_" in name} | {"lm_head"}
        assert placed ^ set(tensor_table(CONFIG)) == (folded if style == "folded" else set())
        assert finding(found, "weights.accounted").status is Status.PASSED
        assert not any("by shape and name" in place.note for place in found.mapping.values())


def judged_narrower(found: PortReport) -> set[str | None]:
    return {f.site for f in found.findings if "judged as that" in f.message}


def test_the_float64_copy_computes_in_float64() -> None:
    """Else it would prove no more than the declared precision does."""
    for style in STYLES:
        narrow = judged_narrower(report(style))
        if style == "upcasting":
            continue
        # The library makes its mask in float32, beside the embedding.
        assert narrow <= ({"embed"} if style == "library" else set()), style


def test_what_is_upcast_is_judged_as_float32() -> None:
    assert judged_narrower(report("upcasting")) == {
        f"h.{i}.{what}"
        for i in range(CONFIG.n_layer)
        for what in ("ln_1", "ln_2", "attn.scores", "attn.pattern")
    }


class TestModuleIsLeftAsFound:
    @pytest.mark.parametrize("style", STYLES)
    def test_nothing_remains(self, style: str) -> None:
        made = module(style).train()
        before = dict(made.named_parameters(remove_duplicate=False))
        buffers = dict(made.named_buffers())
        bits = {name: p.detach().numpy().tobytes() for name, p in before.items()}
        port = TorchModule(made, SOURCE, style)
        tokens = INPUTS[1].tokens
        plain = port.logits(tokens)
        watched = port.activations(tokens, lambda site, value, narrowest=None: None)
        with port.float64() as float64_copy:
            wide = float64_copy.logits(tokens)
        assert wide.dtype == np.float64
        after = dict(made.named_parameters(remove_duplicate=False))
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        assert all(tensor is buffers[name] for name, tensor in made.named_buffers())
        assert {name: p.detach().numpy().tobytes() for name, p in after.items()} == bits
        assert {p.dtype for p in after.values()} == {torch.float32}
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())
        assert not any(part.training for part in made.modules())
        assert watched.tobytes() == plain.tobytes() == port.logits(tokens).tobytes()

    def test_also_when_the_module_breaks(self) -> None:
        made = module("split_linears")
        before = dict(made.named_parameters())
        port = TorchModule(made, SOURCE, "breaks")
        too_long = np.zeros((1, CONFIG.n_ctx + 1), np.int64)
        with pytest.raises(IndexError), port.float64() as float64_copy:
            float64_copy.logits(too_long)
        assert all(p is before[name] for name, p in made.named_parameters())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())


class TestVisit:
    """The protocol: each site once, in order, with the shapes that it promises."""

    @pytest.mark.parametrize("style", STYLES)
    def test_shapes(self, style: str) -> None:
        port = TorchModule(module(style), SOURCE, style)
        seen: dict[str, tuple[int, ...]] = {}

        def visit(site: str, value: np.ndarray, narrowest: str | None = None) -> None:
            assert site not in seen
            assert np.isfinite(value[..., 0]).all()
            seen[site] = value.shape

        port.activations(INPUTS[1].tokens, visit)
        width = CONFIG.n_embd
        special = {"qkv": 3 * width, "pre": 4 * width, "act": 4 * width, "logits": CONFIG.n_vocab}
        for site, shape in seen.items():
            kind = site.rsplit(".", 1)[-1]
            if kind in ("scores", "pattern"):
                assert shape == (2, CONFIG.n_head, 11, 11)
            else:
                assert shape == (2, 11, special.get(kind, width))
        if style != "row_by_row":
            everything = statuses(report(style), "activations.local")
            assert set(seen) == set(everything) - STYLES[style][1]
        else:  # one sequence at a time: nothing but the stacked output is the whole batch
            assert set(seen) == {"logits"}

    def test_values_may_be_overwritten_after_the_call(self) -> None:
        """A visitor that keeps what it was shown in float64 keeps what it was, not what came."""
        port = TorchModule(module("fused_in_place"), SOURCE, "in place")
        kept: list[tuple[np.ndarray, bytes]] = []
        with port.float64() as float64_copy:
            float64_copy.activations(
                INPUTS[1].tokens,
                lambda site, value, narrowest=None: kept.append((value, value.tobytes())),
            )
        assert len(kept) > 20
        assert all(value.tobytes() == bits for value, bits in kept)


class TestFunctionOnly:
    def test_verified_by_its_logits(self) -> None:
        found = judged(NUMPY, SOURCE)
        assert found.verdict is Verdict.VERIFIED
        assert found.mapping == {}
        assert found.logits_floors is not None
        assert 0.3 < found.logits_floors < 3

    def test_what_it_does_not_show_is_named(self) -> None:
        found = judged(NUMPY, SOURCE)
        for law, why in (
            ("weights.values", "the port does not show its weights"),
            ("tying.storage", "no parameters shown"),
            ("architecture", "the port cannot be run in float64"),
            ("activations.local", "the port shows nothing but logits"),
        ):
            of_law = [f for f in found.findings if f.id == law]
            assert of_law
            assert all(f.status is Status.NOT_EXAMINED and why in f.message for f in of_law)


def test_other_sizes_and_seeds() -> None:
    """One head, one layer, one channel to a head: sizes at which reshapes go wrong unseen."""
    for sizes in ((31, 5, 6, 1, 1), (29, 7, 8, 8, 2), (53, 9, 10, 2, 4)):
        source: Checkpoint = checkpoint(Config(*sizes), seed=1)
        for style in ("split_linears", "nameless", "time_first", "stacked", "by_head", "head_axes"):
            file = TESTS / f"{STYLES[style][0]}.py"
            found = judged(f"{file}:{style}", source, default_inputs(source.config, 1))
            assert failures(found) == [], (sizes, style)
            assert found.verdict is Verdict.VERIFIED
