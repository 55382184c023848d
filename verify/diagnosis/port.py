"""All failures of one port, explained together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis import own_head
from gpt_verify.diagnosis.cause import causes
from gpt_verify.diagnosis.depends import depends
from gpt_verify.diagnosis.dropout import dropouts
from gpt_verify.diagnosis.forms.form import Form
from gpt_verify.diagnosis.forms.table import FORMS, OF_SITES
from gpt_verify.diagnosis.inputs import only_on_some
from gpt_verify.diagnosis.layers import misled, sorted_wrongly
from gpt_verify.diagnosis.logits import filter_logits
from gpt_verify.diagnosis.sites import SiteDiagnosis
from gpt_verify.diagnosis.tensors import Difference, explain
from gpt_verify.explanation import UNKNOWN_DAMAGE, Candidate, Explanation
from gpt_verify.findings import END_TO_END, Cause, Finding, Status, concerns
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.numerics.precision import FLOAT64
from gpt_verify.port import ACTIVATIONS, FLOAT64_COPY
from gpt_verify.reference.config import Config
from gpt_verify.reference.weights import split_qkv
from gpt_verify.sites import sites

if TYPE_CHECKING:
    from gpt_verify.laws.activations.check import SiteComparison
    from gpt_verify.laws.subject import Subject
    from gpt_verify.matching.match import Placement
    from gpt_verify.port import Port

Array = NDArray[np.floating]
Tokens = NDArray[np.integer]

#: How often a port is run again to find what explains it, on the inputs that show it best, after
#: one run on an input of about this many tokens.
RUNS, LONG = 3, 64


class Diagnosis:
    """What explains the failures of one port.

    Attributes:
        explanations: of each site and each tensor that failed by itself.
        causes: the faults that explain most of them.
        in_logits: what was found in the logits of a port that shows nothing else, or None.
    """

    def __init__(
        self,
        explanations: Sequence[Explanation] = (),
        findings: Sequence[Finding] = (),
        others: Sequence[Cause] = (),
        config: Config | None = None,
        in_logits: Finding | None = None,
    ) -> None:
        self.in_logits = in_logits
        failed = [f for f in findings if f.status is Status.FAILED]
        if any(f.id == "determinism" or (concerns("batch", f.id) and f.fault) for f in failed):
            # What is different at every call, or is known to hang on the batch, has no form that
            # could be read off one row of one call.
            explanations = [_without_forms(explanation) for explanation in explanations]
        self.explanations = {explanation.where: explanation for explanation in explanations}
        # A law that knows its own faults says which one it was; what that explains needs no other.
        named: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for finding in findings:
            if finding.status is Status.FAILED and finding.fault is not None:
                named.setdefault(finding.fault, []).append(finding.id)
                if finding.named is not None and finding.fault not in CATALOGUE:
                    words.setdefault(finding.fault, finding.named.words)
        named = _without_entailed(named)
        of_laws: dict[str, list[Explanation]] = {fault: [] for fault in named}
        left: list[Explanation] = []
        for explanation in explanations:
            same = next((c.fault for c in explanation.accepted if c.fault in named), None)
            (left if same is None else of_laws[same]).append(explanation)
        right = _right(findings, config)
        judged = right | {f.site for f in failed if f.site}
        denied = partial(_denied, right, judged, config)
        found = _taking(causes(left, denied, partial(_elsewhere, right, config)), named)
        explained = {site for cause in found for site in cause.sites}
        self.causes: list[Cause] = [
            *found,
            *dropouts(findings, explained, sites(config) if config is not None else {}),
            *others,
            *(
                Cause(
                    fault,
                    words.get(fault, ""),
                    sites=tuple(e.where for e in of_laws[fault] if not e.of_tensor),
                    tensors=tuple(e.where for e in of_laws[fault] if e.of_tensor),
                    laws=tuple(laws),
                )
                for fault, laws in named.items()
            ),
        ] or depends(findings)
        # Of several that explain a site the one comes first that was chosen for the whole.
        chosen = {cause.fault for cause in self.causes}
        for where, explanation in self.explanations.items():
            first = sorted(explanation.accepted, key=lambda c: chosen.isdisjoint(c.faults))
            self.explanations[where] = replace(explanation, accepted=tuple(first))

    def annotated(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings, each failure with what explains it; that of the logits with what was
        looked for in them, which is a finding of its own where the logits pass."""
        found = [self._annotated(finding) for finding in findings]
        if self.in_logits is None:
            return found
        for i, finding in enumerate(found):
            if finding.id == "logits" and finding.status is Status.FAILED:
                found[i] = finding.explained_by(self.in_logits)
                return found
        return [*found, self.in_logits]

    def _annotated(self, finding: Finding) -> Finding:
        if finding.status is not Status.FAILED or finding.site is None:
            return finding
        if finding.id == "weights.values":
            tensors = [name for name in finding.tensors if name in self.explanations]
            words = "; ".join(f"{name}: {self.explanations[name]}" for name in tensors)
        elif finding.id in ("architecture", "activations.local", "logits"):
            words = str(self.explanations.get(finding.site, ""))
        else:
            words = ""
        return finding.explained(words) if words else finding


def _without_entailed(named: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Fault → laws that name it, where what only follows from a fault goes with that."""
    left = {fault: list(where) for fault, where in named.items()}
    for fault in named:
        for other in CATALOGUE[fault].entails if fault in CATALOGUE else ():
            left[fault] += left.pop(other, [])
    return left


def _taking(found: Sequence[Cause], named: dict[str, list[str]]) -> list[Cause]:
    """The causes that were found at sites; laws that name what only follows from one go with it,
    and are taken out of ``named``."""
    made = []
    for cause in found:
        entailed = CATALOGUE[cause.fault].entails if cause.fault in CATALOGUE else ()
        laws = [law for other in entailed for law in named.pop(other, ())]
        made.append(replace(cause, laws=(*cause.laws, *laws)) if laws else cause)
    return made


def _right(findings: Sequence[Finding], config: Config | None) -> set[str]:
    """Sites that were judged and are right, in float64 where they were judged in that; and what is
    hidden between them, which was judged with them."""
    for law in ("architecture", "activations.local"):
        statuses = {f.site: f.status for f in findings if f.id == law and f.site}
        if Status.PASSED in statuses.values():
            right = {site for site, status in statuses.items() if status is Status.PASSED}
            return right | (_hidden(right, findings, config) if config is not None else set())
    return set()


def _hidden(right: set[str], findings: Sequence[Finding], config: Config) -> set[str]:
    """Sites that the port does not show, through which right ones were computed from what it
    shows."""
    of_sites = ("architecture", "activations.local", "activations.cascaded")
    judged = (f for f in findings if f.id in of_sites and f.status is not Status.NOT_EXAMINED)
    shown, found, left = {f.site for f in judged}, set[str](), list(right)
    while left:
        site = sites(config).get(left.pop())
        inputs = {*site.inputs} - shown - found if site is not None else set()
        found |= inputs
        left += inputs
    return found


def _without_forms(explanation: Explanation) -> Explanation:
    known = tuple(c for c in explanation.accepted if not FORMS.keys() & set(c.faults))
    return replace(explanation, accepted=known)


def _denied(
    right: set[str], judged: set[str], config: Config | None, name: str, where: Collection[str]
) -> int:
    """How many sites are correct that a fault changes, in the layers where it was found; in all, of
    a fault that a model has in all of them or in none. Of a site that the port does not show, those
    that read it count.

    Of a fault of the weights nothing is expected: any tensor may be damaged alone.
    """
    fault = CATALOGUE.get(name)
    if fault is None or not fault.sites.operations or config is None:
        return 0
    at = [site for name in where if (site := sites(config).get(name))]
    found = sorted({site.layer for site in at if site.layer is not None})
    changed = fault.overrides(config, None if fault.of_all_layers else found)
    # What was masked early is right afterwards.
    early = {site.layer for site in at if site.kind in fault.sites.early}
    changed = {name: act for name, act in changed.items() if sites(config)[name].layer not in early}
    seen = set(changed) | _readers(set(changed) - judged, judged, config)
    return len(right.intersection(seen))


def _readers(hidden: set[str], judged: set[str], config: Config) -> set[str]:
    """The first judged sites that read these, through others that are hidden too."""
    found: set[str] = set()
    for site in sites(config).values():
        if not hidden.isdisjoint(site.inputs):
            (found if site.name in judged else hidden).add(site.name)
    return found


def _elsewhere(right: set[str], config: Config | None, name: str, where: Collection[str]) -> int:
    """How many sites are correct that a fault would change if it were in all layers."""
    fault = CATALOGUE.get(name)
    if fault is None or not fault.sites.operations or config is None:
        return 0
    return len(right.intersection(fault.overrides(config)))


def diagnose(
    subject: Subject, comparisons: Mapping[str, SiteComparison], findings: Sequence[Finding]
) -> Diagnosis:
    """Explain every site and every tensor that failed by itself; of a port that shows nothing but
    logits, those.

    Args:
        subject: the port.
        comparisons: ``architecture`` and ``activations.local``, where they were made.
        findings: of the whole run.
    """
    tensors, own = damaged_tensors(subject)
    from_logits: list[Cause] = []
    in_logits = None
    failed = {
        law: [f.site for f in findings if f.id == law and f.status is Status.FAILED and f.site]
        for law in comparisons
    }
    if _only_logits_tell(findings, failed):
        in_logits, from_logits = filter_logits(subject)
    found: dict[str, Explanation] = {}
    for law, comparison in comparisons.items():
        # What the float64 run has explained need not be explained again, with less to see it by.
        # What is computed in the wrong place has other inputs than those of its name.
        known = found.keys() | comparison.late.keys() | set(misled(comparison, subject.config))
        left = [site for site in failed[law] if site not in known]
        found |= _explain_sites(subject, comparison, left, law, own, tensors)
    others = [*from_logits, *sorted_wrongly(comparisons, subject.config)]
    explanations = [*tensors.values(), *found.values()]
    return Diagnosis(explanations, findings, others, subject.config, in_logits)


def _only_logits_tell(findings: Sequence[Finding], failed: Mapping[str, Sequence[str]]) -> bool:
    """The logits were compared, and no site was; or they are wrong, and no site that was shown is.

    Args:
        failed: the law of each comparison of sites that was made → the sites that failed it.
    """
    of_logits = next((f for f in findings if f.id == END_TO_END and f.score is not None), None)
    if of_logits is None:
        return False
    return not failed or (of_logits.status is Status.FAILED and not any(failed.values()))


def _explain_sites(
    subject: Subject,
    comparison: SiteComparison,
    failed: Sequence[str],
    law: str,
    own: Mapping[str, Array],
    tensors: Mapping[str, Explanation],
) -> dict[str, Explanation]:
    found: dict[str, Explanation] = {}
    if not (given := comparison.inputs):
        return found
    in_float64 = law == "architecture"
    faults = faults_of(subject.config)
    damage = {name: e.best or Candidate(UNKNOWN_DAMAGE, 0.0) for name, e in tensors.items()}

    def explained(
        tokens: Tokens, row: int, at: Collection[str], names: Collection[str], forms: Sequence[Form]
    ) -> dict[str, Explanation]:
        precision = FLOAT64 if in_float64 else subject.precision
        tried = [faults[name] for name in names]
        diagnosis = SiteDiagnosis(
            *(subject.config, subject.weights, precision, tokens[row], row, at, tried, own, damage),
            forms,
        )
        # A port may raise on one of the inputs, which the law that asked has said.
        with suppress(Exception), _run(subject.port, in_float64) as port:
            port.offers()[ACTIVATIONS](tokens, diagnosis)
        return diagnosis.explanations

    telling = max(given, key=lambda tokens: (min(tokens.shape[1], LONG), -tokens.size))
    lengths: dict[str, int] = {}
    for run in range(1 + RUNS):
        left = [site for site in failed if site not in found and comparison.local[site].worst]
        if not left:
            break
        worst = comparison.local[left[0]].worst
        assert worst is not None
        # A long sequence tells more faults apart than a short one, on which many are the same.
        at, row = worst.index[:2]
        tokens, row = (telling, 0) if run == 0 else (given[at], row)
        # A site whose failure does not show on this input is tried on its own worst one.
        new = {
            site: explanation
            for site, explanation in explained(tokens, row, left, faults, OF_SITES).items()
            if explanation.before > explanation.limit or (run and site == left[0])
        }
        found |= _true_of_rows(new, tokens, row, explained)
        lengths |= {site: tokens.shape[1] for site in new}
        if run and left[0] not in found:
            break

    def tried(
        tokens: Tokens, at: Collection[str], names: Collection[str]
    ) -> dict[str, Explanation]:
        return explained(tokens, 0, at, names, ())

    longest = max(LONG, min(tokens.shape[1] for tokens in given))
    return found | only_on_some(found, lengths, given, longest, tried)


def _true_of_rows(
    found: Mapping[str, Explanation],
    tokens: Tokens,
    row: int,
    explained: Callable[..., dict[str, Explanation]],
) -> dict[str, Explanation]:
    """The explanations, without forms that were read off one row of a batch and do not explain
    another row in which the same site is wrong: there the rows have to do with each other."""
    others = [other for other in (len(tokens) - 1, 0) if other != row]
    formed = {
        site: {name for c in e.accepted for name in FORMS.keys() & set(c.faults)}
        for site, e in found.items()
    }
    formed = {site: names for site, names in formed.items() if names}
    if not others or not formed:
        return dict(found)
    tried = [form for form in OF_SITES if any(form.name in names for names in formed.values())]
    left = dict(found)
    for site, other in explained(tokens, others[0], list(formed), (), tried).items():
        wrong = other.before > other.limit
        if wrong and not any(formed[site] & set(c.faults) for c in other.accepted):
            left[site] = _without_forms(found[site])
    return left


def _run(port: Port, in_float64: bool) -> AbstractContextManager[Port]:
    return port.offers()[FLOAT64_COPY]() if in_float64 else nullcontext(port)


def damaged_tensors(subject: Subject) -> tuple[dict[str, Explanation], dict[str, Array]]:
    """Explanations of the tensors that differ, and what the port has in their place."""
    if subject.matching is None:
        return {}, {}
    read = {parameter.name: parameter.read for parameter in subject.parameters}
    explanations: dict[str, Explanation] = {}
    own: dict[str, Array] = {}
    for placement in subject.matching.placements:
        if placement.exact:
            continue
        expected = _in_checkpoint_layout(placement, subject, placement.tensor)
        got = placement.layout.to_checkpoint_layout(read[placement.parameter]()).reshape(
            expected.shape
        )
        name = placement.stands_for
        explanation = explain(
            Difference(
                placement.tensor,
                got,
                expected,
                lambda other, p=placement: _in_checkpoint_layout(p, subject, other),  # type: ignore[misc]
                subject.config,
            )
        )
        if placement.head:
            explanation = own_head.named(explanation, got, expected)
        explanations[name] = replace(explanation, where=name)
        _put(own, name, placement, got, subject)
    return explanations, own


def _in_checkpoint_layout(placement: Placement, subject: Subject, tensor: str) -> Array:
    """A tensor, or the same part of it, ``[in, out]``."""
    return placement.of(subject.weights[tensor])


def _put(
    own: dict[str, Array], name: str, placement: Placement, got: Array, subject: Subject
) -> None:
    if placement.part is None:
        own[name] = got
        return
    whole = own.setdefault(name, np.array(subject.weights[placement.tensor]))
    split_qkv(whole)[placement.part][...] = got
