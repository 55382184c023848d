"""A failure is explained by the fault that is there, and by no other; else it is unexplained."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIG, TESTS, checkpoint, failures, finding, judged

from gpt_verify.diagnosis import left_over
from gpt_verify.diagnosis.cause import causes
from gpt_verify.diagnosis.filter import NEAR_ONE, MatchedFilter
from gpt_verify.diagnosis.filter import Candidate as Deviation
from gpt_verify.diagnosis.port import Diagnosis
from gpt_verify.diagnosis.tensors import Difference, explain
from gpt_verify.explanation import UNKNOWN_DAMAGE, Candidate, Explanation
from gpt_verify.findings import Finding, Status, Verdict, naming
from gpt_verify.laws.catalogue import faults_of
from gpt_verify.laws.table import LAWS, expected_checks
from gpt_verify.numerics.scores import limit_max
from gpt_verify.reference.weights import tensor_table

SOURCE = checkpoint()
GELU = [name for name, fault in faults_of(SOURCE.config).items() if fault.family == "gelu"]


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """A file of factories, one for each fault, as a user would write them."""
    file = tmp_path / "planted.py"
    file.write_text(
        f"import sys; sys.path.append({str(TESTS / 'faults')!r})\n"
        "from fault_ports import injected\n"
        "from gpt_verify.laws.catalogue import CATALOGUE\n"
        "def logits_only(port):\n"
        "    return lambda tokens: port.logits(tokens)\n"
        "def make(*faults, only=False):\n"
        "    def factory(checkpoint):\n"
        "        port = injected(checkpoint, *faults)\n"
        "        return logits_only(port) if only else port.module\n"
        "    return factory\n"
        "correct, correct_logits = make(), make(only=True)\n"
        "two = make(('gelu-erf', [0]), ('gelu-scale-0.79788', [2]))\n"
        "two_logits = make(('gelu-erf', [0]), ('gelu-cubic-0.0447', [2]), only=True)\n"
        "for n in CATALOGUE:\n"
        "    if CATALOGUE[n].inject is not None:\n"
        "        globals()['all_' + n] = make((n, range(3)))\n"
        "        globals()['one_' + n] = make((n, [1]))\n"
        "        globals()['logits_' + n] = make((n, range(3)), only=True)\n"
    )
    return file


@pytest.mark.parametrize("name", GELU)
@pytest.mark.parametrize(("form", "layers"), [("all", (0, 1, 2)), ("one", (1,))])
def test_a_site_is_explained(
    factories: Path, name: str, form: str, layers: tuple[int, ...]
) -> None:
    report = judged(f"{factories}:{form}_{name}")
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == (name,)
    (cause,) = report.causes
    assert cause.where == tuple(f"h.{layer}.mlp.act" for layer in layers)
    assert not cause.instead
    message = finding(report, "architecture", f"h.{layers[0]}.mlp.act").message
    assert f"explained by {name} (RMS error in rounding budgets of float64: " in message


@pytest.mark.parametrize("name", GELU)
def test_logits_alone_are_explained(factories: Path, name: str) -> None:
    report = judged(f"{factories}:logits_{name}")
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == (name,)


def test_below_the_floor_of_the_comparison(factories: Path) -> None:
    """The logits pass, and the fault that is in them is named all the same."""
    report = judged(f"{factories}:logits_gelu-scale-0.79788")
    assert finding(report, "logits", "logits").status is Status.PASSED
    (failed,) = failures(report)
    assert failed.id == "logits.faults"
    assert "explained by gelu-scale-0.79788 (coefficient" in failed.message
    (match,) = failed.details["matches"]
    # As the filter takes a coefficient for 1, and so that 0 is far away.
    assert abs(match["coefficient"] - 1) <= max(NEAR_ONE, 3 * match["error"])
    assert limit_max(1) * match["error"] < 1


def test_two_at_once(factories: Path) -> None:
    assert set(judged(f"{factories}:two").explained_by) == {"gelu-erf", "gelu-scale-0.79788"}


@pytest.mark.parametrize("name", ["correct", "correct_logits"])
def test_nothing_is_named_in_a_correct_port(factories: Path, name: str) -> None:
    report = judged(f"{factories}:{name}")
    assert report.verdict is Verdict.VERIFIED
    assert report.explained_by == ()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("np.maximum(at - 1, 0)", "each position is that of the one before"),
        ("np.minimum(at + 1, len(at) - 1)", "each position is that of the one after"),
        ("at[::-1]", "positions reversed"),
        ("np.roll(at, 2)", "positions moved on by 2"),
    ],
)
def test_logits_that_stand_at_other_positions_are_told(
    tmp_path: Path, order: str, words: str
) -> None:
    """As a server does that returns the distribution that each token was drawn from."""
    file = tmp_path / "echo.py"
    file.write_text(
        f"import sys; sys.path.append({str(TESTS / 'faults')!r})\n"
        "import numpy as np\n"
        "from fault_ports import injected\n"
        "def echo(checkpoint):\n"
        "    port = injected(checkpoint)\n"
        "    def logits(tokens):\n"
        "        made, at = port.logits(tokens), np.arange(tokens.shape[1])\n"
        f"        return made[:, {order}]\n"
        "    return logits\n"
    )
    report = judged(f"{file}:echo")
    assert report.verdict is Verdict.REFUTED
    assert "output-permuted" in report.explained_by
    cause = next(cause for cause in report.causes if cause.fault == "output-permuted")
    assert cause.note == words and cause.sites == ("logits",)


def test_an_unknown_fault_is_called_unexplained() -> None:
    """Attention's output scaled by 1.001 is not in the catalogue."""
    report = judged(f"{TESTS / 'altered_ports.py'}:callable_attention_output_scaled")
    assert report.verdict is Verdict.REFUTED
    assert report.explained_by == ()
    assert any("unexplained" in f.message for f in failures(report))


def test_where_its_inside_is_seen_it_has_a_form() -> None:
    report = judged(f"{TESTS / 'altered_ports.py'}:eager_attention_output_scaled")
    assert report.explained_by == ("sum-coefficients",)
    assert report.causes[0].note == "x + 1.001 · f(x), not x + f(x)"


def test_a_head_of_its_own_is_explained_where_the_weights_are_listed() -> None:
    report = judged(f"{TESTS / 'faults' / 'any_fault.py'}:head-untied@0")
    assert report.explained_by == ("head-untied",)
    message = finding(report, "weights.values", "logits").message
    assert "(it is wte, the head; " in message
    assert "lm_head: explained by head-untied" in message


def test_what_follows_from_a_fault_is_named_by_a_law() -> None:
    """A name that no law has would excuse nothing, and nobody would see it."""
    ids = {id for id, _ in expected_checks(CONFIG)} | {"graph.meta"}
    laws = ids | {id.partition(".")[0] for id in ids}
    following = set[str]().union(*left_over.GO_WITH.values())
    for named in (left_over.FOLLOW, left_over.FOLLOW_QUANTISING, left_over.FOLLOW_TENSORS):
        following |= named
    assert following - laws == set()
    assert left_over.GO_WITH.keys() - ids == set()


def test_what_a_port_does_twice_follows_from_a_fault_that_rounds_coarsely() -> None:
    """Two ways to the same logits differ by a step of it, in every law that takes two ways."""
    follow = left_over.FOLLOW | left_over.FOLLOW_QUANTISING
    twice = set()
    for law in LAWS:
        for part in law.parts:
            made_of = inspect.getmodule(inspect.unwrap(part.check)) if part.check else None
            if hasattr(made_of, "Agreement"):
                twice.add(part.id)
    assert {"cache", "lengths", "calls"} <= twice
    assert {id for id in twice if not {id, id.partition(".")[0]} & follow} == set()


def difference(name: str, change: Any) -> Difference:
    expected = np.array(SOURCE.tensors[name])
    return Difference(name, change(expected.copy()), expected, SOURCE.tensors.__getitem__, CONFIG)


@pytest.mark.parametrize("name", ["wte", "h1/attn/c_attn/w", "h0/mlp/c_fc/b", "ln_f/g"])
def test_noise_is_not_explained(name: str) -> None:
    assert name in tensor_table(CONFIG)
    rng = np.random.default_rng(0)
    noisy = difference(name, lambda x: x + 1e-5 * rng.standard_normal(x.shape).astype(np.float32))
    assert explain(noisy).best is None


def test_one_cause_for_many_failures() -> None:
    """What explains most is taken first, and what it explains needs nothing else."""

    def explained(where: str, **scores: float) -> Explanation:
        accepted = tuple(Candidate(fault, score) for fault, score in scores.items())
        return Explanation(where, 100.0, 10.0, accepted)

    found = causes([explained("x", a=0.5, b=0.4), explained("y", a=0.5), explained("z", c=1.0)])
    assert [(cause.fault, cause.where, cause.instead) for cause in found] == [
        ("a", ("x", "y"), ()),
        ("c", ("z",), ()),
    ]
    (tied,) = causes([explained("x", a=0.5, b=0.4)])
    assert (tied.fault, tied.instead) == ("b", ("a",))
    # b would be wrong at a site that is right, if it were in all layers.
    (tied,) = causes([explained("x", a=0.5, b=0.4)], elsewhere=lambda fault, where: fault == "b")
    assert (tied.fault, tied.instead) == ("a", ("b",))


def test_one_name_is_not_enough_where_two_faults_are_needed() -> None:
    both = Candidate("a", 0.5, beside="b")
    found = causes([Explanation("x", 100.0, 10.0, (both,))])
    assert [(cause.fault, cause.where) for cause in found] == [("a", ("x",)), ("b", ("x",))]


def test_what_is_far_off_is_not_near() -> None:
    """Scores stand on one scale, and a candidate that leaves most of the failure is not shown."""
    near, far = Candidate("a", 5.0), Candidate("b", 90.0)
    said = str(Explanation("x", 100.0, 1.0, (), (near, far), reads=("y", "z")))
    huge = Explanation("x", 1e15, 1.0, (), (Candidate("a", 1e11),))
    assert str(huge) == "unexplained (RMS error in rounding budgets: 1e+15)"
    assert said == (
        "unexplained (RMS error in rounding budgets: 100); nearest: a (leaves 5)"
        "; look at what makes x of y and z"
    )


def test_a_site_that_follows_from_its_tensor_has_no_name_of_its_own() -> None:
    follows = Explanation("x", 100.0, 1.0, (Candidate(UNKNOWN_DAMAGE, 0.5),))
    assert str(follows).startswith("follows from its tensor, which differs (")


DEVIATIONS = tuple(
    Deviation(name, None, np.random.default_rng(seed).standard_normal((8, 400)) * size)
    for seed, (name, size) in enumerate((("small", 0.3), ("large", 50.0), ("other", 1.0)), 10)
)


class TestFilter:
    """On made-up deviations, where what is there is known."""

    def noise(self, seed: int) -> Any:
        return np.random.default_rng(seed).standard_normal((8, 400))

    def filtered(self, *names: str) -> tuple[str, ...]:
        there = [d.deviation_SN for d in DEVIATIONS if d.fault in names]
        error = self.noise(2) + sum(there)
        found = MatchedFilter(self.noise(3)).find(error, DEVIATIONS, 10.0)
        return tuple(match.candidate.fault for match in found.matches)

    def test_nothing(self) -> None:
        assert self.filtered() == ()

    @pytest.mark.parametrize("name", ["small", "large", "other"])
    def test_one(self, name: str) -> None:
        assert self.filtered(name) == (name,)

    def test_two(self) -> None:
        assert set(self.filtered("large", "other")) == {"large", "other"}

    def test_half_of_a_fault_is_none(self) -> None:
        error = self.noise(2) + 0.5 * DEVIATIONS[1].deviation_SN
        assert MatchedFilter(self.noise(3)).find(error, DEVIATIONS, 10.0).matches == ()

    @pytest.mark.parametrize("there", [1.0, 0.9])
    def test_two_in_one_direction(self, there: float) -> None:
        """As ε = 1e-6 and ε = 0 have: the size tells them apart, if noise does not hide it."""
        shorter = Deviation("shorter", None, 0.9 * DEVIATIONS[1].deviation_SN)
        error = self.noise(2) + there * DEVIATIONS[1].deviation_SN
        found = MatchedFilter(self.noise(3)).find(error, [*DEVIATIONS, shorter], 10.0)
        names = [match.candidate.fault for match in found.matches]
        assert names == (["large"] if there == 1.0 else ["shorter"])

    def test_two_that_are_alike_are_not_told_apart(self) -> None:
        twin = Deviation("twin", None, DEVIATIONS[1].deviation_SN)
        error = self.noise(2) + twin.deviation_SN
        (match,) = MatchedFilter(self.noise(3)).find(error, [*DEVIATIONS, twin], 10.0).matches
        assert {match.candidate.fault, *match.instead} == {"large", "twin"}

    def test_two_that_noise_hides_the_difference_of_are_not_named(self) -> None:
        """One is there, but which one cannot be seen, and they are not the same either."""
        step = np.random.default_rng(9).standard_normal((8, 400)) * 0.02
        near = Deviation("near", None, DEVIATIONS[0].deviation_SN + step)
        error = self.noise(2) + DEVIATIONS[0].deviation_SN
        found = MatchedFilter(self.noise(3)).find(error, [*DEVIATIONS, near], 10.0)
        assert found.matches == ()


@pytest.mark.parametrize(
    ("law", "stays"), [("batch", False), ("determinism", False), ("loss.value", True)]
)
def test_a_form_is_not_read_off_what_hangs_on_the_call(law: str, stays: bool) -> None:
    form = Candidate("output-clamped", 0.1, "attn.out is cut at 0")
    explanation = Explanation("h.0.attn.out", 1e6, 1.0, (form,))
    named = naming("batch-last-row" if law == "batch" else None)
    diagnosis = Diagnosis([explanation], [Finding(law, Status.FAILED, "", named=named)])
    assert any(cause.fault == "output-clamped" for cause in diagnosis.causes) == stays
