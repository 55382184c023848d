"""Two ports in half precision: where they part, and which operations make the difference."""

from __future__ import annotations

from dataclasses import dataclass, field

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
from gpt_verify.recipes.attribution import Attribution, Numbers, Shown, attribute, roundings
from gpt_verify.recipes.causes import Causes, causes, told
from gpt_verify.recipes.emulation import Between, Engine
from gpt_verify.recipes.identify import Identification
from gpt_verify.recipes.pairs import Pair, pairs
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
        causes: what makes it; None likewise.
        recipes: of each port.
        error: why it could not be.
        exception: what ``error`` words; not part of any file.
    """

    names: tuple[str, str]
    dtype: str
    tokens: int = 0
    found: Attribution | None = None
    causes: Causes | None = None
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
        """The share of the difference that arises where the two compute otherwise, each by a
        recipe that is known."""
        assert self.causes is not None, "a difference"
        return told(self.causes, [pair.kind for pair in self.untold])

    @property
    def _pairs(self) -> list[Pair]:
        return pairs(*(port.found for port in self.recipes)) if self.recipes else []


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


@dataclass(frozen=True)
class _Ran:
    """Both ports, after they ran on one sequence.

    Attributes:
        tokens_T: the sequence.
        config, weights: sizes, and the tensors in the format that both declare.
        shown: what each has shown.
        recipes: of each.
    """

    tokens_T: NDArray[np.integer]
    config: Config
    weights: DeclaredWeights
    shown: tuple[Numbers, Numbers]
    recipes: tuple[PortRecipe, PortRecipe]

    def between(self) -> Between:
        of = self.config, self.weights, self.tokens_T
        a, b = (
            Engine(shown, {one.sites[0]: one for one in port.found}, roundings(*of, shown))
            for shown, port in zip(self.shown, self.recipes, strict=True)
        )
        return Between(*of, a, b, PRECISIONS[self.recipes[0].dtype])


def between_ports(asked: Request) -> Between:
    """The engines between two ports, which can be run.

    Raises:
        PortError, UsageError, NotExamined: they cannot be compared.
    """
    ran = _run_both(asked)
    with one_blas_thread():
        return ran.between()


def _attributed(asked: Request, made: Attributed) -> Attributed:
    ran = _run_both(asked)
    with one_blas_thread():
        found = attribute(ran.config, ran.weights, ran.tokens_T, *ran.shown)
        caused = causes(ran.between())
    a, _ = ran.recipes
    return Attributed(made.names, a.dtype, ran.tokens_T.size, found, caused, ran.recipes)


def _run_both(asked: Request) -> _Ran:
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
    of_a, of_b = (one.values for one in shown)
    return _Ran(tokens_1T[0], *used[0], (of_a, of_b), (a, b))
