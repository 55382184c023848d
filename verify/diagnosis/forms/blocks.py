"""A block that is run where none has its place: once more, before what reads the stream.

Fitted is which block of the model it is. It is computed from the stream that the port has shown,
and what reads the stream, a norm or a sum, reads its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from gpt_verify.diagnosis.forms.form import Array, Evidence, Fitted, Form
from gpt_verify.graph.call import Call
from gpt_verify.graph.run import right
from gpt_verify.sites import Site, sites

#: Blocks that are tried.
MOST = 48
#: Kinds of what reads the stream that enters a block, or the head.
READERS = ("ln_1", "ln_f", "resid_mid")


def fits(e: Evidence) -> Iterator[Fitted]:
    if e.site.kind not in READERS or not e.site.inputs or not np.isfinite(e.got).all():
        return
    if e.config.own is not None or e.site.inputs[0] not in e.shown:
        return
    tried = [(e.distance(_after(m, e.call)), m) for m in range(min(e.config.n_layer, MOST))]
    _, block = min(tried)
    words = f"block {block} is run once more on {e.site.inputs[0]} before it is read"
    yield e.alone(partial(_after, block), words)


def _after(block: int, call: Call) -> Array:
    """The operation on what a block makes of the stream."""
    name = call.site.inputs[0]
    values = {other: call.values[other] for other in call.site.inputs}
    return right(replace(call, values={**values, name: run(block, call, values[name])}))


def run(block: int, call: Call, x_TD: Array) -> Array:
    """What a block makes of a stream."""
    within = [site for site in sites(call.config).values() if site.layer == block]
    values = {_entered(within): x_TD}
    for site in within:
        values[site.name] = np.asarray(right(replace(call, site=site, values=values)), call.dtype)
    return values[within[-1].name]


def _entered(within: list[Site]) -> str:
    """The site before a block."""
    own = {site.name for site in within}
    return next(name for site in within for name in site.inputs if name not in own)


FORM = Form("block-again", "runs a block once more", fits)
