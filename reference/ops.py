"""The operations of GPT-2, bottom up.

Each follows the dtype of its input, so that float64 in gives float64 out, and float32 gives the
same formula with float32's rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.floating]

#: gpt-2 ``src/model.py:28``: ``def norm(x, scope, *, axis=-1, epsilon=1e-5)``.
LAYER_NORM_EPSILON = 1e-5
#: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2: the cubic term of the approximation.
GELU_CUBIC = 0.044715
SQRT_2_OVER_PI = float(np.sqrt(2.0 / np.pi))


def gelu(x: Array) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): gpt-2 ``src/model.py:25``.

    The tanh approximation *is* the model; the exact form with erf is another function.
    """
    tanh: Array = np.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * (x * x * x)))
    return 0.5 * x * (1.0 + tanh)


def softmax(x: Array) -> Array:
    """exp(x) / Σ exp(x) over the last axis, shifted by the maximum: gpt-2 ``src/model.py:20``."""
    return _softmax(x - np.max(x, axis=-1, keepdims=True))


def _softmax(y: Array) -> Array:
    """Of scores that were shifted. Each step overwrites the one before it: the patterns of a long
    sequence are large."""
    np.exp(y, out=y)
    y /= np.sum(y, axis=-1, keepdims=True)
    return y


def layer_norm(x_TD: Array, g_D: Array, b_D: Array) -> Array:
    """g · (x - mean) / √(variance + ε) + b: Ba et al. 2016 equation 4; gpt-2 ``src/model.py:28``.

    The variance is the biased one (divided by D), and ε is inside the root.
    """
    centred_TD = x_TD - np.mean(x_TD, axis=-1, keepdims=True)
    variance_T1 = np.mean(centred_TD * centred_TD, axis=-1, keepdims=True)
    normed_TD: Array = centred_TD / np.sqrt(variance_T1 + LAYER_NORM_EPSILON)
    return g_D * normed_TD + b_D


def linear(x_Ti: Array, w_io: Array, b_o: Array) -> Array:
    """x W + b, with W stored [in, out]: gpt-2 ``src/model.py:51`` (``conv1d``)."""
    return x_Ti @ w_io + b_o


def split_heads(x_TC: Array, n_head: int) -> tuple[Array, Array, Array]:
    """q, k and v side by side → each [H, T, K]: gpt-2 ``src/model.py:76`` and ``:104``."""
    t, c = x_TC.shape
    parts = x_TC.reshape(t, 3, n_head, c // (3 * n_head)).transpose(1, 2, 0, 3)
    return parts[0], parts[1], parts[2]


def attention_scores(q_HTK: Array, k_HSK: Array) -> Array:
    """How much target t asks for source s, before the mask: q·k / √K.

    Vaswani et al. 2017, equation 1; gpt-2 ``src/model.py:95``.
    """
    scale = 1.0 / float(np.sqrt(q_HTK.shape[-1]))
    return (q_HTK @ k_HSK.transpose(0, 2, 1)) * scale


def causal_softmax(scores_HTS: Array) -> Array:
    """Softmax over the sources s ≤ t; exactly zero for s > t.

    OpenAI subtracts 1e10 from what is masked (gpt-2 ``src/model.py:89``), whose exponential is
    zero in every floating-point format, so the pattern is the same.
    """
    t, s = scores_HTS.shape[-2:]
    masked_HTS = np.where(np.tri(t, s, dtype=bool), scores_HTS, -np.inf)
    masked_HTS -= np.max(masked_HTS, axis=-1, keepdims=True)
    return _softmax(masked_HTS)


def attention_mix(pattern_HTS: Array, v_HSK: Array) -> Array:
    """Information flows from source s to target t; heads are laid side by side again: [T, D]."""
    mix_HTK = pattern_HTS @ v_HSK
    h, t, k = mix_HTK.shape
    return mix_HTK.transpose(1, 0, 2).reshape(t, h * k)


def embed(
    tokens_T: NDArray[np.integer], wte_VD: Array, wpe_PD: Array, dtype: DTypeLike = np.float64
) -> Array:
    """One row for the token plus one row for the position: gpt-2 ``src/model.py:158``.

    Rows are taken before they are converted, so that the table itself is never copied.
    """
    token_TD: Array = wte_VD[tokens_T].astype(dtype)
    position_TD: Array = wpe_PD[: len(tokens_T)].astype(dtype)
    return token_TD + position_TD


def unembed(x_TD: Array, wte_VD: Array) -> Array:
    """The product with every token's row, so that wte is the head: gpt-2 ``src/model.py:172``."""
    return x_TD @ wte_VD.T
