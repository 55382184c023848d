"""Derivatives of a torch module's loss, and which part of those of wte came in by which end.

The loss is ours, from the port's logits; everything from the logits back is the port's and
autograd's. What each reader of wte contributes is taken from its node while the backward pass runs,
so nothing is put in the place of anything, and a part that was detached is seen to be missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from gpt_verify.matching.assembly import Assembly
from gpt_verify.matching.pieces import Piece
from gpt_verify.port import End, Floats, Gradients, GradientSink, NotExamined, Tokens
from gpt_verify.ports.torch.graph import Graph, Node
from gpt_verify.ports.torch.memory import clusters, span, view_like
from gpt_verify.ports.torch.parts import Outputs, Parts, Table, in_memory_of, wide_dtype
from gpt_verify.ports.torch.trace import to_numpy

if TYPE_CHECKING:
    from gpt_verify.ports.torch.module import TorchModule

Result = TypeVar("Result")

#: Factors of the loss, the first of which the derivatives are finite with: float16's range ends at
#: 6e-8 below, which most derivatives of a mean do not reach. Powers of two, hence exact.
_HALF_SCALES = (2.0**16, 2.0**8, 1.0)


class Differentiation:
    """``gradients`` and ``input_gradients`` of a torch module."""

    def __init__(self, port: TorchModule) -> None:
        self._port = port

    def gradients(self, tokens: Tokens, sink: GradientSink) -> bool:
        if tokens.shape[1] < 2:
            raise ValueError("the loss needs at least two tokens")
        return self._differentiated(lambda: self._gradients(tokens, sink))

    def input_gradients(self, tokens: Tokens, position: int) -> Floats:
        if len(tokens) != 1 or not 0 <= position < tokens.shape[1] - 1:
            raise ValueError(f"position {position} of tokens {list(tokens.shape)} predicts nothing")
        return self._differentiated(lambda: self._input_gradients(tokens, position))

    def graph(self, logits: torch.Tensor) -> Graph:
        """The graph that a run recorded.

        Raises:
            NotExamined: it recorded nothing.
        """
        if not logits.requires_grad:
            raise NotExamined(
                "no gradients and no graph: its output does not depend on its parameters "
                "differentiably"
            )
        tables = [table.tensor for table in self.tables()]
        return Graph(logits, tables, self._placed(lambda tensor: tensor not in ("wte", "wpe")))

    def tables(self) -> list[Table]:
        """Parameters that were matched to wte, and others that lie in their memory."""
        found: list[Table] = []
        named, whole = self._named(), self._whole()
        for placement in self._port.matching.placements:
            if placement.tensor == "wte":
                (name,) = whole[placement.parameter]
                found.append(Table(named[name], placement.transposed))
        known = {id(table.tensor) for table in found}
        for first in tuple(found):
            for other in named.values():
                if id(other) not in known and (shared := in_memory_of(first, other)):
                    found.append(shared)
                    known.add(id(other))
        return found

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Autograd on for every parameter; afterwards everything is as it was."""
        device = torch.device(self._port.device)
        states = [] if device.type == "cpu" else [torch.cuda.current_device()]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(states))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            frozen = [p for p in self._named().values() if not p.requires_grad]
            for parameter in frozen:
                parameter.requires_grad_(True)
            try:
                yield
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)

    def _differentiated(self, compute: Callable[[], Result]) -> Result:
        with self.recording():
            try:
                return compute()
            except RuntimeError as error:
                if not overwrites(error):
                    raise
            # It overwrites what its backward pass needs, so that its users run it only forwards.
            # The function that it computes has derivatives all the same.
            with (
                self._port.widened_at_once(),
                self.recording(),
                torch.autograd.graph.allow_mutation_on_saved_tensors(),
            ):
                return compute()

    def _gradients(self, tokens: Tokens, sink: GradientSink) -> bool:
        for scale in self.scales():
            sink.restart()
            arriving = Arriving(self._port, sink, scale)
            with self._port.differentiable(arriving.at_leaf):
                logits = self._port.run(tokens)
                graph = self.graph(logits)
                parts = Parts(graph, self.tables(), self._shape(), arriving.at_end)
                with parts, arriving:
                    (mean_loss(logits, tokens) * scale).backward()
            if scale == 1 or arriving.finite:
                break
        return parts.apart

    def _input_gradients(self, tokens: Tokens, position: int) -> Floats:
        shape = (tokens.shape[1], self._port.config.n_embd)
        positions = self._placed(lambda tensor: tensor == "wpe")
        for scale in self.scales():
            gradients = Gradients()
            arriving = Arriving(self._port, gradients, scale)
            with self._port.differentiable(arriving.at_leaf):
                logits = self._port.run(tokens)
                graph = self.graph(logits)
                seen = Outputs(_embedding_nodes(graph, positions), shape)
                target = torch.as_tensor(tokens[:, position + 1], device=logits.device)
                loss = cross_entropy(logits[:, position], target)
                # All of the graph is walked; what arrives at the other tensors is let go of.
                arriving.only = {id(tensor) for tensor in positions}
                with seen, arriving:
                    (loss * scale).backward()
            value = seen.first()
            array = _rows(gradients.parameters, shape) if value is None else _unscaled(value, scale)
            if scale == 1 or bool(np.isfinite(array).all()):
                break
        return array

    def scales(self) -> Sequence[float]:
        half = any(p.dtype == torch.float16 for p in self._named().values())
        return _HALF_SCALES if half else (1.0,)

    def _named(self) -> dict[str, torch.Tensor]:
        found = self._port.module.named_parameters(remove_duplicate=False)
        return {name: p for name, p in found if p.is_floating_point()}

    def _placed(self, wanted: Callable[[str], bool]) -> list[torch.Tensor]:
        whole, named = self._whole(), self._named()
        found = [
            named[name]
            for placement in self._port.matching.placements
            if wanted(placement.tensor)
            for name in whole[placement.parameter]
        ]
        return list({id(tensor): tensor for tensor in found}.values())

    def _whole(self) -> dict[str, list[str]]:
        """Name of a piece → the parameter that it is a piece of, or those that it is made of."""
        found = {piece.name: [piece.parameter] for piece in self._port.pieces}
        for assembly in self._port.assemblies:
            found[assembly.name] = [found[patch.source][0] for patch in assembly.patches]
        return found

    def _shape(self) -> tuple[int, int]:
        return self._port.config.n_vocab, self._port.config.n_embd


def overwrites(error: RuntimeError) -> bool:
    """Whether a backward pass ended because what it needs was overwritten."""
    return "modified by an inplace operation" in str(error)


def mean_loss(logits: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Radford et al. 2018 (GPT), equation 1, divided by the number of predictions; in nats."""
    if logits.shape[:2] != tokens.shape:
        raise RuntimeError(f"logits {list(logits.shape)} for tokens {list(tokens.shape)}")
    targets = torch.as_tensor(tokens[:, 1:].reshape(-1), device=logits.device)
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets)


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The mean, in float64: the loss is ours, and is not to add an error that the port would be
    blamed for.

    torch's own adds up the exponentials one after the other, which over 150,000 tokens was measured
    to be off by a thousand roundings, in float32 and in float64; ``sum`` adds them up in pairs.
    """
    wide_NV = logits_NV.double()
    largest_N = wide_NV.detach().amax(dim=-1, keepdim=True)
    exp_NV = (wide_NV - largest_N).exp()
    right_N = wide_NV.gather(-1, targets_N[:, None]) - largest_N
    return (exp_NV.sum(dim=-1).log() - right_N[:, 0]).mean()


def _embedding_nodes(graph: Graph, positions: Sequence[torch.Tensor]) -> list[Node]:
    """Operations whose output is the sum of embeddings, or a summand of it: the derivative with
    respect to a summand is the same."""
    joined = [graph.joins(tensor) for tensor in positions]
    looked_up = [[read.node for read in graph.ends.lookups]]
    placed = [graph.readers(tensor) for tensor in positions]
    # Several readers of one kind each have a part of the sequence, and none has it all.
    return [nodes[0] for nodes in (*joined, *looked_up, *placed) if len(nodes) == 1]


def _rows(found: Mapping[str, Floats], shape: tuple[int, int]) -> Floats:
    """Derivatives with respect to the rows of wpe, which one sequence reads once each."""
    for value in found.values():
        if value.size % shape[1] == 0:
            return value.reshape(-1, shape[1])[: shape[0]]
    raise NotExamined("no gradients at the input: the sum of embeddings is not in its graph")


def _unscaled(tensor: torch.Tensor, scale: float) -> Floats:
    return to_numpy(tensor if scale == 1 else tensor / scale)


class Arriving:
    """Hands on what arrives at the parameters during a backward pass, and lets go of it.

    Attributes:
        finite: all of it is.
        only: identities of the parameters that are of interest; all where None.
    """

    def __init__(self, port: TorchModule, sink: GradientSink, scale: float) -> None:
        self._sink, self._scale = sink, scale
        self.finite, self.only = True, None  # type: tuple[bool, set[int] | None]
        named = port.module.named_parameters(remove_duplicate=False)
        self._named = {name: p for name, p in named if p.is_floating_point()}
        self._pieces: dict[int, list[Piece]] = {}
        for piece in port.pieces:
            if piece.parameter in self._named:
                key = id(self._named[piece.parameter])
                self._pieces.setdefault(key, []).append(piece)
        self._assemblies: dict[str, list[Assembly]] = {}
        for assembly in port.assemblies:
            for source in {patch.source for patch in assembly.patches}:
                self._assemblies.setdefault(source, []).append(assembly)
        groups = clusters(self._named.values())
        self._clusters = {id(tensor): group for group in groups for tensor in group}

    def __enter__(self) -> None:
        leaves = {id(p): p for p in self._named.values()}.values()
        # Whoever trains while the backward pass runs must not do so now.
        self._before = [(p, p.grad, p._post_accumulate_grad_hooks) for p in leaves]
        for p in leaves:
            p.grad = None
            set_hooks(p, None)
            if p.is_leaf and p.requires_grad:
                p.register_post_accumulate_grad_hook(self._accumulated)

    def __exit__(self, *_: object) -> None:
        for p, grad, hooks in self._before:
            p.grad = grad
            set_hooks(p, hooks)

    def _accumulated(self, leaf: torch.Tensor) -> None:
        value, leaf.grad = leaf.grad, None
        if value is not None:
            self.at_leaf(leaf, value)

    def at_leaf(self, leaf: torch.Tensor, value: torch.Tensor) -> None:
        """A contribution to one parameter, and so to all that lie in its memory."""
        if self.only is not None and id(leaf) not in self.only:
            return
        dense = value.to_dense() if value.is_sparse else value
        dense = dense.to(wide_dtype(dense.dtype))
        cluster = self._clusters.get(id(leaf), [leaf])
        if len(cluster) == 1:
            self._hand_on(leaf, dense)
            return
        first, size = span(cluster)
        flat = torch.zeros(size, dtype=dense.dtype, device=dense.device)
        view_like(flat, leaf, first).add_(dense)
        for other in cluster:
            self._hand_on(other, view_like(flat, other, first))

    def at_end(self, end: End, value: torch.Tensor) -> None:
        if self.only is None:
            self._sink.add(end, self._array(value))

    def _hand_on(self, leaf: torch.Tensor, value: torch.Tensor) -> None:
        array = self._array(value)
        for piece in self._pieces.get(id(leaf), ()):
            if piece.name not in self._assemblies:
                self._sink.add(piece.name, piece.of(array))
            for assembly in self._assemblies.get(piece.name, ()):
                share = assembly.scattered(piece.name, piece.of(array))
                self._sink.add(assembly.name, share)

    def _array(self, value: torch.Tensor) -> Floats:
        """The array as it lies: the derivative of a table is large, and not copied to be
        contiguous."""
        plain = value.detach() if self._scale == 1 else value.detach() / self._scale
        array: Floats = plain.cpu().numpy()
        if self._scale != 1 and not np.isfinite(array).all():
            self.finite = False
        return array


def set_hooks(parameter: torch.Tensor, hooks: Any) -> None:
    """What is called when a derivative has been added up in a parameter; nothing where None.

    None alone takes nothing away: torch goes on to call what was registered before. A dictionary
    that is empty takes its place first.
    """
    if hooks is None:
        parameter._post_accumulate_grad_hooks = OrderedDict()
    parameter._post_accumulate_grad_hooks = hooks


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 where it is that."""
    return tensor.to(wide_dtype(tensor.dtype))
