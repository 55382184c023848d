"""Which mistake it was that made a port's derivatives wrong.

Each rule of the backward pass that ports are known to get wrong is put in the place of the correct
one, in float64; the port made that mistake if every one of its derivatives is what comes out. What
is wrong in some tensors alone, or by one factor from some operation back, is read off the port's
numbers. A name is given where one fits and no other does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import erf, isfinite, pi, sqrt

import numpy as np

from gpt_verify.graph.back import Array, Back, Pulled, Rule, Step, joined, mean, normed
from gpt_verify.graph.backward import Backward, Read
from gpt_verify.graph.cascade import LIMIT_FLOORS
from gpt_verify.graph.operations.add import back as add_back
from gpt_verify.graph.operations.gelu import slope as gelu_slope
from gpt_verify.graph.operations.layer_norm import back as norm_back
from gpt_verify.graph.operations.linear import back as linear_back
from gpt_verify.graph.operations.mix import back as mix_back
from gpt_verify.graph.operations.pattern import softmax_back
from gpt_verify.laws.explain import explain
from gpt_verify.laws.gradient.comparison import Comparison
from gpt_verify.reference.config import Config
from gpt_verify.reference.ops import softmax
from gpt_verify.sites import sites

#: A mistake counts as seen where it would be found at four times the noise, in so many tensors: one
#: number can be hit by chance.
_CLEAR, _FEWEST = 4.0, 3
#: Largest elements of two tensors that differ by less are one number.
_SAME = 1e-6
_NORMS = ("ln_1", "ln_2", "ln_f")
_LINEAR = ("attn.qkv", "attn.out", "mlp.pre", "mlp.out")


def _times(slope: Callable[[Array], Array]) -> Rule:
    """An activation with this slope."""
    return lambda step, d: Back((d * slope(step.x),))


def _slope_of_erf(x: Array) -> Array:
    """d x Φ(x) / d x: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2."""
    below = 0.5 * (1 + np.vectorize(erf, otypes=[np.float64])(x / sqrt(2)))
    value: Array = below + x * np.exp(-(x**2) / 2) / sqrt(2 * pi)
    return value


def _slope_of_sigmoid(x: Array, c: float) -> Array:
    """d x σ(c x) / d x."""
    s = 1.0 / (1.0 + np.exp(-c * x))
    value: Array = s + c * x * s * (1.0 - s)
    return value


def _norm(onward: Callable[[Array, Array, Array], Array]) -> Rule:
    """``onward(d, gain, deviation)`` is what goes back to the input of a layer norm."""

    def rule(step: Step, d: Array) -> Back:
        _, deviation_T1 = normed(step.x)
        return replace(norm_back(step, d), inputs=(onward(d, step.own(0), deviation_T1),))

    return rule


def _norm_without_gain(step: Step, d: Array) -> Back:
    normed_TD, deviation_T1 = normed(step.x)
    x_TD = (d - mean(d) - normed_TD * mean(d * normed_TD)) / deviation_T1
    return replace(norm_back(step, d), inputs=(x_TD,))


def _averaged(step: Step, d: Array) -> Back:
    right = norm_back(step, d)
    (x_TD,) = right.inputs
    return replace(right, inputs=(np.broadcast_to(x_TD.mean(axis=0), x_TD.shape),))


def _kept(rule: Rule, *factors: float) -> Rule:
    """The correct rule, of whose inputs those with a factor of 0 get nothing."""

    def kept(step: Step, d: Array) -> Back:
        back = rule(step, d)
        return replace(back, inputs=tuple(f * x for f, x in zip(factors, back.inputs, strict=True)))

    return kept


def _scores(query: float, key: float, unscaled: bool = False) -> Rule:
    def rule(step: Step, d: Array) -> Back:
        q_HTK, k_HSK, _ = step.heads()
        scale = 1.0 if unscaled else 1 / np.sqrt(q_HTK.shape[-1])
        of_q, of_k = d @ k_HSK, d.transpose(0, 2, 1) @ q_HTK
        return Back((joined(query * scale * of_q, key * scale * of_k, None),))

    return rule


def _open(step: Step) -> Array:
    """The pattern without a mask: of the site itself, or of the one before it."""
    scores = step.site.inputs[0].replace("attn.pattern", "attn.scores")
    return np.asarray(softmax(step.values[scores]), np.float64)


def _bias_averaged(step: Step, d: Array) -> Back:
    matrix, bias = linear_back(step, d).tensors
    averaged = Pulled(None, bias.columns / step.positions)
    return replace(linear_back(step, d), tensors=(matrix, averaged))


_ADD = add_back
_THROUGH_OPEN: Rule = lambda step, d: Back((softmax_back(_open(step), d),))  # noqa: E731

#: Name → kind of site → the rule that it has in place of the correct one.
MISTAKES: Mapping[str, Mapping[str, Rule]] = {
    "gelu-straight-through": {"mlp.act": _times(np.ones_like)},
    "gelu-erf": {"mlp.act": _times(_slope_of_erf)},
    "gelu-exponent": {"mlp.act": _times(lambda x: gelu_slope(x, cubic=1.0))},
    "norm-statistics": dict.fromkeys(_NORMS, _norm(lambda d, g, s: d * g / s)),
    "norm-deviation": dict.fromkeys(_NORMS, _norm(lambda d, g, s: (d * g - mean(d * g)) / s)),
    "norm-gain": dict.fromkeys(_NORMS, _norm_without_gain),
    "averaged": dict.fromkeys(_NORMS, _averaged),
    "attention-detached": {"resid_mid": _kept(_ADD, 1, 0)},
    "mlp-detached": {"resid_post": _kept(_ADD, 1, 0)},
    "skips-detached": {"resid_mid": _kept(_ADD, 0, 1), "resid_post": _kept(_ADD, 0, 1)},
    "blocks-apart": {"resid_mid": _kept(_ADD, 0, 1), "ln_1": _kept(norm_back, 0)},
    "pattern-detached": {"attn.mix": _kept(mix_back, 0, 1)},
    "query-detached": {"attn.scores": _scores(0, 1)},
    "key-detached": {"attn.scores": _scores(1, 0)},
    "value-detached": {"attn.mix": _kept(mix_back, 1, 0)},
    "scores-unscaled": {"attn.scores": _scores(1, 1, unscaled=True)},
    "softmax-diagonal": {"attn.pattern": lambda step, d: Back((step.value * d,))},
    "mask-straight-through": {"attn.pattern": _THROUGH_OPEN},
    "mask-missing": {
        "attn.pattern": _THROUGH_OPEN,
        "attn.mix": lambda step, d: mix_back(step, d, _open(step)),
    },
    "bias-averaged": dict.fromkeys(_LINEAR, _bias_averaged),
}
#: The same of what is in no catalogue: the slope of another activation than the one that is run.
OTHERS: Mapping[str, Mapping[str, Rule]] = {
    "of-sigmoid-gelu": {"mlp.act": _times(lambda x: _slope_of_sigmoid(x, 1.702))},
    "of-silu": {"mlp.act": _times(lambda x: _slope_of_sigmoid(x, 1.0))},
    "of-relu": {"mlp.act": _times(lambda x: np.asarray(x > 0, x.dtype))},
    "of-tanh": {"mlp.act": _times(lambda x: 1.0 - np.tanh(x) ** 2)},
}
#: Name → sentence that completes "the port …", of those.
NAMES = {
    "gradient-clipped": "clips the elements of a gradient",
    "gradient-cut": "lets nothing of the gradient past some operation, back to the tokens",
    "gradient-lookup-overwrites": "keeps one gradient of a row that is looked up several times",
    "gradient-of-sigmoid-gelu": "takes the derivative of x sigmoid(1.702 x) for that of GELU",
    "gradient-of-silu": "takes the derivative of x sigmoid(x) for that of GELU",
    "gradient-of-relu": "takes the derivative of ReLU for that of GELU",
    "gradient-of-tanh": "takes the derivative of tanh for that of GELU",
}
#: Those that have several rules at once; of the others each rule is a mistake by itself as well.
_TOGETHER = ("blocks-apart", "mask-missing")


@dataclass(frozen=True)
class _Rule:
    """A mistake, by its name among those that are tried here."""

    rule: str
    description: str = ""

    @property
    def fault(self) -> str:
        return f"gradient-{self.rule}"

    def fits(self, shown: Mapping[str, int]) -> float | None:
        """Every derivative is what it gives; ``shown`` says of which rules that is so."""
        return 0.0 if self.rule in shown else None


@dataclass(frozen=True)
class Evidence:
    """What a port's derivatives are.

    Attributes:
        config: sizes.
        compared: each tensor in each arithmetic, in the order of the forward pass.
        backward: the batch that they were taken on, when it is needed.
    """

    config: Config
    compared: Sequence[Comparison]
    backward: Callable[[], Backward]

    def name(self) -> str | None:
        """The one mistake that all of it fits; None where none does, or several."""
        with np.errstate(all="ignore"):  # what is not finite fits nothing
            shown = dict.fromkeys((n for n, fits in READ_OFF.items() if fits(self)), _FEWEST)
            for name, moved in self._by_rule():
                shown[name] = max(moved, shown.get(name, 0))
        # One that fits by chance, or because it changes little here, is no name, and denies others.
        found = explain(shown, map(_Rule, (*READ_OFF, *MISTAKES, *OTHERS)))
        if found.by and shown[found.by.rule] >= _FEWEST:
            return found.by.fault
        return "gradient-cut" if _cut(self) else None

    @cached_property
    def wrong(self) -> list[Comparison]:
        return [c for c in self.compared if c.wrong]

    @cached_property
    def behind(self) -> list[Comparison]:
        """All that lies in the backward pass from the first wrong one on, that one included."""
        order = list(sites(self.config))
        first = max(order.index(c.site) for c in self.wrong)
        return [c for c in self.compared if order.index(c.site) <= first]

    @property
    def of_tables(self) -> bool:
        """An end of wte is among what is wrong: alone, it is a matter of tying."""
        return any(c.direction.tensor == "wte" for c in self.wrong)

    def _by_rule(self) -> Iterator[tuple[str, int]]:
        """Mistakes that fit, and in how many tensors they show. Their rules know the wiring of
        GPT-2 and GPT alone."""
        if self.config.own is not None:
            return
        for name, kinds in {**MISTAKES, **OTHERS}.items():
            versions = [kinds]
            if name not in _TOGETHER and len(kinds) > 1:
                versions += [{kind: rule} for kind, rule in kinds.items()]
            for version in versions:
                for layers in self._layers():
                    rules = _at(version, layers, self.config)
                    if rules and (moved := self._shown(rules)) is not None:
                        yield name, moved

    def _layers(self) -> Iterator[tuple[int, ...]]:
        """All, and those in which the first wrong one lies in the backward pass, or one that only
        what enters it is wrong of."""
        last = max((sites(self.config)[c.site].layer for c in self.wrong), key=_place)
        every = tuple(range(self.config.n_layer))
        yield every
        if len(every) > 1:
            near = -1 if last is None else last
            yield from ((layer,) for layer in (near, near + 1) if layer in every)

    def _shown(self, rules: Mapping[str, Rule]) -> int | None:
        """How many derivatives these rules change clearly; None where one is not what they give."""
        backward = self.backward()
        clear: set[str] = set()
        right = {read.site: read for read in backward.right}
        waiting: dict[str, list[Comparison]] = {}
        for c in self.compared:
            waiting.setdefault(c.direction.sites[0], []).append(c)
        for read in backward.walk(rules):
            for c in waiting.pop(read.site, ()):
                moved = read.along(c.direction) - right[read.site].along(c.direction)
                if not _is(c, c.expected + moved, _larger(read, right[read.site])):
                    return None
                if abs(moved) > _CLEAR * LIMIT_FLOORS * c.error:
                    clear.add(c.what)
        untouched = [c for left in waiting.values() for c in left]
        return None if any(c.wrong for c in untouched) else len(clear)


def _place(layer: int | None) -> int:
    """Of wrong sites that lie in no block, those before the first come last in the backward
    pass."""
    return -1 if layer is None else layer


def _at(kinds: Mapping[str, Rule], layers: Sequence[int], config: Config) -> dict[str, Rule]:
    table = sites(config)
    rules = {f"h.{layer}.{kind}": rule for layer in layers for kind, rule in kinds.items()}
    if "ln_f" in kinds and len(layers) == config.n_layer:
        rules["ln_f"] = kinds["ln_f"]
    return {site: rule for site, rule in rules.items() if site in table}


def _is(c: Comparison, expected: float, larger: float = 1.0) -> bool:
    """Whether the port's is this, to within noise that grows with what comes back."""
    return abs(c.got - expected) <= LIMIT_FLOORS * c.error * max(1.0, larger)


def _larger(read: Read, right: Read) -> float:
    return read.size / right.size if right.size else 1.0


def _frozen(evidence: Evidence) -> bool:
    """Tensors of which each gets nothing at all, and everything else is correct."""
    if evidence.of_tables:
        return False
    return all(c.got == 0 and c.idle == (c.direction.tensor,) for c in evidence.wrong)


def _counted_twice(evidence: Evidence) -> bool:
    """Some get twice what they should, and something that is read before them is right."""
    if evidence.of_tables or not all(_is(c, 2 * c.expected, 2.0) for c in evidence.wrong):
        return False
    precise = [c for c in evidence.wrong if c.factor == 2]
    once = [c for c in evidence.behind if not _is(c, 2 * c.expected, 2.0)]
    return bool(precise) and bool(once)


def _scaled(evidence: Evidence) -> bool:
    """One factor, from some operation back to the tokens."""
    told = min(evidence.wrong, key=lambda c: c.error / abs(c.expected) if c.expected else np.inf)
    if not (isfinite(told.got) and told.expected and told.got):
        return False
    factor, uncertain = told.got / told.expected, told.error / abs(told.expected)

    def fits(c: Comparison) -> bool:
        off = abs(c.got - factor * c.expected)
        error = max(1.0, abs(factor)) * (c.error + uncertain * abs(c.expected))
        return off <= LIMIT_FLOORS * error

    moves = abs(factor - 1)
    clear = {
        c.what for c in evidence.behind if moves * abs(c.expected) > _CLEAR * LIMIT_FLOORS * c.error
    }
    # What noise hides may be right, and only some tensors have the factor.
    wrong = {c.what for c in evidence.wrong}
    seen = wrong.issuperset(c.what for c in evidence.behind if c.visible)
    return seen and len(clear) >= _FEWEST and all(fits(c) for c in evidence.behind)


def _cut(evidence: Evidence) -> bool:
    """From some operation back to the tokens nothing gets anything, and all else is correct; a
    fault of the catalogue says more, where one fits."""
    behind = [c for c in evidence.behind if c.visible]
    several = len({c.what for c in behind}) > 1
    return several and all(c.got == 0 and c.idle == (c.direction.tensor,) for c in behind)


def _clipped(evidence: Evidence) -> bool:
    """The largest element of several parameters is one number, which none is larger than. The ends
    of wte are none: what reaches one of them is not what its parameter keeps."""
    of = evidence.wrong[0].arithmetic
    parameters = [
        c for c in evidence.compared if c.arithmetic == of and c.direction.tensor != "wte"
    ]
    most = max((c.largest for c in parameters), default=0.0)
    held = {c.what for c in parameters if c.wrong and c.largest >= most * (1 - _SAME)}
    return most > 0 and len(held) >= _FEWEST


def _overwritten(evidence: Evidence) -> bool:
    """Of a row that is looked up several times, one gradient is kept, the last or the first, where
    all should be added."""
    embed = next(iter(sites(evidence.config)))
    ends = [c for c in evidence.compared if embed in c.direction.sites]
    if any(c.wrong and c not in ends for c in evidence.compared):
        return False
    read = next(r for r in evidence.backward().right if r.site == embed)
    for names in (
        {c.direction.tensor for c in ends if c.wrong},
        {c.direction.tensor for c in ends},
    ):
        for last in (True, False):
            kept = {name: _kept_once(read.tensors[name], last) for name in names}
            expected = {
                c: c.expected + (_moved(read, kept, c) if c.direction.tensor in kept else 0.0)
                for c in ends
            }
            if all(_is(c, value) for c, value in expected.items()):
                return True
    return False


def _kept_once(pulled: Sequence[Pulled], last: bool) -> list[Pulled]:
    """Of each row of a table the last place, or the first, of the whole batch alone."""
    ids = [p.rows for p in pulled if p.rows is not None]
    every = np.concatenate(ids)
    order = every[::-1] if last else every
    first = np.unique(order, return_index=True)[1]
    keeps = np.zeros(len(every), np.bool_)
    keeps[len(every) - 1 - first if last else first] = True
    parts = np.split(keeps, np.cumsum([len(rows) for rows in ids])[:-1])
    return [
        Pulled(p.rows, p.columns * keep[:, None]) for p, keep in zip(pulled, parts, strict=True)
    ]


def _moved(read: Read, kept: Mapping[str, Sequence[Pulled]], c: Comparison) -> float:
    """By how much a derivative then differs."""
    left = sum(pulled.along(c.direction) for pulled in kept[c.direction.tensor])
    return left - read.along(c.direction)


#: What is told by the port's numbers alone.
READ_OFF: Mapping[str, Callable[[Evidence], bool]] = {
    "frozen": _frozen,
    "counted-twice": _counted_twice,
    "scaled": _scaled,
    "clipped": _clipped,
    "lookup-overwrites": _overwritten,
}
