"""What attention reads and makes, wherever a port shows it: scores before any mask, and heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpt_verify.diagnosis.forms.form import Array, Evidence
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.sites import sites

#: A score as low as this is masked, whatever number a port has for that.
HIDDEN = -9e3


def scores(call: Call) -> Array:
    """What the pattern is made of, for every pair: as the port shows it where that is not masked,
    and what it would be where it is."""
    shown = call.x
    made = sites(call.config)[call.site.inputs[0]]
    if made.kind != "attn.scores":
        return shown
    computed: Array = right(replace(call, site=made))
    below = np.tri(*shown.shape[-2:], dtype=np.bool_)
    return np.where(below & (shown > HIDDEN), shown, computed)


def visible(e: Evidence) -> NDArray[np.bool_]:
    """Of scores that the port shows, those that are not masked, [H, T, S]."""
    below = np.tri(*e.got.shape[-2:], dtype=np.bool_)
    seen: NDArray[np.bool_] = below & (e.got > HIDDEN) & np.isfinite(e.got)
    return seen


def by_head(x_TX: Array, n_head: int) -> Array:
    """Heads side by side → [H, T, K]."""
    return x_TX.reshape(len(x_TX), n_head, -1).transpose(1, 0, 2)
