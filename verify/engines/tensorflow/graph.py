"""GPT-2 as OpenAI published it: a TensorFlow 1 graph whose every site can be fetched.

Operation by operation the graph of gpt-2 ``src/model.py`` (cited by line), written anew. Each
block takes everything it needs, its sizes too, from the residual stream before it, so that the
graph can be run block by block with that one tensor fed, and memory is one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_verify.reference import Config, tensor_table

tf1 = tf.compat.v1

#: A symbolic tensor; TensorFlow has no types to say more.
Tensor = Any
#: OpenAI's variables live in this scope: ``variable_scope('model')``, line 149.
SCOPE = "model"


def session(graph: tf.Graph) -> Any:
    """A session that computes each operation as it is written, none fused or rewritten.

    The optimizer would fuse other operations when other tensors are fetched, and the same model
    would have different bits with and without a look inside.
    """
    options = tf1.ConfigProto(allow_soft_placement=True)
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    options.graph_options.optimizer_options.opt_level = tf1.OptimizerOptions.L0
    options.gpu_options.allow_growth = True
    return tf1.Session(graph=graph, config=options)


class Published:
    """The graph, its variables and a session that holds their values.

    Attributes:
        variables: checkpoint name → variable ``model/<name>`` with the shape that is stored.
        tokens: the placeholder, int32[B, T].
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.graph = tf.Graph()
        self.variables: dict[str, Any] = {}
        self._sites: dict[str, dict[str, Tensor]] = {}
        with self.graph.as_default():
            self.tokens = tf1.placeholder(tf.int32, [None, None], name="tokens")
            for spec in tensor_table(config).values():
                self.variables[spec.name] = tf1.get_variable(
                    f"{SCOPE}/{spec.name}",
                    spec.stored_shape,
                    tf.float32,
                    tf1.zeros_initializer(),
                    use_resource=False,  # as in 2019: the matmul reads the variable by itself
                )
            self.sites("float32")
            self._saver = tf1.train.Saver(self.variables_by_key(), save_relative_paths=True)
        self.session = session(self.graph)

    def variables_by_key(self) -> dict[str, Any]:
        """Variables under the names that the checkpoint files have for them."""
        return {f"{SCOPE}/{name}": variable for name, variable in self.variables.items()}

    def sites(self, dtype: str) -> dict[str, Tensor]:
        """Site → tensor in the order of computation; both precisions share the variables."""
        if dtype not in self._sites:
            root = SCOPE if dtype == "float32" else f"{dtype}/{SCOPE}"
            with self.graph.as_default():
                weights = Weights(self.variables, dtype)
                self._sites[dtype] = dict(forward(self.config, self.tokens, weights, root))
        return self._sites[dtype]

    @contextmanager
    def added(self, root: str) -> Iterator[None]:
        """What is built within is added to the graph, under that scope."""
        with self.graph.as_default(), scope(root):
            yield

    def assign(self, name: str, value: NDArray[np.float32]) -> None:
        """Set one variable. The value passes through its initializer, so the graph does not grow
        (and no value becomes part of it: a graph is limited to 2 GB)."""
        initializer = self.variables[name].initializer
        self.session.run(initializer, {initializer.inputs[1]: value})

    def save(self, prefix: str) -> None:
        """Write ``prefix.{index,meta,data-…}`` and ``checkpoint`` beside them."""
        with self.graph.as_default():  # elsewhere the Saver takes itself for an eager one
            self._saver.save(self.session, prefix)

    def restore(self, prefix: str) -> None:
        """Fill every variable from the checkpoint files."""
        with self.graph.as_default():
            self._saver.restore(self.session, prefix)

    def logits(self, tokens: NDArray[np.integer], dtype: str) -> NDArray[np.floating]:
        """One run of the whole graph: [B, T, V]."""
        value: NDArray[np.floating] = self.session.run(
            self.sites(dtype)["logits"], {self.tokens: tokens}
        )
        return value

    def activations(
        self, tokens: NDArray[np.integer], dtype: str
    ) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """Every site in the order of computation; one block is in memory at a time."""
        sites = self.sites(dtype)
        stream, feed = "", {self.tokens: tokens}
        for group in segments(self.config):
            values = self.session.run([sites[site] for site in group], feed)
            yield from zip(group, values, strict=True)
            stream = group[-1]
            feed = {sites[stream]: values[-1]}


class Imported(Published):
    """A published graph as its ``.meta`` tells it, with the values that were saved beside it.

    Args:
        prefix: of the files, written by ``original.save``.
        original: says under which names tensors are found.
    """

    def __init__(self, prefix: str, original: Published) -> None:
        self.config = original.config
        self.graph = tf.Graph()
        with self.graph.as_default():
            self._saver = tf1.train.import_meta_graph(f"{prefix}.meta", clear_devices=True)
            variables = {v.op.name: v for v in tf1.global_variables()}
        self.variables = {
            name: variables[variable.op.name] for name, variable in original.variables.items()
        }
        self.tokens = self.graph.get_tensor_by_name(original.tokens.name)
        self._sites = {
            dtype: {site: self.graph.get_tensor_by_name(t.name) for site, t in sites.items()}
            for dtype, sites in original._sites.items()
        }
        self.session = session(self.graph)
        self.restore(prefix)


def segments(config: Config) -> Iterator[list[str]]:
    """Sites in groups, each of which depends on the last site of the group before it only."""
    yield ["embed"]
    attention = ("ln_1", *(f"attn.{part}" for part in ("qkv", "scores", "pattern", "mix", "out")))
    mlp = ("ln_2", "mlp.pre", "mlp.act", "mlp.out")
    for layer in range(config.n_layer):
        yield [f"h.{layer}.{part}" for part in (*attention, "resid_mid", *mlp, "resid_post")]
    yield ["ln_f", "logits"]


class Weights:
    """Variables in one precision, each cast where it is used and kept for no longer.

    Args:
        variables: checkpoint name → variable, or a tensor that stands for it.
        dtype: of what is computed with them.
    """

    def __init__(self, variables: Mapping[str, Any], dtype: str) -> None:
        self._variables, self._dtype = variables, tf.as_dtype(dtype)

    def __call__(self, name: str) -> Tensor:
        """The whole tensor."""
        return tf.cast(self._variables[name], self._dtype)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Some rows of it; the others are not cast."""
        return tf.cast(tf.gather(self._variables[name], ids), self._dtype)


def forward(
    config: Config, tokens: Tensor, w: Weights, root: str, past: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Build the graph in one precision: ``(site, tensor)`` in order, lines 147 to 174.

    Args:
        config: sizes.
        tokens: int32[B, T].
        w: the variables.
        root: the scope of its operations.
        past: keys and values of the positions before, [B, L, 2, H, S, K]. With it there is a
            further ``h.0.attn.present`` in each block, [B, 2, H, T, K]: what these tokens add.
    """
    with scope(root):
        steps = tf.range(tf.shape(tokens)[1])
        if past is not None:  # lines 145 and 157
            steps += tf.shape(past)[-2]
        positions = tf.tile(tf.expand_dims(steps, 0), [tf.shape(tokens)[0], 1])
        x = w.rows("wte", tokens) + w.rows("wpe", positions)
        pasts = [None] * config.n_layer if past is None else tf.unstack(past, config.n_layer, 1)
    yield "embed", x
    for layer in range(config.n_layer):
        with when_reached(x):
            for site, value in block(x, layer, config.n_head, w, root, pasts[layer]):
                yield site, value
        x = value
    with when_reached(x), scope(f"{root}/ln_f"):
        x = norm(x, w("ln_f/g"), w("ln_f/b"))
    yield "ln_f", x
    with when_reached(x), scope(root):
        # One variable is read twice, by the gather above and here: the head is tied (line 172).
        flat = tf.matmul(tf.reshape(x, [-1, config.n_embd]), w("wte"), transpose_b=True)
        yield "logits", tf.reshape(flat, [*shape_of(x)[:-1], config.n_vocab], "logits")


def block(
    x: Tensor, layer: int, n_head: int, w: Weights, root: str, past: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Each half adds to the residual stream what it makes of its norm: lines 124 to 132.

    Args:
        x: the residual stream, [B, T, D].
        layer: from 0.
        n_head: H.
        w: name of a tensor → the tensor.
        root: the scope of the model.
        past: keys and values of earlier tokens, [B, 2, H, S, K]; None without a cache.
    """
    at, own = f"h.{layer}", f"h{layer}"
    with scope(f"{root}/{own}/ln_1"):
        normed = norm(x, w(f"{own}/ln_1/g"), w(f"{own}/ln_1/b"))
    yield f"{at}.ln_1", normed
    with scope(f"{root}/{own}/attn"):
        for part, value in attention(normed, f"{own}/attn", n_head, w, past):
            yield f"{at}.attn.{part}", value
    with scope(f"{root}/{own}"):
        x = x + value
    yield f"{at}.resid_mid", x
    with scope(f"{root}/{own}/ln_2"):
        normed = norm(x, w(f"{own}/ln_2/g"), w(f"{own}/ln_2/b"))
    yield f"{at}.ln_2", normed
    with scope(f"{root}/{own}/mlp"):
        pre = conv1d(normed, w(f"{own}/mlp/c_fc/w"), w(f"{own}/mlp/c_fc/b"))
        yield f"{at}.mlp.pre", pre
        act = gelu(pre)
        yield f"{at}.mlp.act", act
        out = conv1d(act, w(f"{own}/mlp/c_proj/w"), w(f"{own}/mlp/c_proj/b"))
        yield f"{at}.mlp.out", out
    with scope(f"{root}/{own}"):
        yield f"{at}.resid_post", x + out


def attention(
    x: Tensor, own: str, n_head: int, w: Weights, past: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """The attention of one block: lines 69 to 113.

    Args:
        x: what it reads, normed, [B, T, D].
        own: scope of its tensors, ``h0/attn``.
        n_head: H.
        w: name of a tensor → the tensor.
        past: keys and values of earlier tokens, [B, 2, H, S, K]; None without a cache.
    """
    qkv = conv1d(x, w(f"{own}/c_attn/w"), w(f"{own}/c_attn/b"))
    yield "qkv", qkv
    q, k, v = (split_heads(part, n_head) for part in tf.split(qkv, 3, axis=-1))
    if past is not None:  # lines 105 to 109
        yield "present", tf.stack([k, v], axis=1)
        past_k, past_v = tf.unstack(past, 2, axis=1)
        k, v = tf.concat([past_k, k], axis=-2), tf.concat([past_v, v], axis=-2)
    # Line 96 multiplies by rsqrt of the head's size; it does not divide by the root.
    scores = tf.matmul(q, k, transpose_b=True) * tf.math.rsqrt(tf.cast(v.shape[-1], v.dtype))
    yield "scores", scores
    allowed = causal_mask(tf.shape(scores)[-2], tf.shape(scores)[-1], scores.dtype)
    pattern = softmax(scores * allowed - tf.cast(1e10, scores.dtype) * (1 - allowed))
    yield "pattern", pattern
    mix = tf.transpose(tf.matmul(pattern, v), [0, 2, 1, 3])
    mix = tf.reshape(mix, [*shape_of(mix)[:-2], mix.shape[-2] * mix.shape[-1]])
    yield "mix", mix
    yield "out", conv1d(mix, w(f"{own}/c_proj/w"), w(f"{own}/c_proj/b"))


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """[B, T, D] → [B, H, T, K]; lines 37 and 76."""
    parts = tf.reshape(x, [*shape_of(x)[:-1], n_head, x.shape[-1] // n_head])
    return tf.transpose(parts, [0, 2, 1, 3])


def causal_mask(n_to: Tensor, n_from: Tensor, dtype: tf.DType) -> Tensor:
    """1 in the lower triangle, counted from the lower right corner; line 54."""
    target, source = tf.range(n_to)[:, None], tf.range(n_from)
    return tf.cast(target >= source - n_from + n_to, dtype)


def softmax(x: Tensor) -> Tensor:
    """Line 20: shifted by the maximum, by hand and not by ``tf.nn.softmax``."""
    exponentials = tf.exp(x - tf.reduce_max(x, axis=-1, keepdims=True))
    return exponentials / tf.reduce_sum(exponentials, axis=-1, keepdims=True)


def gelu(x: Tensor) -> Tensor:
    """Line 25: the approximation with tanh."""
    return 0.5 * x * (1 + tf.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * tf.pow(x, 3))))


def norm(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Line 28: zero mean, unit (biased) variance, then gain and bias."""
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(variance + 1e-5) * g + b


def conv1d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Line 51: a convolution of width 1, which is a matrix product over all positions."""
    _width, n_in, n_out = w.shape
    flat = tf.matmul(tf.reshape(x, [-1, n_in]), tf.reshape(w, [-1, n_out])) + b
    return tf.reshape(flat, [*shape_of(x)[:-1], n_out])


def shape_of(x: Tensor) -> list[Any]:
    """Sizes, as numbers where the graph knows them; line 14."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]


@contextmanager
def when_reached(x: Tensor) -> Iterator[None]:
    """Nothing that follows runs before ``x`` is there, in a graph that casts its variables.

    All casts could run at once, before anything else, and the model would be in memory twice.
    """
    if x.dtype == tf.float32:
        yield  # nothing is cast, and the graph stays the published one
        return
    # Not x itself: where x is fed, waiting for it would compute it nevertheless.
    with tf.control_dependencies([tf.identity(x)]):
        yield


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Name what follows ``name/…`` although the variables have taken that name already."""
    with tf1.name_scope(f"{name}/"):
        yield
