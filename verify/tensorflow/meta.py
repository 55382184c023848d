"""The graph in a checkpoint's ``.meta``: does it hold the model's forward pass, and what is it?

``.meta`` is the graph that wrote the checkpoint. It is written by whoever wrote the files, and a
graph can read and write files, so that no operation is run but those of arithmetic listed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from verify.tensorflow.graph import SCOPE, session
from verify.worker import one_line

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
_RUN = _VARIABLE | _SAME | _GATHER | _MATMUL | set(_ARITHMETIC.split())


@dataclass(frozen=True)
class Forward:
    """What was found: ``tokens`` and ``logits`` are None where there is no forward graph."""

    description: str
    operations: dict[str, int]
    tokens: Any = None
    logits: Any = None


def find_forward(graph: tf.Graph) -> Forward:
    """Look for integers fed to a gather from ``model/wte`` and for a product with it after that."""
    counts = dict(sorted(Counter(op.type for op in graph.get_operations()).items()))

    def missing(what: str) -> Forward:
        return Forward(f"no forward graph: {what}", counts)

    wte = [op for op in graph.get_operations() if op.name == f"{SCOPE}/wte"]
    if not wte or wte[0].type not in _VARIABLE:
        return missing(f"no variable {SCOPE}/wte")
    readers = _readers(wte[0])
    gathers = [(op, _source(op.inputs[1])) for op in readers if op.type in _GATHER]
    gathers = [
        (op, ids)
        for op, ids in gathers
        if ids.op.type.startswith("Placeholder") and ids.dtype.is_integer
    ]
    if not gathers:
        return missing(f"no gather from {SCOPE}/wte whose indices are fed")
    found = []
    for op in (op for op in readers if op.type in _MATMUL):
        before = ancestors([op])
        found += [(len(before), op, gather, ids) for gather, ids in gathers if gather in before]
    if not found:
        return missing(f"no product with {SCOPE}/wte after the gather")
    # A training graph has a second such product, the gradient's; it comes after the first.
    _, product, gather, ids = min(found, key=lambda candidate: candidate[0])
    return Forward(
        f"{ids.op.name} ({ids.dtype.name}) is fed to {gather.type} {gather.name}; it and "
        f"{product.type} {product.name} read the one variable {SCOPE}/wte",
        counts,
        ids,
        product.outputs[0],
    )


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
            return _not_run(forward, "it cannot be restored (no Saver)"), None
        restore = graph.get_operation_by_name(saver.saver_def.restore_op_name)
        used = {op.type for op in ancestors([forward.logits.op, restore])}
        if used - _RUN:
            strange = ", ".join(sorted(used - _RUN))
            return _not_run(forward, f"not run: more than arithmetic ({strange})"), None
        with session(graph) as run:
            saver.restore(run, prefix)
            flat = run.run(forward.logits, {forward.tokens: tokens})
    return forward, flat.reshape(*tokens.shape, -1)


def _not_run(forward: Forward, why: str) -> Forward:
    return replace(forward, description=f"{forward.description}; {why}")


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


def _readers(variable: Any) -> list[Any]:
    """Operations that use the variable's value as it is, cast or transposed."""
    readers, waiting = [], list(variable.outputs)
    while waiting:
        for op in waiting.pop().consumers():
            if op in readers:
                continue
            readers.append(op)
            if op.type in _SAME:
                waiting += op.outputs
    return readers


def _source(tensor: Any) -> Any:
    """Where a tensor comes from, past the operations that pass it on."""
    while tensor.op.type in _SAME | {"Reshape", "ExpandDims", "Squeeze"}:
        tensor = tensor.op.inputs[0]
    return tensor
