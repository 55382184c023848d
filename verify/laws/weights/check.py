"""The laws of weights: the same tensors, each once, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.findings import Finding, Status
from gpt_verify.laws.worst import Worst
from gpt_verify.matching.folding import Folding
from gpt_verify.matching.match import Matching, Placement
from gpt_verify.numerics.weights import DeclaredWeights
from gpt_verify.port import Parameter
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import parameter_count, tensor_table
from gpt_verify.sites import sites
from gpt_verify.text import listing

Array = NDArray[np.floating]


def check_weights(
    parameters: Sequence[Parameter],
    matching: Matching,
    config: Config,
    weights: DeclaredWeights,
    folding: Folding | None = None,
) -> list[Finding]:
    """Every tensor in its place with its value, every parameter accounted for, and their number.

    Args:
        parameters: of the port.
        matching: which of them is which tensor.
        config, weights: what they were matched to.
        folding: what became of the layer norms, where they are folded.
    """
    if folding is not None:
        matching = replace(matching, missing=(*matching.missing, *folding.missing))
        parameters = [p for p in parameters if p.name != folding.head_bias]
    by_name = {parameter.name: parameter for parameter in parameters}
    own_head = any(placement.head for placement in matching.placements)
    differences: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    for placement in matching.placements:
        if placement.exact:
            continue
        difference = _difference(placement, by_name, weights)
        for at in ["logits"] if placement.head else _readers(placement.tensor, config, own_head):
            differences.setdefault(at, []).append(difference)
            wrong.setdefault(at, []).append(placement.stands_for)
    for missing in matching.missing:
        tensor = missing.split(" ")[0]
        for at in _readers(tensor, config, own_head):
            differences.setdefault(at, []).append(f"{missing} is nowhere in the port")
            wrong.setdefault(at, []).append(tensor)

    found = []
    for site in sites(config).values():
        if not site.weights:
            continue
        if problems := differences.get(site.name):
            tensors = tuple(dict.fromkeys(wrong[site.name]))
            message = "; ".join(problems)
            found.append(
                Finding("weights.values", Status.FAILED, message, site.name, tensors=tensors)
            )
        else:
            message = "; ".join(_as_said(site.weights, folding))
            found.append(Finding("weights.values", Status.PASSED, message, site.name))
    found.append(_accounted(matching))
    found.append(_count(parameters, matching, config, folding))
    return found


def _as_said(names: Sequence[str], folding: Folding | None) -> Iterator[str]:
    """In which way tensors are right."""
    words = {} if folding is None else folding.notes
    said = [words.get(name, "equal bit for bit") for name in names]
    for way in dict.fromkeys(said):
        yield f"{', '.join(n for n, w in zip(names, said, strict=True) if w == way)}: {way}"


def _difference(
    placement: Placement, by_name: dict[str, Parameter], weights: DeclaredWeights
) -> str:
    """Where the two differ most, in the grammar of all messages."""
    got = by_name[placement.parameter].read()
    got = got.reshape([n for n in got.shape if n != 1])
    expected = placement.expected(weights).reshape(got.shape)
    worst = Worst()
    worst.see(got, expected)
    return (
        f"{placement.parameter}{worst} (it is {placement.tensor}"
        f"{', the head' if placement.head else ''}; {worst.count})"
    )


def _accounted(matching: Matching) -> Finding:
    law = "weights.accounted"
    if not matching.surplus and not matching.missing:
        n = len(matching.placements)
        message = f"{n} parameters, each placed once; no tensor left over"
        if matching.padding:
            message += f"; padding of the vocabulary: {listing(matching.padding)}"
        return Finding(law, Status.PASSED, message)
    parts = []
    if matching.surplus:
        parts.append(f"no tensor of the checkpoint for {listing(matching.surplus)}")
    if matching.missing:
        parts.append(f"no parameter for {listing(matching.missing)}")
    details = {"surplus": list(matching.surplus), "missing": list(matching.missing)}
    return Finding(law, Status.FAILED, "; ".join(parts), details=details)


def _count(
    parameters: Sequence[Parameter],
    matching: Matching,
    config: Config,
    folding: Folding | None = None,
) -> Finding:
    """Memory that is shared counts once. So does a second wte that is equal to the bit: that it is
    there is what the law of tying refutes, and no number is wrong."""
    trained = [p for p in parameters if not p.padding]
    sizes = {p.storage: int(np.prod(p.shape, dtype=np.int64)) for p in trained}
    got, expected = sum(sizes.values()), parameter_count(config)
    notes = []
    if folding is not None:
        table = tensor_table(config)
        expected -= sum(table[name].size for name in folding.gone)
        notes.append(f"{len(folding.norms)} folded layer norms are not counted")
    for head in (p for p in matching.placements if p.head):
        if head.exact:
            got -= tensor_table(config)["wte"].size
            notes.append(f"{head.parameter}, a second wte equal bit for bit, is not counted")
        else:
            notes.append(f"{head.parameter}, a head of its own, is counted")
    status = Status.PASSED if got == expected else Status.FAILED
    message = "; ".join([f"{got:,} parameters, should be {expected:,}", *notes])
    return Finding("weights.count", status, message)


def _readers(tensor: str, config: Config, own_head: bool) -> list[str]:
    """The sites that read a tensor; the logits read a head of their own where there is one."""
    readers = [site.name for site in sites(config).values() if tensor in site.weights]
    return [name for name in readers if not (own_head and name == "logits")]
