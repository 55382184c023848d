"""Any ``torch.nn.Module`` as a port: nothing needs to be said about its names or layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import PortError
from gpt_verify.matching.assembly import Assembly, with_assemblies
from gpt_verify.matching.folding import Folding, find_folding
from gpt_verify.matching.match import Matching, match
from gpt_verify.matching.order import confirmed
from gpt_verify.matching.pieced import pieced
from gpt_verify.matching.pieces import Piece, pieces
from gpt_verify.numerics.precision import FLOAT32, PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Dtype, Floats, Parameter, Port, Tokens, Visit
from gpt_verify.ports.torch.calls import add_capabilities
from gpt_verify.ports.torch.channels import Channels, Readings, channels_of
from gpt_verify.ports.torch.constants import WidenedConstants
from gpt_verify.ports.torch.copies import Copies
from gpt_verify.ports.torch.differentiable import Arrived, Differentiable
from gpt_verify.ports.torch.families import offer_float64, show_what_is_known
from gpt_verify.ports.torch.float64 import cast_to, converted, converted_whole
from gpt_verify.ports.torch.lens import add_lens
from gpt_verify.ports.torch.mode import dropout_of, watched_draws
from gpt_verify.ports.torch.outputs import logits_of, special_ids
from gpt_verify.ports.torch.parameter import parameter_of
from gpt_verify.ports.torch.roles import fused, role_of, shares
from gpt_verify.ports.torch.state import elsewhere
from gpt_verify.ports.torch.trace import SiteTrace, to_numpy
from gpt_verify.process.memory import require

_TORCH = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
Call = Callable[[torch.nn.Module, torch.Tensor], Any]


class TorchModule(Port):
    """A module that maps ids int64[B, T] to logits, under test.

    The module is put into evaluation mode, and moved or cast where that was asked for; nothing
    else about it is changed, and the float64 copy is undone after use.

    Args:
        module: what is judged.
        checkpoint: what it is a port of.
        name: the port's, for the report.
        dtype: the precision that it is cast to; it stays in its own where None.
        device: the device that it is moved to.
        weights_from: ``checkpoint``, ``port``, ``both``, or the files that it was loaded from.
        call: runs the module on ids, and returns logits or an output that has them.
        known: another port, of which the places of its tensors are these as well.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        checkpoint: Checkpoint,
        name: str,
        dtype: Dtype | None = None,
        device: str = "cpu",
        weights_from: str = "checkpoint",
        call: Call = lambda module, ids: module(ids),
        known: TorchModule | None = None,
    ) -> None:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise PortError(f"{name}: torch {torch.__version__} finds no CUDA device")
        self.module = module.eval().to(device)
        if dtype is not None:
            self.module = cast_to(self.module, _TORCH[dtype])
        self.name, self.device, self.weights_from = name, device, weights_from
        self.dtype = dtype or _declared(module)
        self._checkpoint = checkpoint
        self.config = checkpoint.config
        self._call = call
        self._matching: Matching | None = None
        self._pieces: list[Piece] | None = None
        self._channels: Channels | None = None
        #: Tensors that are in pieces, or in another order; known when ``matching`` is.
        self.assemblies: Sequence[Assembly] = ()
        self.folding: Folding | None = None
        self._instrumented: SiteTrace | None = None
        self._differentiable: Differentiable | None = None
        self._is_float64_copy = False
        if known is not None:
            self._matching, self._pieces = known.matching, known.pieces
            self._channels, self.assemblies = known._channels, known.assemblies
            self.folding, self.config = known.folding, known.config
        add_capabilities(self)
        add_lens(self)
        if self.config.own is not None:
            show_what_is_known(self)

    def call_with(self, call: Call) -> None:
        """Take what this call returns as the logits from now on."""
        self._call = call

    def logits(self, tokens: Tokens) -> Floats:
        with torch.no_grad():
            return to_numpy(self.run(tokens))

    def parameters(self) -> Iterator[Parameter]:
        if self._matching is None:
            assert self.matching, "which of them are pieces of a tensor is known by the others"
        yield from with_assemblies(self._held(), self.assemblies)

    def _held(self) -> list[Parameter]:
        """One for each piece, before any are put together."""
        named = dict(self.module.named_parameters(remove_duplicate=False))
        return [
            parameter_of(piece.name, piece.of(named[piece.parameter]), piece.padding)
            for piece in self.pieces
        ]

    @property
    def pieces(self) -> list[Piece]:
        """The tensors of which its parameters are made: a stack over the layers is several."""
        if self._pieces is None:
            whole = [
                parameter_of(name, tensor)
                for name, tensor in self.module.named_parameters(remove_duplicate=False)
            ]
            self._pieces = pieces(whole, self.config, self._weights())
        return self._pieces

    def training(self) -> list[str]:
        """Modules that are in training mode although the whole was put into evaluation mode."""
        return [name or "the model" for name, m in self.module.named_modules() if m.training]

    def dropout(self) -> dict[str, float]:
        return {name or "the model": p for name, p in dropout_of(self.module).items()}

    def draws(self, tokens: Tokens) -> list[str]:
        with watched_draws(self.module) as found:
            self.logits(tokens)
        return found

    def special_ids(self) -> dict[str, int]:
        return special_ids(self.module)

    def copies(self) -> Iterator[tuple[str, Port | str]]:
        return Copies(self).copies()

    def elsewhere(self, device: str) -> AbstractContextManager[Port]:
        return elsewhere(self, device)

    def like(self, module: torch.nn.Module) -> TorchModule:
        """Another module, of which everything else that is known of this one holds as well."""
        where = next((p.device.type for p in module.parameters()), self.device)
        return TorchModule(
            module,
            self._checkpoint,
            self.name,
            device=where,
            weights_from=self.weights_from,
            call=self._call,
            known=self,
        )

    def build_again(self, make: Callable[[], Any]) -> None:
        """Learn how a module of this kind is made, which a float64 copy of a family's needs.

        Args:
            make: calls the user's factory.
        """
        offer_float64(self, make)

    def close(self) -> None:
        """Let go of the module, whose memory would wait for the garbage collector otherwise."""
        self.module = torch.nn.Identity()

    @property
    def placed_by(self) -> Mapping[str, Floats]:
        """The tensors by which ``matching`` was made, before norms were folded."""
        return self._checkpoint.tensors

    def place_by(self, tensors: Mapping[str, Floats]) -> None:
        """Place the parameters by these, whatever they were placed by before."""
        self._checkpoint = replace(self._checkpoint, tensors=tensors)
        self.config = self._checkpoint.config
        self._matching = self._pieces = self._channels = self.folding = None
        self.assemblies = ()

    @property
    def matching(self) -> Matching:
        if self._matching is None:
            parameters = self._held()
            self._matching = self._match(parameters, by_head=True)
            if any(p.layout.by_head for p in self._matching.placements):
                # Weights that lie so may be read so, or be wrong: one run tells.
                self._channels = channels_of(self, parameters, self._matching)
                if self._channels is None:
                    self._matching = self._match(parameters, by_head=False)
            if not self._matching.exact:
                self._matching = self._assembled(parameters, self._matching)
        return self._matching

    def _assembled(self, parameters: list[Parameter], found: Matching) -> Matching:
        """The matching, with the tensors in their place that lie in pieces, as far as they are read
        so."""
        by_head = self._channels is not None
        weights = self._weights()
        if self.folding is not None:
            weights = DeclaredWeights(self.folding.tensors, PRECISIONS[self.dtype])
        self.assemblies = pieced(parameters, found, self.config, weights)
        if not self.assemblies:
            return found
        self._matching = self._match(list(self.parameters()), by_head)
        readings = Readings(self)
        self.assemblies = confirmed(self.assemblies, self.config, readings.of)
        return self._match(list(self.parameters()), by_head) if self.assemblies else found

    def _match(self, parameters: list[Parameter], by_head: bool) -> Matching:
        """Match the parameters with the checkpoint, or with what it is when layer norms are folded
        as here."""
        weights = self._weights()
        found = match(parameters, self._checkpoint.config, weights, by_head)
        precision, tensors = PRECISIONS[self.dtype], self._checkpoint.tensors
        folding = find_folding(parameters, found, self._checkpoint.config, tensors, precision)
        if folding is None:
            return found
        if folding.head_bias is not None and precision.u > FLOAT32.u:
            raise PortError(
                f"{self.name}: ln_f is folded into a head with a bias: judged in float32 only"
            )
        self.folding, self.config = folding, folding.config
        weights = DeclaredWeights(folding.tensors, precision)
        trained = [p for p in parameters if p.name != folding.head_bias]
        return match(trained, folding.config, weights, by_head, folding.gone)

    def _weights(self) -> DeclaredWeights:
        return DeclaredWeights(self._checkpoint.tensors, PRECISIONS[self.dtype])

    def activations(self, tokens: Tokens, visit: Visit) -> Floats:
        placed = {p.parameter: p for p in self.matching.placements}
        named = dict(self.module.named_parameters())
        held = {
            piece.name: piece.of(named[piece.parameter])
            for piece in self.pieces
            if piece.parameter in named
        }
        apart = {patch.source for assembly in self.assemblies for patch in assembly.patches}
        parameters = [
            (tensor, role_of(placed[name], self.config))
            for name, tensor in held.items()
            if name in placed and name not in apart
        ]
        # The whole of a parameter comes before the pieces of its memory.
        parameters += fused(self.assemblies, held, self.config)
        for assembly in self.assemblies:
            parameters += shares(assembly, held, self.config)
        batch, length = tokens.shape
        trace = SiteTrace(parameters, self.config, batch, length, visit, self._channels)
        self._instrumented = trace
        try:
            with torch.no_grad(), trace:
                output = self.run(tokens)
            trace.finish()
        finally:
            self._instrumented = None
        value = to_numpy(output)
        visit("logits", value, trace.narrowest)
        return value

    @contextmanager
    def float64(self) -> Iterator[Port]:
        """The module in float64, submodule by submodule where that can be."""
        constants = WidenedConstants(self.config)
        with self.widened():
            try:
                with constants:
                    yield self
            finally:
                self.odd_constants = tuple(constants.others)

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Its tensors are float64 while they are used.

        Raises:
            NotExamined: there is no room for the largest submodule twice.
        """
        parts = [list(part.parameters(recurse=False)) for part in self.module.modules()]
        require(8 * max(sum(tensor.numel() for tensor in own) for own in parts))
        probe = np.zeros((1, min(2, self._checkpoint.config.n_ctx)), np.int64)
        run = partial(self.logits, probe)
        with converted(
            self.module,
            run,
            watching=lambda: self._instrumented,
            before_whole=self._require_whole,
            recording=lambda: self._differentiable,
        ):
            self._is_float64_copy = True
            try:
                yield
            finally:
                self._is_float64_copy = False

    @contextmanager
    def differentiable(self, arrived: Arrived) -> Iterator[None]:
        """Forward and backward pass of a float64 copy whose submodules are widened one by one.
        Elsewhere parameters are leaves, at which their derivatives arrive by themselves."""
        if not self._is_float64_copy:
            yield
            return
        self._differentiable = Differentiable(arrived)
        try:
            with self._differentiable.recording():
                yield
        finally:
            self._differentiable = None

    @contextmanager
    def widened_at_once(self) -> Iterator[None]:
        """The float64 copy with all its tensors widened for a while; nothing is done elsewhere."""
        if not self._is_float64_copy:
            yield
            return
        self._require_whole()
        with converted_whole(self.module):
            self._is_float64_copy = False
            try:
                yield
            finally:
                self._is_float64_copy = True

    def _require_whole(self) -> None:
        """NotExamined where there is no room for all tensors in float64 beside the port's own."""
        require(8 * sum(tensor.numel() for tensor in self.module.parameters()))

    def run(self, tokens: Tokens) -> torch.Tensor:
        """The logits as the module returns them, with their graph where gradients are on."""
        ids = torch.as_tensor(np.ascontiguousarray(tokens, np.int64), device=self.device)
        output = logits_of(self._call(self.module, ids))
        if not isinstance(output, torch.Tensor):
            raise PortError(f"{self.name}: returned {type(output).__name__}, not logits")
        if output.ndim == 2 and len(output) == len(ids):  # of one position, without its axis
            output = output[:, None]
        return self.bare(output)

    def bare(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the checkpoint's tokens, where the port's vocabulary was found to be
        padded; without what a bias that was folded into the head adds to them."""
        if any(piece.padding for piece in self.pieces):
            logits = logits[..., : self.config.n_vocab]
        folding = self.folding if self.matching else None
        if folding is not None and folding.head_bias is not None:
            bias = self.module.get_parameter(folding.head_bias).detach()
            logits = logits - bias.to(logits.dtype)
        return logits


def _declared(module: torch.nn.Module) -> Dtype:
    """The format of most parameters."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in module.parameters():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        return "float32"
    most = max(sizes, key=lambda dtype: sizes[dtype])
    for name, dtype in _TORCH.items():
        if dtype == most:
            return name  # type: ignore[return-value]  # the keys are the Dtypes
    raise PortError(f"parameters are {most}; known are {', '.join(_TORCH)}")
