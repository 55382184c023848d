"""The precision that a port really computes in, found from its errors alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.port import ACTIVATIONS
from gpt_verify.reference import Config
from gpt_verify.sites import sites

PRODUCTS = [s.name for s in sites(CONFIG).values() if s.operation in ("linear", "unembed")]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_correct_port_computes_in_what_it_declares(attention: str, dtype: Any) -> None:
    (finding,) = hold("precision", port(attention=attention, dtype=dtype))
    assert finding.status is Status.PASSED
    assert finding.message == f"{dtype} at {len(PRODUCTS)} of {len(PRODUCTS)} products"
    assert finding.details["formats"] == dict.fromkeys(PRODUCTS, dtype)


@pytest.mark.parametrize(
    "config",
    [
        Config(1, 1, 2, 1, 1),
        Config(2, 3, 1, 1, 1),
        Config(11, 1, 6, 3, 2),
        Config(501, 70, 64, 2, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_odd_sizes(config: Config, dtype: Any) -> None:
    source = checkpoint(config)
    (finding,) = hold("precision", port(dtype=dtype, source=source), source)
    assert finding.status is not Status.FAILED, finding.message


def test_a_single_value_is_no_format() -> None:
    """One number of float16 in eight is a number of bfloat16 as well."""
    config = Config(1, 1, 1, 1, 2)
    for seed in range(16):
        source = checkpoint(config, seed)
        (finding,) = hold("precision", port(dtype="float16", source=source), source)
        assert finding.status is Status.PASSED, finding.message


def test_tf32_is_recognised_and_the_setting_is_named() -> None:
    (finding,) = hold("precision", faulty("precision-tf32"))
    assert finding.status is Status.FAILED
    assert f"computes in tf32 at all {len(PRODUCTS)} products" in finding.message
    assert "allow_tf32 = False" in finding.message
    assert finding.score is not None and finding.limit is not None
    assert finding.score > 10 * finding.limit


class ThreeProducts(TorchDispatchMode):
    """Each operand is the sum of two numbers of bfloat16, and the product of the small ones is left
    out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm") and result.dtype == torch.float32:
            *bias, a, b = args
            with _disable_current_modes():  # as hardware is: it shows nobody what it multiplies
                (ah, al), (bh, bl) = map(halves, (a, b))
                result.copy_(ah @ bh + (ah @ bl + al @ bh) + sum(bias))
        return result


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    high = x.bfloat16().float()
    return high, (x - high).bfloat16().float()


def test_float32_in_three_products_of_bfloat16_is_not_taken_for_tf32() -> None:
    made = plain()
    right = made.offers()[ACTIVATIONS]

    def activations(*asked: Any) -> Any:
        with ThreeProducts():
            return right(*asked)

    made.offer(ACTIVATIONS, activations)
    (finding,) = hold("precision", made)
    assert finding.status is Status.FAILED
    assert f"computes in bfloat16x3 at all {len(PRODUCTS)} products" in finding.message
    assert "set_float32_matmul_precision('highest')" in finding.message
    assert finding.fault is None


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_autocast_is_recognised(name: str) -> None:
    (finding,) = hold("precision", faulty(f"precision-autocast-{name}"))
    assert finding.status is Status.FAILED
    assert f"declared float32, computes in {name} at all" in finding.message
    assert "autocast" in finding.message


def test_one_product_in_half_precision_is_named() -> None:
    altered = plain(lambda model: CATALOGUE["precision-product-bfloat16"].put_into(model, [1]))
    (finding,) = hold("precision", altered)
    assert finding.status is Status.FAILED
    assert "computes in bfloat16 at h.1.mlp.pre of" in finding.message


def test_float32_where_float64_is_declared_is_said_and_has_no_name() -> None:
    def narrow(model: Any) -> None:
        def forward(self: Any, right: Any, x: Any) -> Any:
            return (x.float() @ self.weight.float() + self.bias.float()).to(x.dtype)

        for block in model.h:
            for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                wrap(part, "forward", forward)

    (finding,) = hold("precision", plain(narrow, dtype="float64"))
    assert finding.status is Status.FAILED
    assert "declared float64, computes in float32 at" in finding.message
    assert finding.named is None


def test_wider_than_declared_is_no_fault_and_is_said() -> None:
    wide = port(dtype="float64")
    wide.dtype = "float32"
    (finding,) = hold("precision", wide)
    assert finding.status is Status.PASSED
    assert finding.message.startswith("declared float32, computes in float64")


def test_a_wrong_operation_is_not_taken_for_a_precision() -> None:
    """Its errors may be of any size; the sites that are wrong are no majority."""

    def scaled(model: Any) -> None:
        model.transformer.h[1].mlp.c_fc.register_forward_hook(lambda m, a, out: out * (1 + 2e-4))

    (finding,) = hold("precision", port(scaled))
    assert finding.status is Status.PASSED


def test_only_logits() -> None:
    logits_only = port()
    logits_only.withdraw(ACTIVATIONS)
    (finding,) = hold("precision", logits_only)
    assert (finding.status, finding.message) == (Status.NOT_EXAMINED, "no activations shown")


def test_on_the_cpu_no_device_is_compared() -> None:
    (finding,) = hold("device", port())
    assert (finding.status, finding.message) == (
        Status.NOT_EXAMINED,
        "the port ran on the CPU only",
    )
