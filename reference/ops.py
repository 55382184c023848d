"""The operations of GPT-2, bottom up, with what other families do in the same places.

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


def gelu(x: Array, root: float = SQRT_2_OVER_PI) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): gpt-2 ``src/model.py:25``.

    The tanh approximation *is* the model; the exact form with erf is another function, and so is
    one with √(2/π) in fewer digits, ``root``.
    """
    tanh: Array = np.tanh(root * (x + GELU_CUBIC * (x * x * x)))
    return 0.5 * x * (1.0 + tanh)


def softmax(x: Array) -> Array:
    """exp(x) / Σ exp(x) over the last axis, shifted by the maximum: gpt-2 ``src/model.py:20``."""
    return _softmax(x - np.max(x, axis=-1, keepdims=True))


def _softmax(y: Array) -> Array:
    """The softmax of scores that were shifted. Each step overwrites the one before it: the patterns
    of a long sequence are large."""
    np.exp(y, out=y)
    y /= np.sum(y, axis=-1, keepdims=True)
    return y


def layer_norm(x_TD: Array, g_D: Array, b_D: Array, epsilon: float = LAYER_NORM_EPSILON) -> Array:
    """g · (x - mean) / √(variance + ε) + b: Ba et al. 2016 equation 4; gpt-2 ``src/model.py:28``.

    The variance is the biased one (divided by D), and ε is inside the root.

    Args:
        x_TD: the input, normed over its last axis.
        g_D, b_D: gain and bias.
        epsilon: ε.
    """
    centred_TD = x_TD - np.mean(x_TD, axis=-1, keepdims=True)
    variance_T1 = np.mean(centred_TD * centred_TD, axis=-1, keepdims=True)
    normed_TD: Array = centred_TD / np.sqrt(variance_T1 + epsilon)
    return g_D * normed_TD + b_D


def rms_norm(x_TD: Array, g_D: Array, epsilon: float) -> Array:
    """g · x / √(mean(x²) + ε): Zhang and Sennrich 2019, equation 4; nothing is centred or added.

    ε is not in the equation; inside the root it is in llama ``llama/model.py``, ``RMSNorm._norm``.
    """
    square_T1 = np.mean(x_TD * x_TD, axis=-1, keepdims=True)
    normed_TD: Array = x_TD / np.sqrt(square_T1 + epsilon)
    return g_D * normed_TD


def linear(x_Ti: Array, w_io: Array, b_o: Array | None = None) -> Array:
    """x W + b, with W stored [in, out]: gpt-2 ``src/model.py:51`` (``conv1d``)."""
    product_To: Array = x_Ti @ w_io
    return product_To if b_o is None else product_To + b_o


def split_heads(x_TC: Array, n_head: int) -> tuple[Array, Array, Array]:
    """q, k and v side by side → each [H, T, K]: gpt-2 ``src/model.py:76`` and ``:104``."""
    t, c = x_TC.shape
    parts = x_TC.reshape(t, 3, n_head, c // (3 * n_head)).transpose(1, 2, 0, 3)
    return parts[0], parts[1], parts[2]


def heads_of(x_TX: Array, n_head: int) -> Array:
    """Heads side by side → [H, T, K]."""
    return x_TX.reshape(len(x_TX), n_head, -1).transpose(1, 0, 2)


def side_by_side(x_HTK: Array) -> Array:
    """[H, T, K] → heads side by side: the inverse of ``heads_of``."""
    h, t, k = x_HTK.shape
    return x_HTK.transpose(1, 0, 2).reshape(t, h * k)


def shared(x_GSK: Array, n_head: int) -> Array:
    """Keys or values of each of H heads, where neighbours share one of G: [H, S, K].

    Ainslie et al. 2023 (GQA), section 2.2: query heads are divided into G groups; head h reads
    ⌊h G / H⌋, as ``repeat_interleave`` has it in gemma_pytorch ``gemma/model.py``.
    """
    times = n_head // len(x_GSK)
    shared_HSK: Array = x_GSK if times == 1 else np.repeat(x_GSK, times, axis=0)
    return shared_HSK


def attention_scores(q_HTK: Array, k_HSK: Array, scale: float | None = None) -> Array:
    """How much target t asks for source s, before the mask: q·k / √K, or another scale.

    Vaswani et al. 2017, equation 1; gpt-2 ``src/model.py:95``.
    """
    if scale is None:
        scale = 1.0 / float(np.sqrt(q_HTK.shape[-1]))
    return (q_HTK @ k_HSK.transpose(0, 2, 1)) * scale


def soft_cap(x: Array, cap: float) -> Array:
    """c tanh(x / c), which lies between -c and c: Gemma Team 2024 (Gemma 2), section 2."""
    capped: Array = cap * np.tanh(x / cap)
    return capped


def sees(shape_TS: tuple[int, int], window: int | None = None) -> NDArray[np.bool_]:
    """Which sources a target reads, bool[T, S]: those up to itself, the last W of them.

    0 ≤ t - s < W: Jiang et al. 2023 (Mistral 7B), section 2; gpt-oss ``gpt_oss/torch/model.py``,
    ``sdpa``, masks the diagonal W below the main one and all under it.
    """
    below_TS: NDArray[np.bool_] = np.tri(*shape_TS, dtype=bool)
    if window is not None:
        below_TS &= ~np.tri(*shape_TS, -window, dtype=bool)
    return below_TS


def causal_softmax(
    scores_HTS: Array, window: int | None = None, sinks_H: Array | None = None
) -> Array:
    """Softmax over the sources s ≤ t, or the last W of them; exactly zero elsewhere.

    OpenAI subtracts 1e10 from what is masked (gpt-2 ``src/model.py:89``), whose exponential is
    zero in every floating-point format, so the pattern is the same.

    Args:
        scores_HTS: before the mask.
        window: W.
        sinks_H: a score that joins the sum of each head and belongs to no source (gpt-oss
            ``gpt_oss/torch/model.py``, ``sdpa``).
    """
    t, s = scores_HTS.shape[-2:]
    masked_HTS = np.where(sees((t, s), window), scores_HTS, -np.inf)
    if sinks_H is None:
        masked_HTS -= np.max(masked_HTS, axis=-1, keepdims=True)
        return _softmax(masked_HTS)
    sink_HT1 = np.broadcast_to(sinks_H[:, None, None], (*masked_HTS.shape[:2], 1))
    return softmax(np.concatenate([masked_HTS, sink_HT1], axis=-1))[..., :-1]


def attention_mix(pattern_HTS: Array, v_HSK: Array) -> Array:
    """Information flows from source s to target t; heads are laid side by side again: [T, D]."""
    return side_by_side(pattern_HTS @ v_HSK)


def embed(
    tokens_T: NDArray[np.integer],
    wte_VD: Array,
    wpe_PD: Array | None,
    dtype: DTypeLike = np.float64,
    offset: int = 0,
    scale: float | None = None,
) -> Array:
    """One row for the token plus one row for the position: gpt-2 ``src/model.py:158``.

    Rows are taken before they are converted, so that the table itself is never copied.

    Args:
        tokens_T: ids.
        wte_VD, wpe_PD: the tables; None where positions have none.
        dtype: of the result.
        offset: the row of position 0.
        scale: what the row of the token is multiplied with (√D: gemma_pytorch
            ``gemma/model.py``, ``GemmaForCausalLM.forward``).
    """
    token_TD: Array = wte_VD[tokens_T].astype(dtype)
    if scale is not None:
        token_TD *= scale
    if wpe_PD is None:
        return token_TD
    position_TD: Array = wpe_PD[offset : offset + len(tokens_T)].astype(dtype)
    return token_TD + position_TD


def unembed(x_TD: Array, wte_VD: Array) -> Array:
    """The product with every token's row, so that wte is the head: gpt-2 ``src/model.py:172``."""
    return x_TD @ wte_VD.T
