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
    def otherwise(self) -> tuple[tuple[str, Found | None, Found | None], ...]:
        """The kinds of sites that the two compute otherwise, with what each does there; None
        where it does not show them."""
        kinds: dict[str, list[list[Found]]] = {}
        for i, port in enumerate(self.recipes):
            for one in port.found:
                kinds.setdefault(one.kind, [[], []])[i].append(one)
        return tuple(
            (kind, _first(a, b), _first(b, a)) for kind, (a, b) in kinds.items() if _apart(a, b)
        )


def _apart(a: list[Found], b: list[Found]) -> bool:
    """Whether one shows what the other does not, or no recipe is that of both."""
    if not a or not b:
        return True
    pairs = list(zip(a, b, strict=False))
    return len(a) != len(b) or any(_differ(one, other) for one, other in pairs)


def _differ(one: Found, other: Found) -> bool:
    if one.kept != other.kept:
        return True
    if one.exact and other.exact:
        return False
    return not set(one.named) & set(other.named)


def _first(own: list[Found], others: list[Found]) -> Found | None:
    """One of a port's sites at which the two differ."""
    pairs = zip(own, others, strict=False)
    return next((one for one, other in pairs if _differ(one, other)), own[0] if own else None)


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
