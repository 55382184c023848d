"""Modules of which nothing is said, each with one mistake: refuted where the mistake is.

That each of them is verified without it: ``test_torch_ports.py``. The mistake is a change to the
text of the style's file, so that what is judged differs from a correct port in that alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layout_styles
import numpy as np
import pytest
import torch
import torch_styles
from models import CONFIG, TESTS, checkpoint, failed, finding, judged
from test_torch_ports import STYLES
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from gpt_verify.errors import PortError
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.matching.folding import HEAD_BIAS
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import tensor_table

SOURCE = checkpoint()


@dataclass(frozen=True)
class Mistake:
    """A change to a style's text, and the site at which it is wrong by itself."""

    old: str
    new: str
    site: str
    law: str = "architecture"


MISTAKES = {
    "split_linears": Mistake(
        'self.fc_out(F.gelu(self.fc_in(x), approximate="tanh"))',
        "self.fc_out(F.gelu(self.fc_in(x)))",
        "h.0.mlp.act",
    ),
    "fused_in_place": Mistake(
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)",
        "h.0.attn.mix",
    ),
    "hand_written": Mistake("variance + 1e-5", "variance + 1e-6", "h.0.ln_1"),
    "upcasting": Mistake(
        'self.out_proj = linear(checkpoint, f"{scope}/attn/c_proj")',
        'self.out_proj = linear(checkpoint, f"{scope}/attn/c_proj")\n'
        '        self.out_proj.weight.data *= 1.5 if scope == "h2" else 1.0',
        "h.2.attn.out",
        "weights.values",
    ),
    "recomputing": Mistake(".tril()\n", ".tril(1)\n", "h.0.attn.pattern"),
    "time_first": Mistake(
        "        x += self.attend(self.ln_1(x))",
        "        x = self.attend(self.ln_1(x))",
        "h.0.resid_mid",
    ),
    "row_by_row": Mistake("row.unsqueeze(0)", "row.roll(1).unsqueeze(0)", "embed"),
    "library": Mistake("[self.head(self.final_norm(x))]", "[self.head(x)]", "ln_f"),
    "functional": Mistake(
        "q, k, v = qkv.view(batch, length, 3, self.config.n_head, -1)",
        "k, q, v = qkv.view(batch, length, 3, self.config.n_head, -1)",
        "h.0.attn.mix",
    ),
    "einsum": Mistake("-math.inf), dim=-1)", "-math.inf), dim=-2)", "h.0.attn.pattern"),
    "nameless": Mistake("correction=0", "correction=1", "h.0.ln_1"),
    "convolutions": Mistake(
        "self.mlp_c_fc(self.ln_2(x).transpose(1, 2))",
        "self.mlp_c_fc(self.ln_1(x).transpose(1, 2))",
        "h.0.ln_2",
    ),
    "by_head": Mistake(
        "(pattern @ v).transpose", "(pattern @ v).flip(1).transpose", "h.0.attn.mix"
    ),
    "put_in_order": Mistake(
        "F.linear(x, weight, bias)", "F.linear(x, weight, self.qkv.bias)", "h.0.attn.qkv"
    ),
    "head_axes": Mistake("mix, self.W_O) + self.b_O", "mix, self.W_O)", "h.0.attn.out"),
    "stacked": Mistake('+ p["mlp_c_fc_b"]', '+ self.layers["mlp_c_fc_b"][0]', "h.1.mlp.pre"),
    "padded": Mistake(
        "(0, 0, 0, -rows % 64)", "(0, 0, 1, -rows % 64 - 1)", "embed", "weights.values"
    ),
    "folded": Mistake(
        "else bias.detach() + shift", "else bias.detach()", "h.0.attn.qkv", "weights.values"
    ),
}


def report(style: str, mistake: Mistake, folder: Path) -> PortReport:
    name = f"{STYLES[style][0]}.py"
    text = (TESTS / name).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1
    altered = folder / f"altered_{name}"
    altered.write_text(text.replace(mistake.old, mistake.new), encoding="utf-8")
    return judged(f"{altered}:{style}", SOURCE, laws=())  # where it is, its sites alone say


def test_every_style_has_its_mistake() -> None:
    assert MISTAKES.keys() == STYLES.keys()
    assert len(MISTAKES) >= 12


@pytest.mark.parametrize("style", MISTAKES)
def test_refuted_at_its_site(style: str, tmp_path: Path) -> None:
    mistake = MISTAKES[style]
    found = report(style, mistake, tmp_path)
    assert found.error is None
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == mistake.site
    assert finding(found, mistake.law, mistake.site).status is Status.FAILED
    if mistake.law != "weights.values":  # then every weight is what it was
        assert failed(found, "weights.values") == set()
    placed = {place.tensor for place in found.mapping.values()}
    gone = {name for name in tensor_table(CONFIG) if style == "folded" and "ln_" in name}
    assert placed >= set(tensor_table(CONFIG)) - gone, "a mistake makes nothing disappear"


class TestAWrongWeightIsNoOther:
    """Noise in place of one tensor: the finding names that tensor, whatever the layout."""

    @pytest.mark.parametrize(
        ("style", "parameter", "tensor"),
        [
            ("by_head", "blocks.2.qkv.weight", "h2/attn/c_attn/w"),
            ("by_head", "blocks.1.qkv.bias", "h1/attn/c_attn/b"),
            ("by_head", "blocks.2.out_proj.weight", "h2/attn/c_proj/w"),
            ("head_axes", "blocks.1.W_K", "h1/attn/c_attn/w (k)"),
            ("head_axes", "blocks.2.W_O", "h2/attn/c_proj/w"),
            ("head_axes", "blocks.0.b_V", "h0/attn/c_attn/b (v)"),
            ("stacked", "layers.attn_c_proj_w[2]", "h2/attn/c_proj/w"),
            ("stacked", "layers.ln_1_g[1]", "h1/ln_1/g"),
            ("stacked", "wpe", "wpe"),
            ("padded", "wte.weight[:101]", "wte"),
            ("folded", "blocks.2.out_proj.weight", "h2/attn/c_proj/w"),
            ("folded", "blocks.1.key.weight", "h1/attn/c_attn/w (k)"),
            ("folded", "blocks.0.fc_in.bias", "h0/mlp/c_fc/b"),
            ("folded", "head.weight", "lm_head"),
        ],
    )
    def test_placed_where_it_belongs(self, style: str, parameter: str, tensor: str) -> None:
        module = getattr(layout_styles, style)(SOURCE)
        by_name = {p.name: p for p in TorchModule(module, SOURCE, style).parameters()}
        write = by_name[parameter].write
        assert write is not None
        noise = np.random.default_rng(0).standard_normal(by_name[parameter].shape)
        write(noise.astype(np.float32))
        matching = TorchModule(module, SOURCE, style).matching
        assert matching.missing == matching.surplus == ()
        (wrong,) = (p for p in matching.placements if not p.exact)
        assert wrong.parameter == parameter
        assert str(wrong).startswith(tensor)
        assert "by shape and name: the values differ" in str(wrong)


def test_a_stack_of_as_many_layers_as_there_are_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """[3, D] is c_attn's bias, or the gains of three layers: content tells."""
    assert CONFIG.n_layer == 3
    module = layout_styles.stacked(SOURCE)
    placed = {
        p.parameter: p.tensor for p in TorchModule(module, SOURCE, "stack").matching.placements
    }
    assert placed["layers.ln_2_g[1]"] == "h1/ln_2/g"
    with torch.no_grad():
        for value in module.layers.values():
            value.add_(1.0)
    port = TorchModule(module, SOURCE, "stack, all wrong")
    assert {p.name for p in port.parameters()} == set(placed), "those that leave no doubt tell"


def test_by_head_and_read_otherwise(tmp_path: Path) -> None:
    """The same bits are a layout in one port and a mistake in the other: the run tells."""
    found = judged(f"{TESTS / 'layout_styles.py'}:read_plainly", SOURCE)
    assert found.verdict is Verdict.REFUTED
    assert found.first_divergence == "h.0.attn.qkv"
    assert found.explained_by == ("weights-heads-interleaved",)


def test_padding_is_named() -> None:
    found = judged(f"{TESTS / 'layout_styles.py'}:padded", SOURCE)
    assert "neither it nor its logits" in str(found.mapping["wte.weight[101:]"])
    assert (
        "padding of the vocabulary: wte.weight[101:]" in finding(found, "weights.accounted").message
    )


class Returning(torch.nn.Module):
    """A correct model that hands out its logits in one way or another."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.model, self.wrap = torch_styles.split_linears(SOURCE), wrap

    def forward(self, ids: torch.Tensor) -> Any:
        return self.wrap(self.model(ids))


class TestOutputs:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: (x,),
            lambda x: (x, None),
            lambda x: [x, {}],
            lambda x: {"loss": None, "logits": x},
            lambda x: OrderedDict(logits=x, past_key_values=None),
            lambda x: SimpleNamespace(logits=x),
            lambda x: CausalLMOutputWithCrossAttentions(logits=x),
        ],
        ids=("tensor", "of one", "tuple", "list", "dict", "ordered", "attribute", "transformers"),
    )
    def test_the_logits_are_found(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        port = TorchModule(Returning(wrap), SOURCE, "returning")
        plain = TorchModule(torch_styles.split_linears(SOURCE), SOURCE, "plain")
        tokens = np.array([[1, 2, 3]])
        assert port.logits(tokens).tobytes() == plain.logits(tokens).tobytes()

    @pytest.mark.parametrize(
        ("wrap", "said"),
        [
            (lambda x: None, "returned NoneType, not logits"),
            (lambda x: {"hidden": x}, "returned dict, not logits"),
            (lambda x: (), "returned tuple, not logits"),
        ],
    )
    def test_where_there_are_none_that_is_said(
        self, wrap: Callable[[torch.Tensor], Any], said: str
    ) -> None:
        port = TorchModule(Returning(wrap), SOURCE, "returning")
        with pytest.raises(PortError, match=f"^returning: {said}$"):
            port.logits(np.array([[1, 2, 3]]))


class TestFolded:
    """Layer norms in the matrices that follow: recognised, said, and judged to within rounding."""

    def test_it_is_said(self) -> None:
        found = judged(f"{TESTS / 'layout_styles.py'}:folded", SOURCE)
        assert found.verdict is Verdict.VERIFIED
        assert "layer norms folded into the next matrix (ln_1, ln_2, ln_f)" in found.remarks[0]
        qkv = finding(found, "weights.values", "h.1.attn.qkv").message
        assert qkv.endswith("h1/ln_1 folded in, equal to the product to within rounding")
        assert "folded into h1/mlp/c_fc" in finding(found, "weights.values", "h.1.ln_2").message
        assert str(found.mapping["blocks.0.fc_in.weight"]).endswith(", with h0/ln_2 folded in")
        assert str(found.mapping["head.bias"]) == HEAD_BIAS
        assert "no copy of wte by that" in finding(found, "tying.value", "logits").message

    @pytest.mark.parametrize("size", [1e-6, 1e-5])
    def test_a_little_off_is_wrong(self, size: float) -> None:
        """A product is exact to 2⁻²³ of each element."""
        module = layout_styles.folded(SOURCE)
        with torch.no_grad():
            module.blocks[1].fc_in.weight[5, 7] *= 1 + size
        placements = TorchModule(module, SOURCE, "folded").matching.placements
        assert [p.parameter for p in placements if not p.exact] == ["blocks.1.fc_in.weight"]

    def test_a_folded_head_in_half_precision_is_not_judged(self) -> None:
        """Beside the bias the logits are rounded more coarsely than their budget knows."""
        found = judged(f"{TESTS / 'layout_styles.py'}:folded", SOURCE, dtype="bfloat16")
        assert found.verdict is Verdict.UNJUDGED
        assert "ln_f is folded into a head with a bias: judged in float32 only" in found.error

    def test_a_head_without_the_bias_is_missing_it(self, tmp_path: Path) -> None:
        lost = Mistake(
            "nn.LayerNorm(checkpoint.config.n_embd, elementwise_affine=False)",
            "nn.LayerNorm(checkpoint.config.n_embd, elementwise_affine=False)\n"
            "        self.head.bias = None",
            "logits",
        )
        found = report("folded", lost, tmp_path)
        assert found.verdict is Verdict.REFUTED
        assert "ln_f/b (times wte, at the head)" in finding(found, "weights.accounted").message

    def test_norms_that_are_only_lost_are_missing(self) -> None:
        """No gain and no bias, and the matrices as the checkpoint has them: no folding."""
        module = torch_styles.split_linears(SOURCE)
        for block in module.blocks:
            block.ln_1 = torch.nn.LayerNorm(CONFIG.n_embd, elementwise_affine=False)
        port = TorchModule(module, SOURCE, "lost")
        assert port.matching.missing[:2] == ("h0/ln_1/b", "h0/ln_1/g")
        assert port.folding is None
