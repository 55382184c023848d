"""Run as a script, in a process of its own: a graph with two tables as a checkpoint's ``.meta``.

python untied_meta.py DIRECTORY V D
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorflow as tf

tf1 = tf.compat.v1


def main(directory: Path, n_vocab: int, n_embd: int) -> None:
    (index,) = directory.glob("*.index")
    with tf.Graph().as_default():
        wte, head = (
            tf1.get_variable(f"model/{name}", [n_vocab, n_embd], use_resource=False)
            for name in ("wte", "head")
        )
        tokens = tf1.placeholder(tf.int32, [None, None], name="tokens")
        rows = tf.reshape(tf.gather(wte, tokens), [-1, n_embd])
        tf.matmul(rows, head, transpose_b=True)
        tf1.train.Saver()
        tf1.train.export_meta_graph(str(index.with_suffix(".meta")))


main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
