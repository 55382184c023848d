"""The one way from a port to what is judged: its parameters, placed, and what it must equal."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.laws.subject import Subject
from gpt_verify.matching.folding import Folding
from gpt_verify.matching.match import Matching, match
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import PARAMETERS, Parameter, Port
from gpt_verify.process.state import Loading


@dataclass(frozen=True)
class Prepared:
    """A port beside what it is judged against.

    Attributes:
        port: what is judged.
        checkpoint: what it must equal. Where the port has layer norms folded, the checkpoint with
            the same ones folded.
        weights: the tensors of that checkpoint as the port's precision holds them.
        parameters: what the port shows of its weights; empty where it shows none.
        matching: which parameter is which tensor; None where the port shows none.
        folding: what became of folded layer norms; None where none is folded.
    """

    port: Port
    checkpoint: Checkpoint
    weights: DeclaredWeights
    parameters: tuple[Parameter, ...] = ()
    matching: Matching | None = None
    folding: Folding | None = None

    def subject(self, seed: int = 0, loading: Loading | None = None) -> Subject:
        """The subject that the laws are handed."""
        return Subject(
            self.port,
            self.checkpoint,
            self.weights,
            seed,
            self.parameters,
            self.matching,
            loading,
        )


def prepare(port: Port, checkpoint: Checkpoint, shared: SharedWeights) -> Prepared:
    """Place the parameters of a port.

    A port may bring a matching of its own, which it has needed to find its sites. It is used where
    it was made by this checkpoint. A port that was made of another one has placed its parameters
    by that one: what equals its tensors need not equal these.

    Args:
        port: any port; it is not changed.
        checkpoint: what it is judged against.
        shared: the tensors of the checkpoint in the precisions of the ports of one run.
    """
    precision = PRECISIONS[port.dtype]
    weights = shared(precision)
    shown = port.offers().get(PARAMETERS)
    if shown is None:
        return Prepared(port, checkpoint, weights)
    parameters = tuple(shown())
    matching: Matching | None = getattr(port, "matching", None)
    folding: Folding | None = getattr(port, "folding", None)
    if matching is None or getattr(port, "placed_by", None) is not weights.tensors:
        matching, folding = match(parameters, checkpoint.config, weights), None
    if folding is not None:
        checkpoint = folding.applied(checkpoint)
        weights = DeclaredWeights(checkpoint.tensors, precision)
    return Prepared(port, checkpoint, weights, parameters, matching, folding)
