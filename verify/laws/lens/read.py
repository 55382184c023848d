"""The lenses of a port, read once: what it shows of its stream, and what it says itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.laws.subject import NotExamined, Subject
from gpt_verify.lens.decoders import LnF
from gpt_verify.lens.states import port_states, state_sites
from gpt_verify.numerics.precision import FLOAT64, Precision
from gpt_verify.port import LENS

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class PortLens:
    """One lens of a port.

    Attributes:
        name: whose, in words.
        sites: the states that it reads; the first and the last one are among them.
        precision: in which its norm and its head compute.
        decoded_NTD: what wte is multiplied with, or
        logits_NTV: its own logits.
    """

    name: str
    sites: tuple[str, ...]
    precision: Precision
    decoded_NTD: Floats | None = None
    logits_NTV: Floats | None = None


class Malformed(Exception):
    """A lens that cannot be compared, and the site at which that is reported."""

    def __init__(self, site: str, message: str) -> None:
        super().__init__(message)
        self.site = site


def seen(subject: Subject, tokens_T: Tokens) -> PortLens:
    """The states that are seen while the port runs."""
    (states,) = port_states(subject.port, tokens_T[None])
    if not states:
        raise NotExamined("no states of the residual stream shown")
    sites = tuple(site for site, _ in states)
    if missing := [site for site in _ends(subject) if site not in sites]:
        raise NotExamined(f"{', '.join(missing)}: not shown, and there is no lens without")
    shape = (len(tokens_T), subject.config.n_embd)
    for site, state in states:
        if state.shape != shape:
            words = f"{site} has shape {list(state.shape)}, should be {list(shape)}"
            raise Malformed(site, words)
    decoder = LnF(subject.weights, subject.config)
    with np.errstate(all="ignore"):  # what is not finite is reported
        decoded = [decoder.decode(site, np.asarray(x, np.float64)) for site, x in states]
    return PortLens("the port's states", sites, FLOAT64, decoded_NTD=np.stack(decoded))


def own(subject: Subject, tokens_T: Tokens) -> PortLens:
    """The port's own lens."""
    if subject.config.keys.cap_logits is not None:
        raise NotExamined("its own lens reads the head, behind which the logits are capped")
    lens = subject.offers[LENS]
    known, last = state_sites(subject.config), _ends(subject)[-1]
    shape = (1, len(tokens_T), subject.config.n_vocab)
    read: dict[str, Floats] = {}
    for site, logits in lens(tokens_T[None]):
        if site not in known or site in read:
            why = "twice" if site in read else "which this model does not have"
            raise Malformed(last, f"the port's own lens reads {site}, {why}")
        if logits.shape != shape:
            words = f"the port's own lens has shape {list(logits.shape)}, should be {list(shape)}"
            raise Malformed(site, words)
        read[site] = np.array(logits[0])
    if missing := [site for site in _ends(subject) if site not in read]:
        raise Malformed(missing[-1], f"the port's own lens does not read {', '.join(missing)}")
    sites = tuple(site for site in known if site in read)
    logits_NTV = np.stack([read[site] for site in sites])
    return PortLens("the port's own lens", sites, subject.precision, logits_NTV=logits_NTV)


def _ends(subject: Subject) -> tuple[str, str]:
    """The states that the others are compared with."""
    first, *_, last = state_sites(subject.config)
    return first, last
