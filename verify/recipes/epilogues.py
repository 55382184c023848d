"""What a kernel does with a product before it stores that: a port may show a copy, and go on with
the sum in its registers."""

from __future__ import annotations

from functools import partial

from gpt_verify.graph.local import NotShown
from gpt_verify.recipes.activations import gelu
from gpt_verify.recipes.arithmetic import Span
from gpt_verify.recipes.products import unstored
from gpt_verify.recipes.recipe import Read, Recipe


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
