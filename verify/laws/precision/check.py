"""The law of precision: a port computes in the format that it declares, or in a wider one.

A setting far away can make a float32 port multiply in TF32, in parts of bfloat16 or in half
precision, and nothing in its outputs says so. The errors do: at every product they are as large as
the rounding of the format that is really used. The widest format whose budget holds them is the one
that the port computes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status, naming
from gpt_verify.graph.local import LocalOracle, NotShown
from gpt_verify.graph.table import made_by
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.numerics.budgets import Measured
from gpt_verify.numerics.precision import (
    BFLOAT16,
    BFLOAT16_X3,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    TF32,
    Precision,
)
from gpt_verify.numerics.scores import limit_rms
from gpt_verify.port import ACTIVATIONS
from gpt_verify.sites import sites
from gpt_verify.text import listing

Floats = NDArray[np.floating]

#: Widest first. Half-precision products of a port that keeps wider weights round their operands.
FORMATS = (
    FLOAT64,
    FLOAT32,
    BFLOAT16_X3,
    TF32,
    replace(FLOAT16, u_operand=FLOAT16.u),
    replace(BFLOAT16, u_operand=BFLOAT16.u),
)
_WIDTH = {p.name: i for i, p in enumerate(FORMATS)}
#: Tokens of the one sequence that is looked at: each product has thousands of elements even so.
LENGTH = 16
#: Different values of a product from which a format is told: 8^-16 is one in 10^14.
DISTINCT = 16
#: What to do about a format that is narrower than the declared one.
_REMEDY = {
    "float32": "look for a cast to float32",
    "bfloat16x3": "set torch.set_float32_matmul_precision('highest'): float32 is made of bfloat16",
    "tf32": "set torch.backends.cuda.matmul.allow_tf32 = False "
    "(torch.set_float32_matmul_precision('highest'))",
    "float16": "look for autocast or a cast to half precision",
    "bfloat16": "look for autocast or a cast to half precision",
}
#: The fault of most products in one of them, where the catalogue has one.
_FAULTS = {
    "tf32": "precision-tf32",
    "float16": "precision-autocast-float16",
    "bfloat16": "precision-autocast-bfloat16",
}


@dataclass
class _Product:
    """Sums of squared scores of one product, in every format's budget."""

    rows: int = 0
    elements: int = 0
    squares: dict[str, float] = field(default_factory=dict)
    #: Half-precision formats whose numbers all values are so far, narrowest first.
    _grids: list[Precision] = field(default_factory=lambda: [BFLOAT16, FLOAT16])
    #: Different values other than zero, as far as they are counted.
    _values: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, got: Floats, expected: dict[str, Measured]) -> None:
        self.rows += len(got)
        self.elements += got.size
        for name, measured in expected.items():
            assert measured.budget is not None, "an operation's result has a budget"
            scores = (np.asarray(got, np.float64) - measured.value) / measured.budget
            scores = np.where(np.isfinite(scores), scores, np.inf)
            self.squares[name] = self.squares.get(name, 0.0) + float(np.sum(scores**2))
        self._grids = [
            p for p in self._grids if np.array_equal(p.round(np.asarray(got, np.float32)), got)
        ]
        if len(self._values) < DISTINCT:
            self._values = np.union1d(self._values, got[got != 0])[:DISTINCT]

    @property
    def grids(self) -> list[Precision]:
        """Half-precision formats that the values were stored in, narrowest first.

        A number of float16 is one of bfloat16 with a chance of 1/8, one of float32 with less: so
        many different ones are not all so by chance, and fewer say nothing.
        """
        return self._grids if len(self._values) >= DISTINCT else []

    def score(self, name: str) -> float:
        return float(np.sqrt(self.squares[name] / self.elements))

    def format(self) -> str | None:
        """The widest format whose budget holds the errors; None where none does.

        Where every value is a number of half precision, that is what it was stored in.
        """
        stored = self.grids[0].name if self.grids else None
        for p in FORMATS:
            if stored is not None and p.name != stored:
                continue
            if self.score(p.name) <= limit_rms(self.rows):
                return p.name
        return None


class _Products:
    """The ``Visit`` that scores every product of one sequence."""

    def __init__(self, subject: Subject, tokens_T: NDArray[np.int64]) -> None:
        self._sites = sites(subject.config)
        # Of a product of other numbers than the checkpoint's nothing says how it was computed.
        matching = subject.matching
        placed = [] if matching is None else matching.placements
        self.altered = {placement.tensor for placement in placed if not placement.exact}
        self._oracle = LocalOracle(subject.config, subject.weights, subject.precision, tokens_T)
        self.products: dict[str, _Product] = {}

    def __call__(self, site: str, value: Floats, narrowest: str | None = None) -> None:
        with np.errstate(all="ignore"):
            for first, expected in self._expected(site):
                width = next(iter(expected.values())).value.shape[-1]
                got = value[0][:, first : first + width]
                self.products.setdefault(site, _Product()).add(got, expected)
        self._oracle.show(site, value[0])

    def _expected(self, site: str) -> Iterator[tuple[int, dict[str, Measured]]]:
        """What a product should be in each format, in tiles; nothing for other operations."""
        operation = made_by(self._sites[site])
        if self.altered.intersection(self._sites[site].weights):
            return
        try:
            if operation.product and not operation.by_vocabulary:
                yield 0, {p.name: self._oracle.expected(site, p) for p in FORMATS}
            elif operation.product:
                runs = [self._oracle.expected_logits(p) for p in FORMATS]
                for tiles in zip(*runs, strict=True):
                    named = zip(FORMATS, tiles, strict=True)
                    yield tiles[0][0], {p.name: measured for p, (_, measured) in named}
        except NotShown:
            return


def check_precision(subject: Subject) -> list[Finding]:
    """Which format the products are computed in, and whether it is the declared one."""
    tokens = subject.tokens(1, min(LENGTH, subject.config.n_ctx))
    watch = _Products(subject, tokens[0])
    subject.offers[ACTIVATIONS](tokens, watch)
    if not watch.products:
        shown = "of the checkpoint's own weights " if watch.altered else ""
        raise NotExamined(f"no product {shown}with its input shown")
    return [_finding(subject.precision, watch.products)]


def _finding(declared: Precision, products: dict[str, _Product]) -> Finding:
    formats = {site: product.format() for site, product in products.items()}
    used = [name for name in formats.values() if name is not None]
    narrower = {s: n for s, n in formats.items() if n and _WIDTH[n] > _WIDTH[declared.name]}
    details: dict[str, object] = {"formats": formats}
    if not used:
        raise NotExamined("no product has errors of any format's size")
    # A single product that is off by as much as another format would be is a matter of that site,
    # unless its values are the numbers of that format.
    grid = {s for s in narrower if products[s].grids}
    most = 2 * len(narrower) > len(products)
    if most or grid:
        name = Counter(narrower.values()).most_common(1)[0][0]
        at = [site for site, n in narrower.items() if n == name]
        worst = max(at, key=lambda site: products[site].score(declared.name))
        score, own = products[worst].score(declared.name), products[worst].score(name)
        message = (
            f"declared {declared.name}, computes in {name} at {_named(at, products)}: "
            f"errors at {worst} are {score:.3g} in the budget of {declared.name}, {own:.2g} in "
            f"that of {name}; {_REMEDY[name]}"
        )
        limit = limit_rms(products[worst].rows)
        # Where it is not most of them, the sites say what it is.
        named = naming(_FAULTS.get(name) if most else None)
        return Finding(
            "precision", Status.FAILED, message, None, score, limit, named=named, details=details
        )
    widest = Counter(used).most_common(1)[0][0]
    message = f"{widest} at {sum(n == widest for n in used)} of {len(products)} products"
    if widest != declared.name:
        message = f"declared {declared.name}, computes in {message}"
    return Finding("precision", Status.PASSED, message, details=details)


def _named(sites_: Sequence[str], products: dict[str, _Product]) -> str:
    if len(sites_) == len(products):
        return f"all {len(products)} products"
    return f"{listing(sites_)} of {len(products)} products"
