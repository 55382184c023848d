"""Which parameter is which tensor: by content, and by name where contents are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from models import INPUTS, checkpoint

from gpt_verify.findings import Finding, Status
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Silent
from gpt_verify.laws.weights.check import check_weights
from gpt_verify.matching.match import Matching, match
from gpt_verify.numerics.precision import BFLOAT16, FLOAT16, FLOAT32, Precision
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.ports.registry import build
from gpt_verify.reference import Config, tensor_table

CONFIG = Config(n_vocab=31, n_ctx=7, n_embd=12, n_head=2, n_layer=3)
TABLE = tensor_table(CONFIG)
Values = dict[str, np.ndarray]


@pytest.fixture
def values() -> Values:
    source = checkpoint(CONFIG).tensors
    return {name: source[name].copy() for name in TABLE}


def parameters(port: Values, shared: dict[str, str] | None = None) -> list[Parameter]:
    """``shared`` maps a name to the name whose memory it shares."""
    shared = shared or {}
    made = [Parameter(n, v.shape, lambda v=v: v, ("memory", n)) for n, v in port.items()]
    for name, of in shared.items():
        value = port[of]
        made.append(Parameter(name, value.shape, lambda v=value: v, ("memory", of)))
    return made


def matched(
    port: Values,
    source: Values,
    precision: Precision = FLOAT32,
    shared: dict[str, str] | None = None,
) -> tuple[Matching, list[Finding]]:
    weights = DeclaredWeights(source, precision)
    made = parameters(port, shared)
    matching = match(made, CONFIG, weights)
    findings = check_weights(made, matching, CONFIG, weights)
    return matching, findings


def where(matching: Matching) -> dict[str, str]:
    return {p.parameter: p.tensor for p in matching.placements}


def failed(findings: list[Finding]) -> set[tuple[str, str | None]]:
    return {(f.id, f.site) for f in findings if f.status is Status.FAILED}


def message(findings: list[Finding], law: str, site: str | None = None) -> str:
    return next(f.message for f in findings if (f.id, f.site) == (law, site))


class TestByContent:
    def test_the_same_names(self, values: Values) -> None:
        matching, findings = matched(values, values)
        assert where(matching) == {name: name for name in TABLE}
        assert not failed(findings)

    @pytest.mark.parametrize("seed", range(3))
    def test_names_without_meaning_in_any_order(self, values: Values, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(list(TABLE)).tolist()
        port = {f"p{i}": values[name] for i, name in enumerate(order)}
        matching, findings = matched(port, values)
        assert where(matching) == {f"p{i}": name for i, name in enumerate(order)}
        assert not failed(findings)

    def test_misleading_names(self, values: Values) -> None:
        names = list(TABLE)
        port = dict(zip(names, [values[n] for n in reversed(names)], strict=True))
        matching, findings = matched(port, values)
        assert where(matching) == dict(zip(names, reversed(names), strict=True))
        assert not failed(findings)

    def test_transposed(self, values: Values) -> None:
        port = {n: v.T.copy() if v.ndim == 2 else v for n, v in values.items()}
        matching, findings = matched(port, values)
        assert {p.tensor for p in matching.placements if p.transposed} == {
            n for n, v in values.items() if v.ndim == 2
        }
        assert not failed(findings)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_split(self, values: Values, transposed: bool) -> None:
        port: Values = {}
        for name, value in values.items():
            if "c_attn" not in name:
                port[name] = value
                continue
            for i, part in enumerate(np.split(value, 3, axis=-1)):
                port[f"{name} {2 - i}"] = part.T.copy() if transposed else part
        matching, findings = matched(port, values)
        assert not failed(findings)
        for p in matching.placements:
            if p.part is not None:
                assert p.parameter == f"{p.tensor} {2 - p.part}"
        assert sum(p.part is not None for p in matching.placements) == 6 * CONFIG.n_layer

    def test_axes_of_length_1(self, values: Values) -> None:
        port = {n: v.reshape(1, *v.shape) if v.ndim == 2 else v for n, v in values.items()}
        assert not failed(matched(port, values)[1])

    @pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16], ids=lambda p: p.name)
    def test_after_the_declared_cast(self, values: Values, precision: Precision) -> None:
        port = {n: precision.round(v) for n, v in values.items()}
        assert not failed(matched(port, values, precision)[1])
        assert failed(matched(values, values, precision)[1])

    def test_shared_memory_is_one_parameter(self, values: Values) -> None:
        matching, findings = matched(values, values, shared={"lm_head": "wte"})
        assert len(matching.placements) == len(TABLE)
        assert not failed(findings)

    def test_an_equal_copy_is_a_head_of_its_own(self, values: Values) -> None:
        matching, findings = matched({**values, "lm_head": values["wte"].copy()}, values)
        assert [p.parameter for p in matching.placements if p.head] == ["lm_head"]
        assert not matching.surplus
        assert not failed(findings)
        count = message(findings, "weights.count")
        assert "lm_head, a second wte equal bit for bit, is not counted" in count

    def test_a_head_that_differs(self, values: Values) -> None:
        _, findings = matched({**values, "lm_head": values["wte"] * np.float32(1.5)}, values)
        assert failed(findings) == {("weights.values", "logits"), ("weights.count", None)}
        assert "lm_head, a head of its own, is counted" in message(findings, "weights.count")


class TestIdenticalContents:
    """Biases of zeros and gains of ones, as an untrained checkpoint has."""

    @pytest.fixture
    def alike(self, values: Values) -> Values:
        for name, value in values.items():
            if TABLE[name].role in ("bias", "gain"):
                value[:] = TABLE[name].role == "gain"
        return values

    def test_by_name(self, alike: Values) -> None:
        matching, findings = matched(alike, alike)
        assert where(matching) == {name: name for name in TABLE}
        assert not failed(findings)

    def test_by_transformers_names_in_reverse(self, alike: Values) -> None:
        from gpt_verify.ports.huggingface import parameter_name

        port = {parameter_name(n): alike[n] for n in reversed(list(TABLE))}
        matching, findings = matched(port, alike)
        assert where(matching) == {parameter_name(n): n for n in TABLE}
        assert not failed(findings)

    def test_without_meaning_there_is_still_no_false_finding(self, alike: Values) -> None:
        port = {f"p{i}": alike[n] for i, n in enumerate(TABLE)}
        matching, findings = matched(port, alike)
        assert not failed(findings)
        assert not matching.surplus
        assert not matching.missing

    def test_split_biases_of_zeros(self, alike: Values) -> None:
        port: Values = {}
        for name, value in alike.items():
            if "c_attn" in name:
                for letter, part in zip("qkv", np.split(value, 3, axis=-1), strict=True):
                    leaf = "bias" if name.endswith("b") else "weight"
                    port[f"layers.{name[1]}.{letter}_proj.{leaf}"] = part
            else:
                port[name] = value
        matching, findings = matched(port, alike)
        assert not failed(findings)
        by_parameter = {p.parameter: p for p in matching.placements}
        for layer in range(CONFIG.n_layer):
            for part, letter in enumerate("qkv"):
                placed = by_parameter[f"layers.{layer}.{letter}_proj.bias"]
                assert (placed.tensor, placed.part) == (f"h{layer}/attn/c_attn/b", part)

    def test_one_that_differs_is_reported_where_it_is(self, alike: Values) -> None:
        port = {n: v.copy() for n, v in alike.items()}
        port["h1/ln_2/b"][4] = 0.5
        _, findings = matched(port, alike)
        assert failed(findings) == {("weights.values", "h.1.ln_2")}
        assert "h1/ln_2/b[4] = 0.5, should be 0" in message(findings, "weights.values", "h.1.ln_2")


CHANGES: dict[str, Callable[[np.ndarray], object]] = {
    "scaled": lambda v: v.__imul__(np.float32(1.00001)),
    "one element": lambda v: v.flat.__setitem__(5, 9.0),
    "first element": lambda v: v.flat.__setitem__(0, 9.0),
    "one bit": lambda v: v.view(np.int32).flat.__setitem__(5, v.view(np.int32).flat[5] ^ 1),
    "noise": lambda v: v.__iadd__(np.random.default_rng(0).standard_normal(v.shape) * 0.1),
    "zeros": lambda v: v.fill(0),
    "reversed": lambda v: v.__setitem__(slice(None), v[::-1].copy()),
    "NaN": lambda v: v.flat.__setitem__(5, np.nan),
    "all NaN": lambda v: v.fill(np.nan),
    "infinity": lambda v: v.flat.__setitem__(5, np.inf),
}


class TestWrongContent:
    """A difference in the correct tensor, under any layout; never surplus, never missing."""

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize(
        ("name", "site"),
        [
            ("wte", "embed"),
            ("wpe", "embed"),
            ("h1/attn/c_attn/w", "h.1.attn.qkv"),
            ("h2/attn/c_proj/w", "h.2.attn.out"),
            ("h0/mlp/c_fc/b", "h.0.mlp.pre"),
            ("ln_f/g", "ln_f"),
        ],
    )
    def test_found(
        self, values: Values, change: str, transposed: bool, name: str, site: str
    ) -> None:
        port = {n: v.copy() for n, v in values.items()}
        CHANGES[change](port[name])
        if transposed:
            port = {n: v.T.copy() if v.ndim == 2 else v for n, v in port.items()}
        matching, findings = matched(port, values)
        assert matching.surplus == matching.missing == ()
        assert where(matching) == {n: n for n in TABLE}
        # wte is read at both ends.
        places = {site, "logits"} if name == "wte" else {site}
        assert failed(findings) == {("weights.values", place) for place in places}

    def test_the_difference_is_worded_in_full(self, values: Values) -> None:
        port = {n: v.copy() for n, v in values.items()}
        port["h1/mlp/c_fc/w"][3, 7] = 2.5
        _, findings = matched(port, values)
        said = message(findings, "weights.values", "h.1.mlp.pre")
        was = float(values["h1/mlp/c_fc/w"][3, 7])
        assert said == (
            f"h1/mlp/c_fc/w[3, 7] = 2.5, should be {was:.9g} (it is h1/mlp/c_fc/w; 1 of 576 differ)"
        )

    def test_minus_zero_is_not_zero(self, values: Values) -> None:
        values["h0/ln_1/b"][3] = 0.0
        port = {n: v.copy() for n, v in values.items()}
        port["h0/ln_1/b"][3] = -0.0
        assert failed(matched(port, values)[1]) == {("weights.values", "h.0.ln_1")}

    def test_nan_in_the_checkpoint_equals_nothing(self, values: Values) -> None:
        values["h0/ln_1/b"][3] = np.nan
        assert failed(matched(dict(values), values)[1]) == {("weights.values", "h.0.ln_1")}

    def test_two_exchanged_tensors_are_told_by_content(self, values: Values) -> None:
        """Renaming is no fault of the weights; where they are read is the sites' affair."""
        port = dict(values)
        port["h0/ln_1/g"], port["h1/ln_2/g"] = values["h1/ln_2/g"], values["h0/ln_1/g"]
        matching, findings = matched(port, values)
        assert where(matching)["h0/ln_1/g"] == "h1/ln_2/g"
        assert not failed(findings)


class TestLeftOver:
    def test_surplus_is_named(self, values: Values) -> None:
        extra = np.ones((5, 3), np.float32)
        matching, findings = matched({**values, "rotary.scale": extra}, values)
        assert matching.surplus == ("rotary.scale",)
        assert failed(findings) == {("weights.accounted", None), ("weights.count", None)}
        assert "rotary.scale" in message(findings, "weights.accounted")

    def test_a_tensor_twice_is_surplus(self, values: Values) -> None:
        matching, findings = matched({**values, "again": values["h0/mlp/c_fc/w"].copy()}, values)
        assert len(matching.surplus) == 1
        assert ("weights.accounted", None) in failed(findings)

    @pytest.mark.parametrize("name", ["wpe", "h1/attn/c_proj/w", "h2/mlp/c_fc/b", "ln_f/b"])
    def test_missing_is_named(self, values: Values, name: str) -> None:
        port = {n: v for n, v in values.items() if n != name}
        matching, findings = matched(port, values)
        assert matching.missing == (name,)
        assert name in message(findings, "weights.accounted")
        assert ("weights.count", None) in failed(findings)

    def test_a_missing_part_is_named(self, values: Values) -> None:
        port = dict(values)
        query, key, _ = np.split(port.pop("h1/attn/c_attn/w"), 3, axis=-1)
        matching, _ = matched({**port, "q": query, "k": key}, values)
        assert matching.missing == ("h1/attn/c_attn/w (v)",)

    def test_no_parameters_at_all(self, values: Values) -> None:
        matching, findings = matched({}, values)
        assert set(matching.missing) >= set(TABLE)
        readers = {f.site for f in findings if f.id == "weights.values"} - {"logits"}
        assert {("weights.values", site) for site in readers} < failed(findings)
        assert {("weights.accounted", None), ("weights.count", None)} < failed(findings)


class TestPartsOfALayerTogether:
    """Weight and bias of the query, the key and the value, with none of the correct values."""

    @pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
    @pytest.mark.parametrize("named", ["attn.W_{}|attn.b_{}", "{}_proj.weight|{}_proj.bias"])
    @pytest.mark.parametrize("right", ["neither", "weights", "biases"])
    @pytest.mark.parametrize("seed", range(3))
    def test_names_decide(
        self, values: Values, scale: float, named: str, right: str, seed: int
    ) -> None:
        port, expected = _in_parts(values, named, "QKV" if "W_" in named else "qkv")
        rng = np.random.default_rng(seed)
        for name, (_, leaf, _) in expected.items():
            if leaf not in {"neither": "", "weights": "w", "biases": "b"}[right]:
                # As large as other parts are, which then look nearer.
                size = scale * rng.uniform(0.1, 1)
                port[name] = (rng.standard_normal(port[name].shape) * size).astype(np.float32)
        matching, _ = matched(port, values)
        found = {p.parameter: p for p in matching.placements}
        for name, (tensor, _, part) in expected.items():
            assert (found[name].tensor, found[name].part) == (tensor, part), name

    def test_a_bias_goes_where_its_weight_is(self, values: Values) -> None:
        """The weights tell, the names say something else: the biases, which are wrong, follow."""
        port, expected = _in_parts(values, "{}_proj.weight|{}_proj.bias", "vqk")
        for name, (_, leaf, _) in expected.items():
            if leaf == "b":
                port[name] = np.full_like(port[name], 3)
        matching, _ = matched(port, values)
        found = {p.parameter: (p.tensor, p.part) for p in matching.placements}
        assert all(found[name] == (tensor, part) for name, (tensor, _, part) in expected.items())


def _in_parts(
    values: Values, named: str, letters: str
) -> tuple[Values, dict[str, tuple[str, str, int]]]:
    """A port with q, k and v apart, and which name is which tensor, leaf and part."""
    port: Values = {}
    expected: dict[str, tuple[str, str, int]] = {}
    for name, value in values.items():
        if "c_attn" not in name:
            port[name] = value
            continue
        leaf = name[-1]
        for part, letter in enumerate(letters):
            own = f"blocks.{name[1]}.{named.split('|')[leaf == 'b'].format(letter)}"
            port[own] = np.ascontiguousarray(np.split(value, 3, axis=-1)[part])
            expected[own] = name, leaf, part
    return port, expected


def test_a_port_made_of_another_checkpoint_is_held_against_this_one() -> None:
    """It has placed its parameters by the other one, to which they are equal."""
    source = checkpoint()
    wrong = {**source.tensors, "h1/attn/c_attn/b": source.tensors["h1/attn/c_attn/b"] * 1.01}
    report = judge(
        "made of another",
        source,
        INPUTS,
        None,
        "cpu",
        Silent(),
        build=lambda: build("huggingface-eager", replace(source, tensors=wrong), None, "cpu"),
        laws=(),
    )
    assert ("weights.values", "h.1.attn.qkv") in failed(list(report.findings))
