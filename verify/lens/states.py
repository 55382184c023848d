"""The states of the residual stream come from the oracle's forward pass, or from a port's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_verify.port import ACTIVATIONS, Dtype, Floats, Port, Tokens
from gpt_verify.reference.branches import Weights
from gpt_verify.reference.config import Config
from gpt_verify.reference.lens import RESIDUAL
from gpt_verify.reference.model import forward
from gpt_verify.sites import sites

#: Sites that say how much each token attends to each before it.
PATTERN = ".attn.pattern"


def is_state(site: str) -> bool:
    """Whether this site is a state of the residual stream, which the lens can read."""
    return site.endswith(RESIDUAL)


def state_sites(config: Config) -> list[str]:
    """Every state of a model of this size, in order of computation."""
    return [site for site in sites(config) if is_state(site)]


def place(site: str) -> tuple[int, bool]:
    """The block that a state belongs to (−1 before the first), and whether it is inside it.

    ``h.3.resid_mid``, after attention, is inside block 3; ``h.3.resid_post`` is behind it.
    """
    if site == "embed":
        return -1, False
    return int(site.split(".")[1]), site.endswith(".resid_mid")


def oracle_states(
    weights: Weights, config: Config, tokens_T: NDArray[np.integer]
) -> Iterator[tuple[str, Floats]]:
    """The oracle's states, float64[T, D]."""
    return ((s, x_TD) for s, x_TD in forward(weights, config, tokens_T) if is_state(s))


def port_states(port: Port, tokens: Tokens) -> list[list[tuple[str, Floats]]]:
    """The states that a port shows when it runs on tokens int[B, T]: for each row of the batch.

    Empty lists where it shows none. The arrays are copies, in the port's own precision (float32
    for the narrower ones), which a port may show once and in any order: sites are ordered here.
    """
    shown = port_values(port, tokens, is_state)
    in_order = sorted(shown, key=lambda site: (place(site)[0], not place(site)[1]))
    return [[(site, shown[site][row]) for site in in_order] for row in range(len(tokens))]


def port_values(port: Port, tokens: Tokens, asked: Callable[[str], bool]) -> dict[str, Floats]:
    """Site → [B, …], copied, of the sites that are asked for and that the port shows."""
    shown: dict[str, Floats] = {}

    def visit(site: str, value: Floats, narrowest: Dtype | None = None) -> None:
        if asked(site):
            shown[site] = np.array(value)

    if activations := port.offers().get(ACTIVATIONS):
        activations(tokens, visit)
    return shown


@dataclass(frozen=True, eq=False)
class Seen:
    """What one sequence showed of a model.

    Attributes:
        states: ``(site, x[T, D])`` in order of computation.
        patterns: layer → how much each target attends to each source, [H, T, S].
    """

    states: list[tuple[str, Floats]]
    patterns: dict[int, Floats]


def oracle_shown(
    weights: Weights, config: Config, tokens_T: NDArray[np.integer], attention: bool
) -> Seen:
    """The oracle's states, and its patterns where attention is asked for; in float64."""
    asked = _asked(attention)
    return _sorted({s: v for s, v in forward(weights, config, tokens_T) if asked(s)})


def port_shown(port: Port, tokens_T: NDArray[np.integer], attention: bool) -> Seen:
    """The same of a port, in its own precision, as far as it shows them."""
    found = port_values(port, np.asarray(tokens_T, np.int64)[None], _asked(attention))
    return _sorted({site: value[0] for site, value in found.items()})


def _asked(attention: bool) -> Callable[[str], bool]:
    return lambda site: is_state(site) or (attention and site.endswith(PATTERN))


def _sorted(shown: dict[str, Floats]) -> Seen:
    states = [site for site in shown if is_state(site)]
    states.sort(key=lambda site: (place(site)[0], not place(site)[1]))
    patterns = sorted((place(site)[0], site) for site in shown if site.endswith(PATTERN))
    return Seen([(site, shown[site]) for site in states], {n: shown[s] for n, s in patterns})
