"""All forms, those that say most first."""

from __future__ import annotations

from gpt_verify.diagnosis import depends, inputs, layers, wirings
from gpt_verify.diagnosis.forms import (
    activation,
    blocks,
    experts,
    gates,
    grid,
    heads,
    hidden,
    instead,
    norm,
    outputs,
    pattern,
    positions,
    queries,
    rearranged,
    scaled,
    scored,
    sums,
    support,
    through,
    tiles,
    turned,
    waves,
)
from gpt_verify.diagnosis.forms.form import Form
from gpt_verify.diagnosis.forms.tensors import NAMES
from gpt_verify.laws.cache.forms import NAMES as OF_CACHES
from gpt_verify.laws.determinism.check import NAMES as OF_STATE
from gpt_verify.laws.generation.hypotheses import NAMES as OF_GENERATION
from gpt_verify.laws.gradient.hypotheses import NAMES as OF_GRADIENTS
from gpt_verify.laws.loss.forms import NAMES as OF_LOSSES
from gpt_verify.laws.padding.forms import NAMES as OF_PADDING
from gpt_verify.laws.resizing.forms import NAMES as OF_RESIZING
from gpt_verify.laws.training.check import NAMES as OF_TRAINING

#: Tried in this order at a site that is wrong, where no fault of the catalogue fits.
OF_SITES: tuple[Form, ...] = (
    sums.FORM,
    positions.POSITIONS,
    positions.TOKENS,
    positions.DOUBLED,
    positions.SHORTENED,
    waves.FORM,
    pattern.CUT,
    support.FORM,
    scaled.FORM,
    scaled.SLOPED,
    scored.BIASED,
    scored.CLAMPED,
    scored.CAPPED,
    turned.FORM,
    hidden.GAINS,
    hidden.SINKS,
    queries.NORMED,
    pattern.DIVIDED,
    tiles.FORM,
    activation.FORM,
    gates.FORM,
    norm.FORM,
    norm.OTHER,
    blocks.FORM,
    instead.INPUTS,
    instead.TENSORS,
    instead.PARTS,
    heads.FORM,
    hidden.VALUES,
    hidden.SUMS,
    instead.NORMED,
    experts.FORM,
    rearranged.FORM,
    outputs.PERMUTED,
    outputs.FIXED,
    outputs.CLAMPED,
    outputs.CAPPED,
    through.FORM,
    grid.FORM,
    queries.ROUNDED,
    outputs.SCALED,
    outputs.SHIFTED,
)
#: Name → sentence that completes "the port …", of sites and of tensors.
FORMS: dict[str, str] = {
    **NAMES,
    **{form.name: form.summary for form in OF_SITES},
    depends.NAME: depends.SUMMARY,
    inputs.NAME: inputs.SUMMARY,
    layers.NAME: layers.SUMMARY,
    **wirings.NAMES,
    **OF_CACHES,
    **OF_GENERATION,
    **OF_GRADIENTS,
    **OF_LOSSES,
    **OF_PADDING,
    **OF_RESIZING,
    **OF_STATE,
    **OF_TRAINING,
}
