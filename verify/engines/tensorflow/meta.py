"""The graph in a checkpoint's ``.meta``: does it hold the model's forward pass, and what is it?

``.meta`` is the graph that wrote the checkpoint. It is written by whoever wrote the files, and a
graph can read and write files, so that no operation is run but those of arithmetic listed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_verify.engines.tensorflow.graph import SCOPE, session
from gpt_verify.engines.tensorflow.messages import reason
from gpt_verify.process.worker import one_line

tf1 = tf.compat.v1

_VARIABLE = {"VariableV2", "Variable", "VarHandleOp"}
#: Operations whose result is their first input, at most cast or transposed.
_SAME = {"Identity", "ReadVariableOp", "Cast", "Transpose", "StopGradient", "Enter"}
_GATHER = {"Gather", "GatherV2", "ResourceGather"}
_MATMUL = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_MklMatMul"}
#: Everything that a forward pass and its restoring can need; nothing else is run.
_ARITHMETIC = """
    Add AddN AddV2 Assign AssignVariableOp BiasAdd BroadcastTo ConcatV2 Const Cumsum Div Einsum
    Equal Erf Exp ExpandDims Fill FloorDiv FloorMod Greater GreaterEqual Less LessEqual Log
    LogicalAnd LogicalNot MatrixBandPart Max Maximum Mean Minimum Mul Neg NoOp NotEqual OneHot
    OnesLike Pack Placeholder PlaceholderWithDefault Pow Prod Range Rank RealDiv Reshape RestoreV2
    Rsqrt Select SelectV2 Shape ShapeN Size Slice Softmax Split SplitV Sqrt Square
    SquaredDifference Squeeze StridedSlice Sub Sum Tanh Tile Unpack Where ZerosLike
"""
_BACKWARD = re.compile(r"(^|/)gradients(_\d+)?/")
#: RandomUniform, StatelessRandomUniformV2, RngReadAndSkip, …
_DRAWS = re.compile("Random|Rng|Stateful(Uniform|StandardNormal)|Truncated|Multinomial|Dropout")
_RUN = _VARIABLE | _SAME | _GATHER | _MATMUL | set(_ARITHMETIC.split())


@dataclass(frozen=True)
class Forward:
    """The forward graph that was found.

    Attributes:
        description: one line.
        operations: type of operation → how many there are.
        tokens: what the ids are fed to; None where there is no forward graph.
        logits: the result of its last product; None likewise.
        tied: that product reads the variable that the ids gather rows of; None likewise.
    """

    description: str
    operations: dict[str, int]
    tokens: Any = None
    logits: Any = None
    tied: bool | None = None


def find_forward(graph: tf.Graph, logits: Any = None) -> Forward:
    """Look for integers fed to a gather from ``model/wte`` and for the last product after that.

    The last product is one with ``model/wte`` itself where there is one; else one with another
    matrix of the same two sizes that no other such product comes after.

    Args:
        graph: any graph.
        logits: look at what this tensor is computed from, and at nothing else.
    """
    operations = graph.get_operations()
    if logits is not None:
        needed = ancestors([logits.op])
        operations = [op for op in operations if op in needed]
    counts = dict(sorted(Counter(op.type for op in operations).items()))

    def missing(what: str) -> Forward:
        return Forward(f"no forward graph: {what}", counts)

    wte = next((op for op in operations if op.name == f"{SCOPE}/wte"), None)
    if wte is None or wte.type not in _VARIABLE:
        return missing(f"no variable {SCOPE}/wte")
    gathers = _gathers(operations, wte)
    if not gathers:
        return missing(f"no gather from {SCOPE}/wte whose indices are fed")
    heads = [(op, variable, ancestors([op])) for op, variable in _heads(operations, wte)]
    heads = [head for head in heads if any(gather in head[2] for gather, _ in gathers)]
    if not heads:
        return missing(f"no product with {SCOPE}/wte, nor with a matrix of its sizes, after that")
    tied = [head for head in heads if head[1] is wte]
    last = [head for head in heads if not any(head[0] in h[2] for h in heads if h is not head)]
    # There may be several forward passes, one with a cache for example: the plainest.
    product, variable, before = min(tied or last, key=lambda head: len(head[2]))
    gather, ids = next((gather, ids) for gather, ids in gathers if gather in before)
    first = f"{ids.op.name} ({ids.dtype.name}) is fed to {gather.type} {gather.name}"
    second = f"{product.type} {product.name}"
    description = (
        f"{first}; it and {second} read the one variable {wte.name}"
        if tied
        else f"{first}, which reads {wte.name}; {second} reads another variable, {variable.name}"
    )
    return Forward(description, counts, ids, product.outputs[0], bool(tied))


def _gathers(operations: Iterable[Any], wte: Any) -> list[tuple[Any, Any]]:
    """Every gather of rows of wte whose indices are fed, and what they are fed to."""
    found = [
        (op, _source(op.inputs[1]))
        for op in operations
        if op.type in _GATHER and _source(op.inputs[0]).op is wte
    ]
    return [
        (op, ids)
        for op, ids in found
        if ids.op.type.startswith("Placeholder") and ids.dtype.is_integer
    ]


def _heads(operations: Iterable[Any], wte: Any) -> Iterator[tuple[Any, Any]]:
    """Every product that makes V logits of D channels by one variable, and that variable.

    Products of a backward pass, some of which do the same, are told by the scope that
    ``tf.gradients`` gives them. Where V = D, it is known of wte alone which axis is which.
    """
    n_vocab, n_embd = _shape(wte)
    for op in operations:
        if op.type not in _MATMUL or _BACKWARD.search(op.name):
            continue
        variable, is_transposed = _matrix(op)
        if variable.type not in _VARIABLE:
            continue
        if _shape(variable) != ([n_vocab, n_embd] if is_transposed else [n_embd, n_vocab]):
            continue
        if variable is not wte or is_transposed:
            yield op, variable


def _matrix(product: Any) -> tuple[Any, bool]:
    """The operation that the second factor comes from, and whether it is transposed on the way."""
    known = product.node_def.attr
    is_transposed = any(
        product.get_attr(name) for name in ("transpose_b", "adj_y") if name in known
    )
    tensor = product.inputs[1]
    while tensor.op.type in _SAME:
        is_transposed ^= tensor.op.type == "Transpose"
        tensor = tensor.op.inputs[0]
    return tensor.op, is_transposed


def _shape(variable: Any) -> list[int]:
    """Sizes of a variable; -1 for one that the graph does not know."""
    return [dim.size for dim in variable.get_attr("shape").dim]


def run_forward(
    meta: str, prefix: str, tokens: NDArray[np.integer]
) -> tuple[Forward, NDArray[np.floating] | None]:
    """Import a ``.meta``, restore its variables from ``prefix``, and compute [B, T, V]."""
    graph = tf.Graph()
    with graph.as_default():
        try:
            saver = tf1.train.import_meta_graph(meta, clear_devices=True)
        except Exception as error:  # whatever a file of another version or author brings about
            return Forward(
                f"no forward graph: .meta cannot be imported: {one_line(error)}", {}
            ), None
        forward = find_forward(graph)
        if forward.logits is None:
            return forward, None
        if saver is None:
            return _not_run(forward, "not run: it has no Saver to restore it"), None
        restore = graph.get_operation_by_name(saver.saver_def.restore_op_name)
        used = {op.type for op in ancestors([forward.logits.op, restore])}
        if used - _RUN:
            strange = ", ".join(sorted(used - _RUN))
            return _not_run(forward, f"not run: more than arithmetic ({strange})"), None
        with session(graph) as run:
            try:
                saver.restore(run, prefix)
            except (tf.errors.OpError, ValueError) as error:
                why = reason(getattr(error, "message", str(error)))
                return _not_run(forward, f"not run: it cannot be restored: {why}"), None
            flat = run.run(forward.logits, {forward.tokens: tokens})
    return forward, flat.reshape(*tokens.shape, -1)


def _not_run(forward: Forward, why: str) -> Forward:
    return replace(forward, description=f"{forward.description}; {why}")


def drawn(tensor: Any) -> list[str]:
    """Operations that draw random numbers on the way to a tensor: ``name (type)``, sorted.

    Dropout of TensorFlow 1 is made of them, and is there or not when a graph is built; there is no
    mode that could be switched.
    """
    found = [op for op in ancestors([tensor.op]) if _DRAWS.search(op.type)]
    return sorted(f"{op.name} ({op.type})" for op in found)


def constants(tensor: Any) -> list[float]:
    """The single floating-point numbers that are written into the graph of a tensor, sorted."""
    values = {
        float(tf.make_ndarray(op.get_attr("value")))
        for op in ancestors([tensor.op])
        if op.type == "Const" and op.outputs[0].dtype.is_floating and op.outputs[0].shape == []
    }
    return sorted(values)


def ancestors(operations: Iterable[Any]) -> set[Any]:
    """The operations, and all that they need to run."""
    seen: set[Any] = set()
    waiting = list(operations)
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting += [tensor.op for tensor in op.inputs]
            waiting += op.control_inputs
    return seen


def _source(tensor: Any) -> Any:
    """The tensor that this one comes from, past the operations that pass it on."""
    while tensor.op.type in _SAME | {"Reshape", "ExpandDims", "Squeeze"}:
        tensor = tensor.op.inputs[0]
    return tensor
