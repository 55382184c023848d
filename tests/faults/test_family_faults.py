"""Faults in transformers' models of the families: both writings compute the same, a run finds each
where it is and names it, and what is correct is verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import Sources, family, written
from models import failures
from rounding import LIMIT_FLOORS, Noise, Run

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.diagnosis.sites import HIDDEN
from gpt_verify.faults.fault import Fault
from gpt_verify.findings import Verdict
from gpt_verify.graph.call import Override
from gpt_verify.graph.run import right, run
from gpt_verify.graph.table import made_by
from gpt_verify.inputs import Input
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY, Port
from gpt_verify.power.injection import (
    EVERYWHERE,
    LOGITS,
    ONE_LAYER,
    Injection,
    injections,
    port_with,
)
from gpt_verify.power.trial import Bench, short_inputs
from gpt_verify.reference import Config
from gpt_verify.sites import sites

#: Families whose inside is seen; each fault is put into the one that has the fewest by then.
SEEN = (
    *("gemma3_text", "phi", "olmo2", "gemma2", "qwen3", "gptj", "opt", "llama"),
    *("mistral", "smollm3", "gpt_neo", "gemma", "qwen2", "gpt_neox", "bloom"),
)
#: What a difference between the writings is proved to be seen by: a change in the seventh digit.
OFF = 1 + 1e-7
#: A block that is wired otherwise: a port shows sums there that are none of the model's.
REWIRED = {"block-norm-before"}
#: Two faults that are one function in layer 1 of these sizes: √(2 · 6) is √24 / √2.
SAME = {"attention-scale-by-layer", "attention-scale-by-width"}


def _dealt(among: Sequence[str]) -> list[tuple[str, str]]:
    """(fault, family): every fault that some of these can have, in one of them."""
    dealt: list[tuple[str, str]] = []
    for name, fault in CATALOGUE.items():
        able = [one for one in among if injections(fault, family(one))]
        if able:
            counts = {one: sum(one == other for _, other in dealt) for one in able}
            dealt.append((name, min(able, key=lambda one: counts[one])))
    return dealt


DEALT = _dealt(SEEN)
#: What only families can have whose inside is not seen, or not in whole.
UNSEEN = [
    (name, of)
    for name, of in _dealt(("gpt_oss", "mixtral", "qwen3_moe"))
    if name not in dict(DEALT)
]
#: A number of heads that is no power of two, which the small model of BLOOM has not.
ELSEWHERE = {"alibi-naive"}
#: Where torch's own norm reads something else than the sum before it; and where what a fault makes
#: leaves the range of float32 before the last norm; and where the stream is shown by the second of
#: its two readers.
BESIDE = [
    *(("residual-parallel", of) for of in ("opt", "bloom", "gpt_neo")),
    ("norm-2-missing", "gemma"),
    ("norm-1-missing", "gpt_neox"),
]
ACTING = [(name, of) for name, of in DEALT if CATALOGUE[name].law]
ACTING += [pair for pair in BESIDE if pair not in ACTING]
HARMLESS = [(name, of) for name, of in DEALT if not CATALOGUE[name].law]


def ids(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name}, {of}" for name, of in pairs]


@pytest.fixture(scope="module")
def benches(sources: Sources) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def bench(name: str) -> Bench:
        if name not in made:
            made[name] = Bench(sources(name), 0)
        return made[name]

    return bench


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import transformers

    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def test_no_fault_of_a_family_is_left_out() -> None:
    able = {name for name, fault in CATALOGUE.items() if fault.in_family is not None}
    assert {name for name, _ in (*DEALT, *UNSEEN)} == able - ELSEWHERE
    assert {of for _, of in DEALT} == set(SEEN)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_faults_of_its_operations_alone(name: str) -> None:
    config = family(name)
    kinds = {site.kind for site in sites(config).values()}
    for fault in faults_of(config).values():
        if injections(fault, config):
            assert kinds & set(fault.sites.operations), fault.name


# Both writings


def everywhere(fault: Fault, config: Config) -> Injection:
    return Injection(fault.name, EVERYWHERE, tuple(range(config.n_layer)))


def shown(port: Port, item: Input) -> dict[str, Any]:
    """Every site of the port in float64, of the first row."""
    found: dict[str, Any] = {}

    def keep(site: str, value: Any, narrowest: str | None = None) -> None:
        found[site] = value[0].copy()

    with port.offers()[FLOAT64_COPY]() as copy:
        copy.offers()[ACTIVATIONS](item.tokens, keep)
    return found


def run_with(source: Checkpoint, item: Input, overrides: Mapping[str, Override]) -> Run:
    """The oracle with some operations replaced, its values rounded as they are kept."""

    def each(dtype: type[np.floating], store: Callable[[Any], Any]) -> Any:
        every = {site: overrides.get(site, right) for site in sites(source.config)}
        kept: dict[str, Override] = {
            site: lambda call, act=act: store(np.asarray(act(call), dtype))
            for site, act in every.items()
        }
        lookup = source.tensors.__getitem__
        return run(lookup, source.config, item.tokens[0], kept, dtype=dtype, keep=None)

    return each


def floors(known: Noise, config: Config, site: str, got: Any) -> float:
    """In noise floors; of scores, what no mask hides."""
    if not made_by(sites(config)[site]).masked:
        return known.floors(site, got)
    seen = np.tri(*got.shape[-2:], dtype=np.bool_) & (known.exact[site] > HIDDEN)
    return known.floors(site, got, seen)


@pytest.mark.parametrize(("name", "of"), ACTING, ids=ids(ACTING))
def test_both_writings_compute_the_same(sources: Sources, name: str, of: str) -> None:
    """From the tokens to the logits, at every site that the port shows, to within what rounding
    does to this very mistake. A difference in the seventh digit is far beyond that."""
    source, fault = sources(of), CATALOGUE[name]
    config, (_, item) = source.config, short_inputs(source, 0)
    injection = everywhere(fault, config)
    got = shown(port_with(fault, injection, source), item)
    overrides = fault.overrides(config, injection.layers)
    known = Noise(run_with(source, item, overrides))
    order = list(sites(config))
    unchanged = dict(run_with(source, item, {})(np.float64, lambda x: x))
    changed = [s for s in overrides if floors(known, config, s, unchanged[s]) > LIMIT_FLOORS]
    assert changed
    # What is masked early is shown so in one writing alone.
    table, early = sites(config), fault.sites.early
    compared = [s for s in order if s in got and table[s].kind not in early]
    if name in REWIRED:
        compared = ["embed", "logits"]
    assert "logits" in compared
    for site in compared:
        assert floors(known, config, site, got[site]) <= LIMIT_FLOORS, site
    first = min(changed, key=order.index)
    off = {**overrides, first: lambda call: np.float64(overrides[first](call)) * OFF}
    other = dict(run_with(source, item, off)(np.float64, lambda x: x))
    assert max(floors(known, config, site, other[site]) for site in compared) > LIMIT_FLOORS


def same_logits(source: Checkpoint, name: str) -> None:
    """In float32: the experts of transformers have no float64."""
    fault, (_, item) = CATALOGUE[name], short_inputs(source, 0)
    injection = everywhere(fault, source.config)
    got = port_with(fault, injection, source).logits(item.tokens)[0]
    overrides = fault.overrides(source.config, injection.layers)
    known = Noise(run_with(source, item, overrides), FLOAT32)
    unchanged = dict(run_with(source, item, {})(np.float64, lambda x: x))
    assert known.floors("logits", unchanged["logits"]) > LIMIT_FLOORS
    assert known.floors("logits", got) <= LIMIT_FLOORS


@pytest.mark.parametrize(("name", "of"), UNSEEN, ids=ids(UNSEEN))
def test_both_writings_of_what_is_not_seen(sources: Sources, name: str, of: str) -> None:
    same_logits(sources(of), name)


def test_slopes_of_a_number_of_heads_that_is_no_power_of_two(tmp_path: Path) -> None:
    (name,) = ELSEWHERE
    same_logits(open_checkpoint(written(tmp_path, "bloom", num_attention_heads=3)), name)


# What a run says


@pytest.mark.parametrize(("name", "of"), ACTING, ids=ids(ACTING))
def test_it_is_found_where_it_is_and_named(
    benches: Callable[[str], Bench], name: str, of: str
) -> None:
    bench = benches(of)
    for injection in injections(CATALOGUE[name], bench.checkpoint.config):
        if injection.form == LOGITS:
            continue  # test_family_logits.py
        outcome = bench.fault(injection)
        assert outcome.detected, (injection.form, outcome.message)
        assert outcome.localised, (injection.form, outcome.first_divergence)
        names = (injection.form, outcome.explained_by, outcome.instead, outcome.same)
        assert outcome.explained, names
        assert not outcome.wrong_names, names
        if name in SAME and injection.form == ONE_LAYER:
            assert {name, *outcome.same} == SAME
        else:
            assert outcome.same == (), names


def test_layers_that_are_right_tell_faults_of_a_hidden_pattern_apart(
    benches: Callable[[str], Bench],
) -> None:
    """gpt-oss hides its patterns, and the mixes of layers that have a window are right: the windows
    are not exchanged."""
    bench = benches("gpt_oss")
    layers = tuple(range(bench.checkpoint.config.n_layer))
    for name in ("window-everywhere", "window-other-layers"):
        outcome = bench.fault(Injection(name, EVERYWHERE, layers))
        assert outcome.explained_by == (name,), (name, outcome.explained_by, outcome.instead)


@pytest.mark.parametrize(("name", "of"), HARMLESS, ids=ids(HARMLESS))
def test_what_changes_nothing_is_verified(sources: Sources, name: str, of: str) -> None:
    source, fault = sources(of), CATALOGUE[name]
    injection = everywhere(fault, source.config)
    report = judge(
        name,
        source,
        short_inputs(source, 0),
        None,
        "cpu",
        Silent(),
        build=lambda: port_with(fault, injection, source),
        laws=(),
    )
    assert report.verdict is Verdict.VERIFIED, failures(report)
    assert report.explained_by == ()


@pytest.mark.parametrize("of", SEEN)
def test_none_is_named_in_a_correct_port(benches: Callable[[str], Bench], of: str) -> None:
    outcome = benches(of).correct("huggingface-eager", 0, {"architecture"})
    assert (outcome.verdict, outcome.explained_by) == ("verified", ())
