"""A recipe that is declared: what a port must keep to, operation by operation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt_verify.errors import UsageError
from gpt_verify.recipes.identify import Found, Tried
from gpt_verify.recipes.table import RECIPES, recipes_of
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites
from gpt_verify.text import listing, nearest


@dataclass(frozen=True)
class Declaration:
    """What a port keeps to.

    Attributes:
        name: as it was asked for.
        recipes: operation, or kind of site, → the recipes of which it has one.
        source: where it is written that it is so.
    """

    name: str
    recipes: Mapping[str, tuple[str, ...]]
    source: str = ""

    def of(self, found: Found) -> tuple[str, ...]:
        """What is declared of these sites; of a kind before its operation."""
        return self.recipes.get(found.kind) or self.recipes.get(found.operation) or ()


@dataclass(frozen=True)
class Departure:
    """A site that does not keep to what was declared.

    Attributes:
        site: its name.
        declared: the declared recipe that leaves least.
        found: the recipes that fit.
    """

    site: str
    declared: Tried
    found: tuple[Tried, ...]


@dataclass(frozen=True)
class Kept:
    """How a port keeps to a declaration.

    Attributes:
        declaration: that.
        kept: the sites at which every element is as declared.
        departures: those at which it is not.
        not_examined: the names of the declaration of which nothing was seen.
    """

    declaration: Declaration
    kept: tuple[str, ...]
    departures: tuple[Departure, ...]
    not_examined: tuple[str, ...]


def keeps(declaration: Declaration, found: Iterable[Found]) -> Kept:
    """Hold every site to what was declared of it."""
    kept: list[str] = []
    departures: list[Departure] = []
    seen: set[str] = set()
    for one in found:
        names = declaration.of(one)
        tried = [t for t in one.tried if t.recipe.name in names]
        if not tried:
            continue
        seen |= {one.kind, one.operation}
        if any(t.agreement.outside == 0 for t in tried):
            kept += one.sites
        else:
            departures.append(Departure(one.sites[0], tried[0], one.fitting))
    not_examined = tuple(name for name in declaration.recipes if name not in seen)
    return Kept(declaration, tuple(kept), tuple(departures), not_examined)


def read_declaration(name: str, config: Config) -> Declaration:
    """A declaration by its name, or from a file: ``{"layer_norm": "float32", …}``.

    Raises:
        UsageError: there is no such name or file, or it names what does not exist.
    """
    if name == "authors":
        if config.architecture not in AUTHORS:
            known = ", ".join(AUTHORS)
            raise UsageError(
                f"--recipe authors: what the authors of {config.architecture} round is not known; "
                f"known are those of {known}"
            )
        return AUTHORS[config.architecture]
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--recipe {name}: neither authors nor a file")
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}") from None
    return Declaration(name, _checked(stated, config, str(path)))


def _checked(stated: object, config: Config, where: str) -> dict[str, tuple[str, ...]]:
    """What a file states, every name of which exists in this model."""
    if not isinstance(stated, dict) or not stated:
        raise UsageError(f"{where}: an object of operations and their recipes is needed")
    table = sites(config).values()
    found: dict[str, tuple[str, ...]] = {}
    for key, value in stated.items():
        names = value if isinstance(value, list) else [value]
        own = [site for site in table if key in (site.kind, site.operation)]
        if not own or own[0].operation not in RECIPES:
            places = {s.kind for s in table} | {s.operation for s in table}
            raise UsageError(f"{where}: {key!r} is no operation or site{nearest(key, places)}")
        known = [recipe.name for recipe in recipes_of(config, own[0])]
        for one in names:
            if one not in known:
                raise UsageError(
                    f"{where}: {key}: {one!r} is no recipe of it; these are {listing(known, 20)}"
                )
        found[key] = tuple(names)
    return found


def _authors(source: str, **recipes: str) -> Declaration:
    everywhere = {"linear": "float32", "add": "once", "mix": "pattern-stored", "unembed": "float32"}
    stated = {**everywhere, "pattern": "cast-float32", **recipes}
    return Declaration("authors", {key: (name,) for key, name in stated.items()}, source)


_LLAMA = _authors(
    "meta-llama/llama llama/model.py",
    rms_norm="cast-before-gain",
    rope="float32",
    scores="scaled-after",
    glu="cast-before-up",
)
_GEMMA = _authors(
    "google/gemma_pytorch gemma/model.py",
    embed="scale-stored",
    rms_norm="float32",
    rope="float32",
    scores="query-scaled",
    glu="cast-before-up",
)
_CAPS = {"soft_cap": ("steps",), "unembed": ("capped-steps",)}
_GEMMA_2 = Declaration("authors", {**_GEMMA.recipes, **_CAPS}, _GEMMA.source)
_GPT_OSS = _authors(
    "openai/gpt-oss gpt_oss/torch/model.py",
    rms_norm="float32",
    rope="tables-stored",
    scores="scaled-after",
    routing="float32",
    experts="once-bias-after",
)
#: Its attention is a kernel of xformers, which rounds as it likes.
_MISTRAL = Declaration(
    "authors",
    {
        "linear": ("float32",),
        "rms_norm": ("cast-before-gain",),
        "rope": ("float32",),
        "glu": ("cast-before-up",),
        "add": ("once",),
        "unembed": ("float32",),
    },
    "mistralai/mistral-inference src/mistral_inference/transformer_layers.py, rope.py",
)
_MIXTRAL = Declaration(
    "authors",
    {
        **{place: names for place, names in _MISTRAL.recipes.items() if place != "glu"},
        "routing": ("stored",),
        "experts": ("in-turn",),
    },
    f"{_MISTRAL.source}, moe.py",
)
#: Architecture → what its authors' own code does in half precision.
AUTHORS: dict[str, Declaration] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "mixtral": _MIXTRAL,
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gpt_oss": _GPT_OSS,
}
