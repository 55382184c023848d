"""What is added up: the residual stream, and the rows of the tables."""

from __future__ import annotations

from functools import partial
from itertools import permutations

from gpt_verify.graph.local import NotShown
from gpt_verify.recipes.arithmetic import Array, Span, constant, exact
from gpt_verify.recipes.products import unstored
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


def added(read: Read) -> Span:
    """Of two, one rounding; of three in one kernel, too."""
    first, *rest = (read.input(i) for i in range(len(read.site.inputs)))
    for other in rest:
        first = first + other
    return first


def _in_turn(read: Read, order: tuple[int, ...]) -> Span:
    """Of three, two are added and stored first."""
    if len(read.site.inputs) != len(order):
        raise NotShown(read.site.name)
    one, other, last = (read.input(i) for i in order)
    return (one + other).store(read.declared) + last


def _with_the_product(read: Read) -> Span:
    """The branch ends in a product whose result is added before it is stored."""
    stream, branch = read.site.inputs[0], sites(read.config)[read.site.inputs[-1]]
    if branch.name in read.values or not branch.is_product or len(read.site.inputs) != 2:
        raise NotShown(branch.name)
    made = read.of(branch.name)
    return unstored(made, made.input()) + read.shown(stream)


def _parallel(config: Config) -> bool:
    return bool(config.keys.parallel)


_NAMES = ("the stream", "attention", "MLP")

ADD = (
    Recipe("once", "is rounded once", added),
    Recipe("with-the-product", "is added to the product before that is stored", _with_the_product),
    *(
        Recipe(
            f"in-turn-{''.join(map(str, order))}", said, partial(_in_turn, order=order), _parallel
        )
        for order in permutations(range(3))
        if order[0] < order[1]
        for said in [f"is added in turn, {' and '.join(_NAMES[i] for i in order[:2])} first"]
    ),
)


def _rows(read: Read, full: bool) -> tuple[Array, Array | None]:
    tensor = read.full if full else read.tensor
    token = tensor(0)[read.tokens_T]
    if len(read.site.weights) == 1:
        return token, None
    offset = read.config.keys.table_offset
    return token, tensor(1)[offset : offset + len(token)]


def embedded(read: Read, full: bool = False, scale_stored: bool = False) -> Span:
    token, place = _rows(read, full)
    made = exact(token)
    if read.config.embed_scale is not None:
        scale = constant(read.config.embed_scale)
        made = made * (scale.store(read.declared) if scale_stored else scale)
        made = made.store(read.declared) if place is not None else made
    return made if place is None else made + exact(place)


def _scaled(config: Config) -> bool:
    return config.embed_scale is not None


EMBED = (
    Recipe("once", "is rounded once", embedded),
    Recipe(
        "scale-stored",
        "is scaled by √D in {half}",
        partial(embedded, scale_stored=True),
        _scaled,
    ),
    Recipe("full-tables", "is of tables in float32", partial(embedded, full=True)),
)
