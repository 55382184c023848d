"""What makes the difference between two ports: engines that lie between the two are run in the
reference, and they are the engines that torch makes where its operations are exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import recipe_models
from models import checkpoint
from planted_ports import PlantedPort
from rounding_ports import RoundingPort

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.judging.attribute import Attributed, attribute_run, between_ports
from gpt_verify.judging.options import Options
from gpt_verify.judging.recipe import one_input
from gpt_verify.judging.selection import Request, request
from gpt_verify.recipes.causes import causes
from gpt_verify.recipes.emulation import OPEN
from gpt_verify.reference.loss import log_softmax
from gpt_verify.report import attribution

#: Three places in which the second port is otherwise.
THREE = {
    "default": {"ln_1": "cast-before-gain", "mlp.act": "steps", "mlp.out": "bias-after"},
    "gpt2": {"ln_2": "steps", "attn.pattern": "exponentials-stored", "mlp.pre": "bias-after"},
    "llama": {"ln_1": "float32", "attn.q_rot": "steps", "mlp.act": "steps"},
}


@cache
def source(name: str) -> Checkpoint:
    if name == "default":
        return request(None, [], Options(), by_default=False).checkpoint
    return checkpoint() if name == "gpt2" else recipe_models.source(name)


def asked(name: str, *ports: Any) -> Request:
    return request(None, ports, Options(), by_default=False, opened=source(name))


def ports(name: str) -> Request:
    return asked(name, *(PlantedPort(source(name), ways=ways) for ways in ({}, THREE[name])))


@cache
def attributed(name: str) -> Attributed:
    return attribute_run(ports(name))


@pytest.mark.parametrize("name", THREE)
def test_the_difference_is_that_of_three_places(name: str) -> None:
    found = attributed(name)
    assert found.error is None and found.causes is not None
    assert {pair.kind for pair in found.otherwise} == set(THREE[name])
    assert found.untold == ()
    assert {cause.kind for cause in found.causes.causes} == set(THREE[name])
    assert found.accounted >= 0.9
    assert f"so {found.accounted:.1%} of the difference" in attribution.terminal(found)


@pytest.mark.parametrize("name", THREE)
def test_an_engine_between_the_two_is_the_one_that_torch_makes(name: str) -> None:
    """Every place exchanged in torch as well: the share of each is that of the experiment."""
    of, three = ports(name), THREE[name]
    between = between_ports(of)
    tokens = one_input(of).tokens[:1]

    def real(of_a: tuple[str, ...]) -> np.ndarray:
        ways = {kind: way for kind, way in three.items() if kind not in of_a}
        made = PlantedPort(source(name), ways=ways).logits(tokens)[0]
        return np.asarray(log_softmax(made.astype(np.float64)))

    some = [of_a for count in range(len(three) + 1) for of_a in combinations(three, count)]
    engines = {of_a: real(of_a) for of_a in some}
    for of_a in some:
        emulated = np.asarray(log_softmax(between.logits(of_a)))
        away = {other: np.sum((emulated - made) ** 2) for other, made in engines.items()}
        # A sum that is next to the middle of two numbers may be rounded otherwise in between: the
        # most literal engine is not torch. At the ends stand the ports themselves.
        assert min(away, key=lambda other: away[other]) == of_a
        assert away[of_a] == 0 or len(of_a) not in (0, len(three))


def test_two_that_are_one_have_no_cause() -> None:
    found = attribute_run(asked("gpt2", *(RoundingPort(source("gpt2")) for _ in "ab")))
    assert found.causes is not None and found.causes.causes == ()


class Otherwise(RoundingPort):
    """Sums of one kind of site in another order, which tips some roundings.

    Args:
        kind: of the sites.
    """

    def __init__(self, kind: str, **more: Any) -> None:
        super().__init__(source("gpt2"), **more)
        self._kind = kind

    def made(self, name: str, span: Any, p: Any) -> Any:
        if not name.endswith(self._kind):
            return super().made(name, span, p)
        stored = span.store(p)
        return stored.high


@pytest.mark.parametrize("kind", ["attn.qkv", "mlp.out"])
def test_the_order_of_sums_is_a_place_of_its_own(kind: str) -> None:
    """Where equal numbers are seen to make others."""
    found = attribute_run(asked("gpt2", RoundingPort(source("gpt2")), Otherwise(kind)))
    assert found.otherwise == found.untold == () and found.causes is not None
    (cause,) = found.causes.causes
    assert (cause.kind, cause.share) == (OPEN, 1.0)
    assert found.accounted == 0
    elements, differ = found.causes.compared[kind]
    assert 0 < differ < elements
    said = attribution.terminal(found)
    assert "left open" in said and f"{kind} ({differ})" in said
    assert "no operation is known to be computed otherwise" in said


def test_the_order_of_sums_shares_with_what_is_otherwise() -> None:
    other = Otherwise("attn.qkv", recipes={"mlp.act": "steps"})
    found = attribute_run(asked("gpt2", RoundingPort(source("gpt2")), other))
    assert found.causes is not None
    shares: Mapping[str, float] = {c.kind: c.share for c in found.causes.causes}
    assert set(shares) == {"mlp.act", OPEN}
    assert abs(sum(shares.values()) - 1) < 2.0**-24
    assert found.accounted == shares["mlp.act"] < 1


def test_an_attention_of_which_one_hides_its_steps_is_one_place() -> None:
    hidden = RoundingPort(
        source("gpt2"), recipes={"scores": "float32"}, hides=("scores", "pattern")
    )
    of = asked("gpt2", RoundingPort(source("gpt2")), hidden)
    between = between_ports(of)
    assert between.places == ["attn.mix"]
    found = causes(between)
    assert [(c.kind, c.share, c.alone, c.without) for c in found.causes] == [("attn.mix", 1, 1, 1)]


def test_many_places_are_exchanged_forwards_and_backwards() -> None:
    four = {"mlp.pre": "bias-after", "attn.out": "bias-after", "attn.pattern": "steps"}
    other = {**THREE["default"], **four}
    found = attribute_run(
        asked("gpt2", *(RoundingPort(source("gpt2"), recipes=r) for r in ({}, other)))
    )
    assert found.causes is not None
    assert {c.kind for c in found.causes.causes} == set(other)
    assert abs(sum(c.share for c in found.causes.causes) - 1) < 2.0**-24
    # Two ends, and each order between them; the first and the last of one are those of the other.
    assert found.causes.runs == 2 + 2 * (len(other) - 1) + (len(other) - 2) * 2
