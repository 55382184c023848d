"""All forms, those that say most first."""

from __future__ import annotations

from gpt_verify.diagnosis import depends
from gpt_verify.diagnosis.forms import (
    activation,
    grid,
    heads,
    instead,
    norm,
    outputs,
    positions,
    rearranged,
    scaled,
    sums,
    support,
)
from gpt_verify.diagnosis.forms.form import Form
from gpt_verify.diagnosis.forms.tensors import NAMES

#: Tried in this order at a site that is wrong, where no fault of the catalogue fits.
OF_SITES: tuple[Form, ...] = (
    sums.FORM,
    positions.POSITIONS,
    positions.TOKENS,
    support.FORM,
    scaled.FORM,
    scaled.BIASED,
    activation.FORM,
    norm.FORM,
    instead.INPUTS,
    instead.TENSORS,
    instead.PARTS,
    heads.FORM,
    rearranged.FORM,
    outputs.PERMUTED,
    outputs.FIXED,
    outputs.CLAMPED,
    outputs.CAPPED,
    grid.FORM,
    outputs.SCALED,
    outputs.SHIFTED,
)
#: Name → sentence that completes "the port …", of sites and of tensors.
FORMS: dict[str, str] = {
    **NAMES,
    **{form.name: form.summary for form in OF_SITES},
    depends.NAME: depends.SUMMARY,
}
