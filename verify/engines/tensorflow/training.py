"""Loss and derivatives of the published graph.

The published code has no loss. Here it is the one operation of TensorFlow 1 that code which trains
this graph uses (``tf.nn.sparse_softmax_cross_entropy_with_logits`` of ``labels=tokens[:, 1:]`` and
``logits=logits[:, :-1]``), and every derivative is TensorFlow's own, by ``tf.gradients``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_verify.engines.tensorflow.graph import SCOPE, Published, Tensor, Weights, forward
from gpt_verify.port import IGNORED

tf1 = tf.compat.v1

Array = NDArray[Any]


class Training:
    """The part that is added to the graph of one model in order to train it in one precision.

    Each part is added when it is first asked for; the forward pass stays as it is.
    """

    def __init__(self, model: Published, dtype: str) -> None:
        self._model, self._dtype = model, dtype
        with self._added():
            self._labels = tf1.placeholder(tf.int32, [None, None], name="labels")

    def loss(self, tokens: Array, labels: Array) -> Array:
        """Nats, the mean over all labels from the second on that are not ignored; NaN for none.

        Args:
            tokens: int[B, T].
            labels: int[B, T], not shifted.
        """
        return np.asarray(self._run(self._loss, tokens, labels))

    def gradients(self, tokens: Array) -> Iterator[tuple[str, Array]]:
        """Derivatives of the loss, one at a time: of each variable under its own name, and under
        ``wte_input`` and ``wte_output`` that of wte through the lookup alone and through the last
        product alone.

        Memory is the activations of all layers at once, and then all the derivatives.
        """
        variables = (variable.op.name for variable in self._model.variables.values())
        values = deque(self._run(self._gradients[0], tokens, tokens))
        for name in (*variables, "wte_input", "wte_output"):
            yield name, values.popleft()  # and forget it

    def input_gradients(self, tokens: Array, position: int) -> Array:
        """Derivative of one prediction's loss with respect to each sum of embeddings: [T, D].

        Args:
            tokens: int[1, T].
            position: of the logits; the token after it is the label.
        """
        # The mean over one prediction is that prediction's loss.
        labels = np.full_like(tokens, IGNORED)
        labels[:, position + 1] = tokens[:, position + 1]
        value: Array = self._run(self._gradients[1], tokens, labels)[0]
        return value

    def descend(self, tokens: Array, rate: float) -> None:
        """One step of gradient descent on the loss, by TensorFlow's optimiser."""
        with self._added():
            optimiser = tf1.train.GradientDescentOptimizer(rate)
            step = optimiser.minimize(self._loss, var_list=list(self._model.variables.values()))
        self._run(step, tokens, tokens)

    @cached_property
    def _loss(self) -> Tensor:
        with self._added():
            return mean_loss(self._model.sites(self._dtype)["logits"], self._labels)

    @cached_property
    def _gradients(self) -> tuple[list[Tensor], Tensor]:
        """The derivatives with respect to the variables, then the two parts of wte's; and that of
        the sum of embeddings."""
        with self._added():
            weights, sites = self._differentiable()
            loss = mean_loss(sites["logits"], self._labels)
            embed, logits = sites["embed"], sites["logits"]
            *whole, at_embed, at_logits = tf1.gradients(loss, [*weights.values(), embed, logits])
            # From the sum of embeddings the lookup alone leads to wte; from the logits the last
            # product alone, where nothing goes beyond that sum.
            parts = tf1.gradients(embed, weights["wte"], at_embed)
            parts += tf1.gradients(logits, weights["wte"], at_logits, stop_gradients=[embed])
            return [tf.convert_to_tensor(gradient) for gradient in (*whole, *parts)], at_embed

    def _differentiable(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The tensors to differentiate with respect to, and the forward pass made of them.

        The derivative of a cast is rounded to what was cast. Where variables are cast, the forward
        pass is built once more, on one wide tensor for each variable.
        """
        variables = self._model.variables
        if self._dtype == "float32":
            return dict(variables), self._model.sites("float32")
        wide = {name: tf.cast(variable, self._dtype) for name, variable in variables.items()}
        weights = Weights(wide, self._dtype)
        root = f"{self._scope}/{SCOPE}"
        return wide, dict(forward(self._model.config, self._model.tokens, weights, root))

    @property
    def _scope(self) -> str:
        return f"training/{self._dtype}"

    def _added(self) -> AbstractContextManager[None]:
        return self._model.added(self._scope)

    def _run(self, what: Any, tokens: Array, labels: Array) -> Any:
        return self._model.session.run(what, {self._model.tokens: tokens, self._labels: labels})


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the predictions whose labels are not ignored."""
    following = labels[:, 1:]
    predicted = tf.not_equal(following, IGNORED)
    # The operation refuses what is no token.
    named = tf.where(predicted, following, tf.zeros_like(following))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=named, logits=logits[:, :-1])
    return tf.reduce_mean(tf.boolean_mask(losses, predicted))
