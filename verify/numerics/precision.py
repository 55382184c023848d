"""The floating-point formats: how far apart their numbers lie, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Precision:
    """A format that values are kept in, and the one that sums are accumulated in.

    Attributes:
        name: ``float32`` …
        u: unit roundoff of the stored format, 2^-p for p significant bits counting the hidden
            one (Higham 2002, Accuracy and Stability, section 2.1): the largest relative error
            of rounding to nearest.
        u_sum: unit roundoff of the accumulator. CPU and GPU kernels accumulate products of
            half-precision numbers in float32.
        tiny: absolute error below which nothing is said. The smallest normal number, because
            engines may flush what is smaller to zero (TensorFlow does, torch can); for float16,
            whose subnormals are in ordinary use and not flushed, half their spacing. For float64
            2^-500, because budgets are carried as squares, and those must not underflow.
        exp_ulp: error of the exponential, in units of u; see ``budgets``.
        largest: the largest finite number.
        u_operand: unit roundoff to which the operands of a product are rounded before they are
            multiplied, 0 where they are taken as they are. Tensor cores do this to float32
            operands (TF32), and autocast to those of half precision.
    """

    name: str
    u: float
    u_sum: float
    tiny: float
    exp_ulp: float
    largest: float
    u_operand: float = 0.0

    def round(self, x: Floats) -> Floats:
        """Round to this format (nearest, ties to even); the result is float32, or float64."""
        if self.name == "float64":
            return np.asarray(x, np.float64)
        x = np.asarray(x, np.float32)
        if self.name == "float16":
            return x.astype(np.float16).astype(np.float32)
        if self.name == "bfloat16":
            return _round_bfloat16(x)
        return x


def _round_bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep the upper 16 bits of a float32, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32)).reshape(x.shape)


# exp_ulp: torch's vectorised float32 exponential on CPU is specified to 20 units in the last place
# (``exp_u20`` in ATen/cpu/vec), which its softmax and its fused attention use for float32 and for
# half precision. The float64 one is SLEEF's, 1 unit; 4 covers every libm in use.
FLOAT64 = Precision("float64", 2.0**-53, 2.0**-53, 2.0**-500, 4, float(np.finfo(np.float64).max))
FLOAT32 = Precision("float32", 2.0**-24, 2.0**-24, 2.0**-126, 20, float(np.finfo(np.float32).max))
# bfloat16 has 8 significant bits with the hidden one, hence 2^-8; float16 has 11.
BFLOAT16 = Precision("bfloat16", 2.0**-8, 2.0**-24, 2.0**-126, 20, 3.3895313892515355e38)
FLOAT16 = Precision("float16", 2.0**-11, 2.0**-24, 2.0**-25, 20, 65504.0)

#: Float32 in memory, 11 significant bits in products: NVIDIA's A100 white paper (2020), "TF32".
#: What a port may turn out to compute in, never what it declares.
TF32 = replace(FLOAT32, name="tf32", u_operand=2.0**-11)
#: Float32 in memory, of which a product takes x = h + l, both in bfloat16, and makes x x' of h h' +
#: h l' + l h': Henry, Tang and Heinecke (2019), arXiv:1904.06376. What an operand loses is at most
#: u² x, for the u of bfloat16, and so is l l', which is left out. Also what a port turns out to do.
BFLOAT16_X3 = replace(FLOAT32, name="bfloat16x3", u_operand=BFLOAT16.u**2)

PRECISIONS = {p.name: p for p in (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)}
