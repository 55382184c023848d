"""Two ports in half precision: where they part, and which operations make the difference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt_verify.errors import GptVerifyError, PortError, described
from gpt_verify.judging.judge import one_blas_thread
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.recipe import PortRecipe, half_precision, one_input, read_recipe
from gpt_verify.judging.selection import Request
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights, SharedWeights
from gpt_verify.port import ACTIVATIONS, Dtype, NotExamined, Visit
from gpt_verify.recipes.attribution import Attribution, Shown, attribute
from gpt_verify.recipes.identify import Found, Identification
from gpt_verify.reference.config import Config
from gpt_verify.text import one_line


@dataclass(frozen=True)
class Attributed:
    """The difference between two ports, accounted for.

    Attributes:
        names: of the two.
        dtype: that both declare.
        tokens: how many they ran on.
        found: the difference; None where it could not be accounted for.
        recipes: of each port.
        error: why it could not be.
        exception: what ``error`` words; not part of any file.
    """

    names: tuple[str, str]
    dtype: str
    tokens: int = 0
    found: Attribution | None = None
    recipes: tuple[PortRecipe, ...] = ()
    error: str | None = None
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def otherwise(self) -> tuple[Pair, ...]:
        """The kinds of sites that the two compute otherwise."""
        return tuple(pair for pair in self._pairs if pair.how == "otherwise")

    @property
    def untold(self) -> tuple[Pair, ...]:
        """Those of which it is not known: no recipe fits one of them."""
        return tuple(pair for pair in self._pairs if pair.how == "untold")

    @property
    def accounted(self) -> float:
        """The share of the difference that arises where the two compute otherwise, or where both
        follow one recipe, so that nothing but what came before can make a difference."""
        assert self.found is not None, "a difference"
        untold = {pair.kind for pair in self.untold}
        return sum(part.share for part in self.found.parts if part.kind not in untold)

    @property
    def _pairs(self) -> list[Pair]:
        kinds: dict[str, tuple[list[Found], list[Found]]] = {}
        for i, port in enumerate(self.recipes):
            for one in port.found:
                kinds.setdefault(one.kind, ([], []))[i].append(one)
        # What one of them hides is judged where it is next seen.
        return [_pair(kind, a, b) for kind, (a, b) in kinds.items() if a and b]


@dataclass(frozen=True)
class Pair:
    """One kind of site in both ports.

    Attributes:
        kind: ``mlp.act``.
        how: the two compute it ``otherwise``, ``alike``, or it is ``untold``.
        a, b: a site of each, at which they differ if they do.
    """

    kind: str
    how: Literal["otherwise", "alike", "untold"]
    a: Found
    b: Found


def _pair(kind: str, a: list[Found], b: list[Found]) -> Pair:
    pairs = list(zip(a, b, strict=False))
    for one, other in pairs:
        if not (_told(one) and _told(other)):
            return Pair(kind, "untold", one, other)
    for one, other in pairs:
        if not one.same(other):
            return Pair(kind, "otherwise", one, other)
    return Pair(kind, "alike", *pairs[0])


def _told(found: Found) -> bool:
    return bool(found.named) or found.exact


def attribute_run(asked: Request) -> Attributed:
    """Run both ports of a request on one sequence, and account for their difference.

    Args:
        asked: of two ports.
    """
    made = Attributed((asked.specs[0], asked.specs[1]), asked.options.dtype or "")
    try:
        return _attributed(asked, made)
    except (GptVerifyError, NotExamined) as e:
        return Attributed(made.names, made.dtype, error=one_line(e), exception=e)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # whatever a port raises
        return Attributed(made.names, made.dtype, error=described(e), exception=e)


class _Both:
    """Two visits of one run."""

    def __init__(self, *visits: Visit) -> None:
        self._visits = visits

    def __call__(
        self, site: str, value: NDArray[np.floating], narrowest: Dtype | None = None
    ) -> None:
        for visit in self._visits:
            visit(site, value, narrowest)


def _attributed(asked: Request, made: Attributed) -> Attributed:
    tokens_1T = one_input(asked).tokens[:1]
    shared = SharedWeights(asked.checkpoint.tensors, record=False)
    shown: list[Shown] = []
    recipes: list[PortRecipe] = []
    used: list[tuple[Config, DeclaredWeights]] = []
    for spec in asked.specs:
        port = asked.builder(spec)()
        try:
            declared = PRECISIONS[half_precision(port)]
            prepared = prepare(port, asked.checkpoint, shared)
            config = prepared.checkpoint.config
            found = Identification(config, prepared.weights, declared)
            seen = Shown()
            found.begin(tokens_1T)
            run = port.offers()[ACTIVATIONS]
            with one_blas_thread():
                run(tokens_1T, _Both(found, seen))
            shown.append(seen)
            used.append((config, prepared.weights))
            recipes.append(
                read_recipe(PortRecipe(port.name, port.dtype, port.device), found, config)
            )
        finally:
            port.close()
    a, b = recipes
    if a.dtype != b.dtype:
        raise PortError(f"{a.name} computes in {a.dtype}, {b.name} in {b.dtype}")
    if used[0][0] != used[1][0]:
        raise PortError(f"{a.name} and {b.name} are not of one architecture: norms are folded")
    with one_blas_thread():
        difference = attribute(*used[0], tokens_1T[0], shown[0].values, shown[1].values)
    return Attributed(made.names, a.dtype, tokens_1T.size, difference, (a, b))
