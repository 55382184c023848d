"""``gpt-verify recipe``: how ports round, from their runs on inputs of half precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gpt_verify.errors import GptVerifyError, UsageError, described
from gpt_verify.inputs import Input, seeded
from gpt_verify.judging.judge import one_blas_thread
from gpt_verify.judging.options import chosen_inputs
from gpt_verify.judging.prepare import prepare
from gpt_verify.judging.selection import Request
from gpt_verify.numerics.precision import FLOAT32, PRECISIONS
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.port import ACTIVATIONS, NotExamined, Port
from gpt_verify.recipes.declared import Declaration, Kept, keeps
from gpt_verify.recipes.identify import Found, Identification, grouped
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites
from gpt_verify.text import one_line

#: Tokens of the sample, where nothing else is asked for: some hundred elements of every site.
LENGTH = 64


@dataclass(frozen=True)
class PortRecipe:
    """The recipe of one port.

    Attributes:
        name, dtype, device: the port's.
        found: what was found out, one for each site.
        groups: the same, sites that are alike together.
        not_shown: the sites that it does not show.
        kept: how it keeps to what was declared; None where nothing was.
        error: why nothing was found out, in one line.
        exception: what ``error`` words; not part of any file.
    """

    name: str
    dtype: str
    device: str
    found: tuple[Found, ...] = ()
    groups: tuple[Found, ...] = ()
    not_shown: tuple[str, ...] = ()
    kept: Kept | None = None
    error: str | None = None
    exception: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class RecipeReport:
    """The recipes of the ports of one request.

    Attributes:
        ports: one for each.
        repeat: the command line that finds them again.
    """

    ports: tuple[PortRecipe, ...]
    repeat: str

    @property
    def exit_status(self) -> int:
        """1 where a port departs from what was declared; 2 where one could not be examined, or
        nothing of what was declared was seen; 0 otherwise."""
        if any(port.kept is not None and port.kept.departures for port in self.ports):
            return 1
        unseen = (p.kept is not None and not p.kept.kept for p in self.ports)
        return 2 if any(port.error for port in self.ports) or any(unseen) else 0


def recipe_run(
    asked: Request, declaration: Declaration | None = None, more: str = ""
) -> RecipeReport:
    """Find out how each port rounds.

    Args:
        asked: the request.
        declaration: what every port is held to.
        more: further words of the command line, for that which repeats it.

    Raises:
        UsageError: options that make no sense.
        What a port raises is no exception: its report carries it.
    """
    inputs = _inputs(asked)
    shared = SharedWeights(asked.checkpoint.tensors, record=False)
    ports = tuple(_examined(spec, asked, inputs, shared, declaration) for spec in asked.specs)
    return RecipeReport(ports, asked.repeat("recipe") + more)


def _inputs(asked: Request) -> Sequence[Input]:
    """What was asked for; otherwise one sample, which shows some hundred elements of each site."""
    options, config = asked.options, asked.checkpoint.config
    if options.lengths or options.tokens is not None or options.text is not None:
        return chosen_inputs(asked.checkpoint, options)
    return [seeded(config, min(config.n_ctx, LENGTH), options.seed)]


def one_input(asked: Request) -> Input:
    """The longest of them."""
    return max(_inputs(asked), key=lambda item: item.tokens.shape[1])


def _examined(
    spec: str,
    asked: Request,
    inputs: Sequence[Input],
    shared: SharedWeights,
    declaration: Declaration | None,
) -> PortRecipe:
    options = asked.options
    made = PortRecipe(spec, options.dtype or "float32", options.device)
    try:
        port = asked.builder(spec)()
        try:
            made = PortRecipe(port.name, port.dtype, port.device)
            declared = PRECISIONS[half_precision(port)]
            prepared = prepare(port, asked.checkpoint, shared)
            run = port.offers()[ACTIVATIONS]
            config = prepared.checkpoint.config
            recipes = Identification(config, prepared.weights, declared)
            with one_blas_thread():
                for item in inputs:
                    recipes.begin(item.tokens)
                    run(item.tokens, recipes)
        finally:
            port.close()
    except (GptVerifyError, NotExamined) as e:
        return _failed(made, one_line(e), e)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # whatever a port raises
        return _failed(made, f"{made.name}: {described(e)}", e)
    return read_recipe(made, recipes, config, declaration)


def half_precision(port: Port) -> str:
    """What the port declares.

    Raises:
        UsageError: it is no half precision.
    """
    if PRECISIONS[port.dtype].u <= FLOAT32.u:
        raise UsageError(
            f"{port.name} computes in {port.dtype}: recipes are told apart in half precision "
            "(--dtype bfloat16, float16)"
        )
    return port.dtype


def read_recipe(
    made: PortRecipe,
    recipes: Identification,
    config: Config,
    declaration: Declaration | None = None,
) -> PortRecipe:
    """What was found out about a port that has run."""
    found = recipes.found()
    if not any(one.tried for one in found):
        why = f"{made.name}: none of its {len(sites(config))} sites can be examined"
        return _failed(made, why, None)
    return replace(
        made,
        found=tuple(found),
        groups=tuple(grouped(found, config)),
        not_shown=tuple(recipes.not_shown()),
        kept=None if declaration is None else keeps(declaration, found),
    )


def _failed(made: PortRecipe, why: str, error: BaseException | None) -> PortRecipe:
    return replace(made, error=why, exception=error)
