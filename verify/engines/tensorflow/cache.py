"""Decoding with the cache of the published graph: ``past`` in, ``present`` out.

The cache is OpenAI's: one array of keys and values, [B, L, 2, H, S, K], to which the ``body`` of
gpt-2 ``src/sample.py`` appends what each step returns. It stays in this process: at n_ctx positions
it is larger than everything else that a step reads or returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_verify.engines.tensorflow.graph import SCOPE, Published, Weights, forward

tf1 = tf.compat.v1

Array = NDArray[Any]


class Decoder:
    """The part that is added to the graph of one model in order to decode with it in one
    precision."""

    def __init__(self, model: Published, dtype: str) -> None:
        config = model.config
        self._model = model
        # [B, L, 2, H, S, K] (line 134), still without positions.
        self._empty = np.empty(
            (1, config.n_layer, 2, config.n_head, 0, config.head_size), np.dtype(dtype)
        )
        with model.added(f"decoding/{dtype}"):
            shape = [None, config.n_layer, 2, config.n_head, None, config.head_size]
            self._past = tf1.placeholder(dtype, shape, name="past")
            weights = Weights(model.variables, dtype)
            root = f"decoding/{dtype}/{SCOPE}"
            sites = dict(forward(config, model.tokens, weights, root, self._past))
            presents = [sites[f"h.{i}.attn.present"] for i in range(config.n_layer)]
            self._step = sites["logits"], tf.stack(presents, axis=1)

    def step(self, tokens: Array, past: Array | None) -> tuple[Array, Array]:
        """Logits of tokens that follow those in the cache, and the cache with them added.

        Args:
            tokens: int[B, S].
            past: of an earlier step; None at the start, which is the same graph with a cache that
                has no positions.

        Returns:
            Logits [B, S, V] and the new cache.
        """
        if past is None:
            past = self._empty.repeat(len(tokens), axis=0)
        feed = {self._model.tokens: tokens, self._past: past}
        logits, present = self._model.session.run(self._step, feed)
        return logits, np.concatenate([past, present], axis=-2)
