"""The sites are found in an ONNX graph by the initializers that its operations use.

A bias is added by one node, whose output is the site; a gain or a matrix is used by one node, whose
other input is the site before. So a graph needs no names of ours, only tensors that were matched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: What may lie between an initializer and the operation that uses it.
_LAYOUT = {"Identity", "Transpose", "Cast", "Reshape"}
#: The last tensor of an operation → the site that it computes.
_MADE_BY = {
    "ln_1/b": "ln_1",
    "attn/c_attn/b": "attn.qkv",
    "attn/c_proj/b": "attn.out",
    "ln_2/b": "ln_2",
    "mlp/c_fc/b": "mlp.pre",
    "mlp/c_proj/b": "mlp.out",
}
#: The first tensor of an operation → the site that it reads.
_READ_BY = {
    "attn/c_proj/w": "attn.mix",
    "ln_2/g": "resid_mid",
    "mlp/c_proj/w": "mlp.act",
}
#: Operations with one input beside the tensor.
_READERS = {"Gemm", "MatMul", "LayerNormalization", "SkipLayerNormalization"}


def find_sites(graph: Any, placed: Mapping[str, str], n_layer: int) -> dict[str, str]:
    """Site → the value of the graph that holds it, in the order of computation.

    Args:
        graph: ``onnx.GraphProto``.
        placed: initializer → checkpoint name; one that holds a part of a tensor is left out.
        n_layer: of the checkpoint.
    """
    tensors = dict(placed)
    made: dict[str, str] = {}
    softmax = []
    for node in graph.node:
        if node.op_type in _LAYOUT and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
            continue
        if node.op_type == "Softmax":
            softmax.append(node.output[0])
        for name in node.input:
            if name in tensors:
                _note(made, node, tensors[name], n_layer, name)
    if len(softmax) == n_layer:  # attention that is written out
        for layer, value in enumerate(softmax):
            made[f"h.{layer}.attn.pattern"] = value
    return {site: made[site] for site in _order(n_layer) if site in made}


def _note(made: dict[str, str], node: Any, tensor: str, n_layer: int, name: str) -> None:
    scope, _, rest = tensor.partition("/")
    layer = scope.removeprefix("h")
    if rest in _MADE_BY:
        made[f"h.{layer}.{_MADE_BY[rest]}"] = node.output[0]
    elif tensor == "ln_f/b":
        made["ln_f"] = node.output[0]
    if node.op_type not in _READERS:
        return
    read = next((other for other in node.input if other != name), None)
    if read is None:
        return
    if rest in _READ_BY:
        made[f"h.{layer}.{_READ_BY[rest]}"] = read
    elif rest == "ln_1/g":
        made["embed" if layer == "0" else f"h.{int(layer) - 1}.resid_post"] = read
    elif tensor == "ln_f/g":
        made[f"h.{n_layer - 1}.resid_post"] = read


def _order(n_layer: int) -> Iterator[str]:
    """The sites that can be found, as the reference computes them."""
    yield "embed"
    for layer in range(n_layer):
        for name in (
            *("ln_1", "attn.qkv", "attn.pattern", "attn.mix", "attn.out", "resid_mid"),
            *("ln_2", "mlp.pre", "mlp.act", "mlp.out", "resid_post"),
        ):
            yield f"h.{layer}.{name}"
    yield "ln_f"
