"""Mistakes that look at what a label is, or at the mask of padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpt_verify.laws.loss.case import Case, mean_loss, total


@dataclass(frozen=True)
class OfLabels:
    """A mistake that looks at the labels, or at the mask.

    Attributes:
        fault: its name in the catalogue of faults.
        description: what is said of it.
        loss: the loss that it gives of one call; None where it changes nothing there.
    """

    fault: str
    description: str
    loss: Callable[[Case], float | None]

    def fits(self, cases: Sequence[Case]) -> float | None:
        """It gives every loss of the port by itself, and another one than the correct one where
        the port's is incorrect."""
        for case in cases:
            given = self.loss(case)
            if not (case.right if given is None else case.fits(given)):
                return None
        return 0.0


def ignoring(cases: Sequence[Case]) -> list[OfLabels]:
    """Labels that are taken for none because of what they are."""
    found = []
    for token in dict.fromkeys(token for case in cases for token in case.special):
        last = max(int(case.losses.n_vocab) for case in cases) - 1
        fault = {last: "loss-end-of-text-ignored", 0: "loss-token-0-ignored"}.get(
            token, "loss-padding-id-ignored"
        )
        what = f"labels that are token {token}"
        found += [
            OfLabels(fault, f"{what} are ignored", partial(_without_token, token)),
            OfLabels(
                fault,
                f"{what} count as nothing, and in the divisor",
                partial(_without_token, token, divisor=True),
            ),
            OfLabels(
                "loss-ignored-from-end-of-text",
                f"labels after the first token {token} are ignored",
                partial(_until_token, token, 1),
            ),
            OfLabels(
                "loss-ignored-from-end-of-text",
                f"labels from the first token {token} on are ignored",
                partial(_until_token, token, 0),
            ),
        ]
    return found


def _without_token(token: int, case: Case, divisor: bool = False) -> float | None:
    kept = case.counted & (case.tokens != token)
    if (kept == case.counted)[:, 1:].all():
        return None
    if divisor:
        return total(case.losses, kept) / max(1, int(case.counted[:, 1:].sum()))
    return mean_loss(case.losses, kept)


def _until_token(token: int, later: int, case: Case) -> float | None:
    """Seen where it is a label. The first token of a row begins it, and ends nothing."""
    ends = case.counted & (case.tokens == token)
    ends[:, 0] = False
    ended = np.cumsum(ends, axis=1) > 0
    if later:
        ended[:, 1:] = ended[:, :-1].copy()
        ended[:, 0] = False
    kept = case.counted & ~ended
    return None if (kept == case.counted)[:, 1:].all() else mean_loss(case.losses, kept)


def _over_the_mask(first: int, last: int | None, case: Case) -> float | None:
    if case.mask is None:
        return None
    return total(case.losses, case.counted) / float(case.mask[:, first:last].sum())


def _of_unmasked(case: Case) -> float | None:
    return None if case.unmasked is None else mean_loss(case.unmasked, case.counted)


MASK_MISTAKES = (
    OfLabels(
        "loss-mask-in-divisor",
        "the sum is divided by the length of the mask, ignored labels included",
        partial(_over_the_mask, 1, None),
    ),
    OfLabels(
        "loss-mask-in-divisor",
        "the sum is divided by the length of the mask, which is not shifted",
        partial(_over_the_mask, 0, -1),
    ),
    OfLabels(
        "loss-mask-in-divisor",
        "the sum is divided by all that the mask has, the first tokens included",
        partial(_over_the_mask, 0, None),
    ),
    OfLabels(
        "loss-mask-dropped",
        "it is the loss of logits that are computed without the mask",
        _of_unmasked,
    ),
)
