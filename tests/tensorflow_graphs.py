"""Run as a script, in a process of its own: checkpoints whose ``.meta`` is not ours.

    python tensorflow_graphs.py DIRECTORY

Each gets the two variables ``model/wte`` [5, 3] and ``model/head`` and a graph of another author.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1


def tokens() -> tf.Tensor:
    return tf1.placeholder(tf.int32, [None, None], name="input")


def product(rows: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.matmul(tf.reshape(rows, [-1, 3]), table, transpose_b=True), [-1, 1, 5])


def only_variables(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    """What a program leaves that only copies weights."""


def embedding_only(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    tf.gather(wte, tokens())


def untied(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    product(tf.gather(wte, tokens()), head)


def untied_training(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    """With an inner matrix of the same sizes, and gradients that multiply by both again."""
    inner = tf.matmul(tf.reshape(tf.gather(wte, tokens()), [-1, 3]), head, transpose_b=True)
    rows = tf.matmul(tf.tanh(inner), head)
    tf1.gradients(tf.square(product(rows, head)), [wte, head])


def constant_input(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    product(tf.gather(wte, [[1, 2]]), wte)


def training(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    """The gradient multiplies by wte a second time."""
    tf1.gradients(tf.square(product(tf.tanh(tf.gather(wte, tokens())), wte)), wte)


def transposed(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    rows = tf.reshape(tf.tanh(tf.gather(tf.cast(wte, tf.float64), tokens())), [-1, 3])
    tf.matmul(rows, tf.transpose(tf.cast(wte, tf.float64)))


def writes_a_file(wte: tf.Tensor, head: tf.Tensor, directory: Path) -> None:
    written = tf.io.write_file(str(directory / "written"), "by a graph")
    with tf.control_dependencies([written]):
        product(tf.gather(wte, tokens()), wte)


def main(directory: Path) -> None:
    makers: list[Callable[[tf.Tensor, tf.Tensor, Path], None]] = [
        *(only_variables, embedding_only, untied, untied_training, constant_input),
        *(training, transposed, writes_a_file),
    ]
    values = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    np.save(directory / "tables.npy", values)
    for maker in makers:
        for resource in (False, True):
            with tf.Graph().as_default(), tf1.Session() as session:
                wte, head = (
                    tf1.get_variable(f"model/{name}", initializer=value, use_resource=resource)
                    for name, value in zip(("wte", "head"), values, strict=True)
                )
                maker(wte, head, directory)
                session.run(tf1.global_variables_initializer())
                kind = "resource" if resource else "reference"
                tf1.train.Saver().save(session, str(directory / f"{maker.__name__}-{kind}"))


main(Path(sys.argv[1]))
