"""What a kernel does with a result before it stores that: a port may show a copy, and go on with
what is in its registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gpt_verify.graph.local import NotShown
from gpt_verify.recipes.activations import gelu
from gpt_verify.recipes.arithmetic import Span
from gpt_verify.recipes.norms import layer_norm, rms_norm
from gpt_verify.recipes.products import unstored
from gpt_verify.recipes.recipe import Read, Recipe
from gpt_verify.recipes.sums import added, embedded

#: A norm from the stream, and from what its statistics are of.
Norm = Callable[[Read, Span | None, Span | None], Span]


def _of_the_product(read: Read, constants_stored: bool) -> Span:
    product = read.of(read.site.inputs[0])
    if not product.site.is_product:
        raise NotShown(product.site.name)
    constants = read.declared if constants_stored else None
    return gelu(unstored(product, product.input()), read, constants)


GELU_OF_PRODUCT = (
    Recipe(
        "of-the-product",
        "in float32, of products that are not stored",
        partial(_of_the_product, constants_stored=False),
    ),
    Recipe(
        "of-the-product-constants",
        "in float32, of products that are not stored, with the constants in {half}",
        partial(_of_the_product, constants_stored=True),
    ),
)


def _sum(read: Read) -> Span:
    """The residual sum, or that of the embeddings, before it is rounded."""
    made = read.of(read.site.inputs[0])
    if made.site.looks_up:
        return embedded(made)
    if made.site.operation == "add":
        return added(made)
    raise NotShown(made.site.name)


def _of_the_sum(read: Read, norm: Norm) -> Span:
    made = _sum(read)
    return norm(read, made, made)


def _statistics_of_the_sum(read: Read, norm: Norm) -> Span:
    """torch's inductor on the CPU: the loop that adds up makes the mean too, and the next ones read
    what it has stored."""
    return norm(read, None, _sum(read))


def _norms(norm: Norm, name: str, said: str) -> tuple[Recipe, ...]:
    return (
        Recipe(
            "of-the-sum",
            "in float32, of a sum that is not stored",
            partial(_of_the_sum, norm=norm),
            plain="float32",
        ),
        Recipe(
            f"{name}-of-the-sum",
            f"in float32, with the {said} of a sum that is not stored",
            partial(_statistics_of_the_sum, norm=norm),
            plain="float32",
        ),
    )


LAYER_NORM_OF_SUM = _norms(layer_norm, "mean", "mean")
RMS_NORM_OF_SUM = _norms(rms_norm, "squares", "mean of squares")
