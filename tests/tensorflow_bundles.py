"""Run as a script, in a process of its own: TensorFlow writes bundles, and reads them back.

    python tensorflow_bundles.py DIRECTORY

Beside each bundle it leaves ``NAME.npz``, the bytes of every tensor as TensorFlow's own reader
returns them, in the order of ``NAME.json`` (names, types and shapes).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

DTYPES = [
    *(tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, tf.bool),
    *(tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.qint8, tf.qint16, tf.qint32, tf.quint8, tf.quint16),
]
SHAPES = {"scalar": (), "empty": (3, 0, 5), "vector": (7,), "cube": (2, 3, 5), "one": (1, 1)}


def random_tensor(dtype: tf.DType, shape: tuple[int, ...], rng: np.random.Generator) -> tf.Tensor:
    """Any bits at all, so that NaN with payloads, infinities and subnormals occur."""
    if dtype == tf.bool:
        return tf.constant(rng.integers(0, 2, shape).astype(bool))
    if dtype.is_quantized:
        plain = tf.as_dtype(dtype.name.removeprefix("q").replace("quint", "uint"))
        return tf.bitcast(random_tensor(plain, shape, rng), dtype)
    kind = dtype.as_numpy_dtype
    size = np.dtype(kind).itemsize * int(np.prod(shape))
    return tf.constant(np.frombuffer(rng.bytes(size), kind).reshape(shape), dtype)


def save(directory: Path, name: str, tensors: dict[str, tf.Tensor]) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(directory / name),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )


def read_back(directory: Path, name: str) -> None:
    reader = tf.train.load_checkpoint(str(directory / name))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    names = sorted(shapes)
    listed = [(n, dtypes[n].name, shapes[n]) for n in names]
    (directory / f"{name}.json").write_text(json.dumps(listed))
    values = [np.frombuffer(reader.get_tensor(n).tobytes(), np.uint8) for n in names]
    np.savez(directory / f"{name}.npz", *values)


def main(directory: Path) -> None:
    rng = np.random.default_rng(0)
    save(
        directory,
        "dtypes",
        {
            f"{dtype.name}/{label}": random_tensor(dtype, shape, rng)
            for dtype in DTYPES
            for label, shape in SHAPES.items()
        },
    )
    # TensorFlow starts a new block at 256 KiB; names that share little keep them long.
    save(
        directory,
        "many",
        {
            f"model/h{i % 48}/attn/{hashlib.sha512(bytes([i % 256, i // 256])).hexdigest()}": (
                tf.constant(np.float32(i))
            )
            for i in range(4000)
        },
    )
    parts = [{f"shard{i}/{label}": tf.random.normal([3, i + 2]) for label in "ab"} for i in (0, 1)]
    for i, part in enumerate(parts):
        save(directory, f"part{i}", part)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(directory / "part0"), str(directory / "part1")],
        destination_prefix=str(directory / "shards"),
    )
    for name in ("dtypes", "many", "shards"):
        read_back(directory, name)

    tf.raw_ops.SaveV2(
        prefix=str(directory / "sliced"),
        tensor_names=["table", "table"],
        shape_and_slices=["4 2 0,2:-", "4 2 2,2:-"],
        tensors=[tf.ones([2, 2]), tf.zeros([2, 2])],
    )
    texts = tf.raw_ops.TensorListReserve(element_shape=[1], num_elements=2, element_dtype=tf.int8)
    odd = {"text": tf.constant(["a", "bc"]), "list": texts, "plain": tf.constant([1.5])}
    save(directory, "unread", odd)
    save(directory, "small", {"a": tf.constant([1.0, 2.0]), "ab": tf.constant(3, tf.int64)})
    save_gpt2(directory / "gpt2")


def save_gpt2(directory: Path) -> None:
    """As OpenAI wrote theirs: variables in the scope ``model``, through the Saver."""
    from gpt_verify.reference import Config, tensor_table

    directory.mkdir()
    config = Config(n_vocab=11, n_ctx=7, n_embd=6, n_head=3, n_layer=2)
    rng = np.random.default_rng(1)
    values = {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("model"):
            for name, spec in tensor_table(config).items():
                value = rng.standard_normal(spec.stored_shape).astype(np.float32)
                tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
                values[name.replace("/", "|")] = value
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(directory / "model.ckpt"))
    (directory / "hparams.json").write_text(json.dumps(config.as_dict()))
    np.savez(directory.with_suffix(".npz"), **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
