"""Positions without a table of embeddings: rotations of queries and keys, slopes of scores."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference.architecture import Rope, Scaling
from gpt_verify.reference.ops import Array


def frequencies(rope: Rope) -> Array:
    """Angle that each pair of channels turns by from one position to the next: θ^(-2i/R), [R/2].

    Su et al. 2021 (RoFormer), section 3.3.
    """
    plain_R: Array = rope.theta ** (-np.arange(0, rope.size, 2) / rope.size)
    if rope.scaling is None:
        return plain_R
    return _SCALED[rope.scaling.kind](plain_R, rope, rope.scaling)


def _linear(plain_R: Array, rope: Rope, scaling: Scaling) -> Array:
    """Positions are divided: Chen et al. 2023 (position interpolation), equation 4."""
    return plain_R / scaling.factor


def _llama3(plain_R: Array, rope: Rope, scaling: Scaling) -> Array:
    """Long wavelengths are divided, short ones kept, and what lies between is in between:
    llama-models ``models/llama3/model.py``, ``apply_scaling``."""
    turns_R = scaling.trained * plain_R / (2 * math.pi)
    kept_R: Array = np.clip((turns_R - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 - kept_R) * plain_R / scaling.factor + kept_R * plain_R


def _yarn(plain_R: Array, rope: Rope, scaling: Scaling) -> Array:
    """Peng et al. 2023 (YaRN), section 3.2, with the ramp over the number of the pair, as their
    code has it (jquesnelle/yarn ``scaled_rope/LlamaYaRNScaledRotaryEmbedding.py``), and gpt-oss
    without rounding (``gpt_oss/torch/model.py``, ``RotaryEmbedding``)."""

    def pair(turns: float) -> float:
        """The pair that turns so often within the positions of training."""
        span = math.log(scaling.trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        return rope.size * span

    first, last = pair(scaling.high), pair(scaling.low)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.size - 1)
    if first == last:
        last += 0.001  # what their code does, so as not to divide by zero
    divided_R: Array = np.clip((np.arange(rope.size // 2) - first) / (last - first), 0, 1)
    return divided_R * plain_R / scaling.factor + (1 - divided_R) * plain_R


_SCALED = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def yarn_attention(factor: float) -> float:
    """0.1 ln(s) + 1, by which YaRN multiplies cosine and sine: Peng et al. 2023, equation 22."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def turns(
    rope: Rope, positions_T: NDArray[np.integer], dtype: type[np.floating]
) -> tuple[Array, Array]:
    """Cosine and sine of each angle, [T, R/2] each, in the dtype of what is turned."""
    angle_TR = positions_T.astype(dtype)[:, None] * frequencies(rope).astype(dtype)
    attention = 1.0 if rope.scaling is None else rope.scaling.attention
    return attention * np.cos(angle_TR), attention * np.sin(angle_TR)


def rotate(x_HTK: Array, cos_TR: Array, sin_TR: Array, rope: Rope) -> Array:
    """Each pair (a, b) of the first R channels becomes (a cos - b sin, b cos + a sin).

    Su et al. 2021, equation 34. Pairs are neighbours there and in GPT-J (mesh-transformer-jax
    ``mesh_transformer/layers.py``, ``rotate_every_two``), and half of R apart in GPT-NeoX
    (``megatron/model/positional_embeddings.py``, ``rotate_half``).

    Args:
        x_HTK: queries or keys.
        cos_TR, sin_TR: of the angle of each position and pair, [T, R/2].
        rope: which channels are a pair.
    """
    turned_HTK = x_HTK.copy()
    a, b = pairs(rope)
    turned_HTK[..., a] = x_HTK[..., a] * cos_TR - x_HTK[..., b] * sin_TR
    turned_HTK[..., b] = x_HTK[..., b] * cos_TR + x_HTK[..., a] * sin_TR
    return turned_HTK


def pairs(rope: Rope) -> tuple[slice, slice]:
    """The two channels of each pair."""
    half = rope.size // 2
    if rope.pairs:
        return slice(0, rope.size, 2), slice(1, rope.size, 2)
    return slice(0, half), slice(half, rope.size)


def slopes(n_head: int) -> Array:
    """How much each head's scores fall from one source to the one before, [H].

    Press et al. 2022 (ALiBi), section 3: 2^(-8i/H), i = 1 … H, for H a power of two. For others
    their code (``fairseq/models/transformer.py``, ``get_slopes``) takes those of the power
    below, and then every other one of the power above.
    """
    power = 1 << (n_head.bit_length() - 1)
    below = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    above = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([below, above[: n_head - power]])


def alibi(scores_HTS: Array, slopes_H: Array) -> Array:
    """The score of source s falls by its distance from target t, times the head's slope: Press et
    al. 2022, section 3. What is masked afterwards is left as it is."""
    t, s = scores_HTS.shape[-2:]
    distance_TS = (np.arange(t)[:, None] - np.arange(s)).astype(scores_HTS.dtype)
    slopes_H11 = slopes_H.astype(scores_HTS.dtype)[:, None, None]
    return scores_HTS - slopes_H11 * np.maximum(distance_TS, 0)
