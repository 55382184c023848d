"""The law of tying through copies: what is one matrix today is one after it was saved, too.

Frameworks tie when a model is built, and lose it when a model is copied, cast, stored or trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from gpt_verify.findings import Finding, Named, Status
from gpt_verify.laws.explain import explain
from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.laws.table_rows import Rows, TableRows
from gpt_verify.laws.tying.check import SITE, Tables, differences, tables_of, transposed
from gpt_verify.laws.tying.ends import ends_of
from gpt_verify.matching.placement import Placement
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import COPIES, PARAMETERS, Floats, Parameter, Port
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import tensor_table

_LAW = "tying.persistence"
#: Ways of copying that load a state into another model.
_LOADED = ("state_dict", "torch.save of the state_dict", "safetensors")
#: Without these one cause cannot be told from another.
_TELLING = ("deepcopy", "torch.save of the module")


@dataclass(frozen=True)
class _Copied:
    """What is wrong with one copy.

    Attributes:
        problems: in words.
        parted: what is wrong is that names of one matrix have come to stand for several.
    """

    problems: list[str]
    parted: bool = False


def check_persistence(subject: Subject) -> Iterable[Finding]:
    """Every copy still has one matrix at both ends, by storage and by a write; of a port whose head
    is a matrix of its own, the two still hold the same bits."""
    tables = tables_of(subject.parameters, subject.matching)
    if differences(subject.parameters, tables, subject.config):
        raise NotExamined("the head is not wte to begin with")
    compared: dict[str, _Copied] = {}
    missing: list[str] = []
    for how, copy in subject.offers[COPIES]():
        if isinstance(copy, str):
            missing.append(f"{how} ({copy})")
            continue
        try:
            compared[how] = _compare(subject, copy, tables)
        except NotExamined as reason:
            missing.append(f"{how} ({reason})")
    problems = [f"after {how}: {p}" for how, found in compared.items() for p in found.problems]
    left_out = f"; not examined: {', '.join(missing)}" if missing else ""
    if problems:
        message = "; ".join(problems) + left_out
        yield Finding(_LAW, Status.FAILED, message, SITE, named=_named(compared))
    elif compared:
        what = "equal bits" if tables.own else "one matrix at both ends"
        yield Finding(_LAW, Status.PASSED, f"{what} after {', '.join(compared)}{left_out}", SITE)
    else:
        raise NotExamined(", ".join(missing) or "the port offers no way of copying it")


@dataclass(frozen=True)
class _Parting:
    """A known way in which the two ends come apart.

    Attributes:
        fault: its name in the catalogue.
        after: the ways of copying after which they are apart.
    """

    fault: str
    after: Set[str]
    description: str = ""

    def fits(self, apart: Set[str]) -> float | None:
        return 0.0 if self.after == apart else None


def _named(compared: Mapping[str, _Copied]) -> Named | None:
    """What parts the two, where it is told by the ways of copying after which they are apart."""
    wrong = {how for how, found in compared.items() if found.problems}
    casts = {how for how in compared if how in ("to(float64)", "to(bfloat16)")}
    if not all(compared[how].parted for how in wrong):
        return None
    if not casts or not compared.keys() >= set(_TELLING):
        return None  # one cause cannot be told from another
    known = (
        _Parting("tying-by-data", casts | {"deepcopy"}),
        _Parting("tying-parted-by-casting", casts),
        _Parting("tying-parted-by-loading", {how for how in compared if how in _LOADED}),
        # All others begin with a deepcopy or end with what was pickled; that one builds it anew.
        _Parting("tying-parted-by-copying", compared.keys() - {"save_pretrained"}),
    )
    return explain(wrong, known).named


def _compare(subject: Subject, copy: Port, tables: Tables) -> _Copied:
    """What is wrong with one copy."""
    parameters = list(copy.offers()[PARAMETERS]())
    by_name = {p.name: p for p in parameters}
    names = [*tables.names, *(head.parameter for head in tables.own)]
    if absent := [name for name in names if name not in by_name]:
        raise NotExamined(f"it has no {' and no '.join(absent)}")
    if tables.own:
        return _Copied(differences(parameters, tables, subject.config))
    if problems := _storages([by_name[name] for name in tables.names]):
        return _Copied(problems, parted=True)
    wte = by_name[tables.wte.parameter]
    if wte.write is None:
        if len(tables.names) > 1:
            return _Copied([])
        raise NotExamined("one name, and its weights cannot be written to")
    weights = subject.weights
    if copy.dtype != subject.port.dtype:
        weights = DeclaredWeights(subject.weights, PRECISIONS[copy.dtype])
    trained = _trained(subject, weights, by_name)
    judged = Subject(copy, subject.checkpoint, trained or weights, subject.seed)
    layout = transposed(wte, tables, parameters, subject.config)
    # What the reference reads off the copy is not to be what was written to it.
    ends = ends_of(judged, wte, layout, restore=trained is not None, copied=True)
    if ends.unseen and not ends.problems:
        raise NotExamined(f"no write can show in {' and '.join(ends.unseen)}")
    return _Copied(ends.problems)


def _trained(
    subject: Subject, weights: DeclaredWeights, copied: Mapping[str, Parameter]
) -> DeclaredWeights | None:
    """What the copy holds under the checkpoint's names; None where that is the checkpoint's.

    After a step of training the reference needs it: what a write moves in the old weights, small
    ones in particular, it need not move in the new.
    """
    assert subject.matching is not None, "the table of laws asks for parameters"
    held: dict[str, list[tuple[Parameter, Placement]]] = {}
    for placement in sorted(subject.matching.placements, key=lambda p: p.part or 0):
        if not placement.head and placement.parameter in copied:
            places = held.setdefault(placement.tensor, [])
            places.append((copied[placement.parameter], placement))
    ((wte, placement),) = held["wte"]
    shape_VD = (subject.config.n_vocab, subject.config.n_embd)
    table = TableRows(wte, shape_VD, placement.transposed)
    # What left this one as it was has trained nothing.
    if all(np.array_equal(value, weights.rows("wte", at)) for at, value in table.tiles()):
        return None
    held_weights = _Held(held, table, subject.config, weights)
    return DeclaredWeights(held_weights, PRECISIONS[subject.port.dtype])


class _Held(Mapping[str, Floats]):
    """What a copy holds under the checkpoint's names, read when it is asked for. Of what it does
    not show, the checkpoint's."""

    def __init__(
        self,
        held: Mapping[str, Sequence[tuple[Parameter, Placement]]],
        wte: TableRows,
        config: Config,
        otherwise: Mapping[str, Floats],
    ) -> None:
        self._held, self._wte, self._otherwise = held, wte, otherwise
        self._table = tensor_table(config)

    def rows(self, name: str, rows: Rows) -> Floats:
        return self._wte.read(rows).astype(np.float32) if name == "wte" else self[name][rows]

    def __getitem__(self, name: str) -> Floats:
        parts = [
            placement.layout.to_checkpoint_layout(np.asarray(parameter.read(), np.float32))
            for parameter, placement in self._held.get(name, ())
        ]
        if sum(part.size for part in parts) != self._table[name].size:
            return self._otherwise[name]
        # Of a model of width 1 a part has one number and no axes.
        value = np.concatenate([np.atleast_1d(part) for part in parts], axis=-1)
        return value.reshape(self._table[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._otherwise)

    def __len__(self) -> int:
        return len(self._otherwise)


def _storages(named: Sequence[Parameter]) -> list[str]:
    """Names of one matrix that have come to stand for several."""
    first, *others = named
    problems = []
    for other in others:
        if other.storage == first.storage:
            continue
        alike = np.array_equal(np.ravel(first.read()), np.ravel(other.read()))
        problems.append(
            f"{other.name} is a {'copy of' if alike else 'matrix that differs from'} {first.name}"
        )
    return problems
