"""The ledger for whoever asks it from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike

from gpt_verify.claims.run import ClaimsReport, claims_run
from gpt_verify.text import typed_path


def claims(
    ids: str | Sequence[str] = (),
    checkpoint: str | PathLike[str] | None = None,
    *,
    text: str | None = None,
    interpreters: Sequence[str] = (),
    ignore_keys: Sequence[str] = (),
) -> ClaimsReport:
    """Decide by tests what people say of GPT-2.

    The result prints itself as the command does, and is its page in a notebook.

    Args:
        ids: of claims (docs/claims.md), or what they begin with (`tie`); none takes all.
        checkpoint: a directory of either format; None takes the one that ships with the package.
        text: prose, in the place of that which claims about weights are measured on.
        interpreters: further Pythons whose transformers is examined.
        ignore_keys: keys of the checkpoint's configuration that do not alter what is computed.

    Returns:
        The report; ``report.claims`` has one ``Decided`` for each claim: its ``verdict``, its
        ``answer`` in words, and in ``measured.numbers`` what was measured. A claim that cannot be
        judged here has no verdict, and says what is ``missing``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UsageError: no such claim, or another model than the claims are about.

    Example:
        >>> (decided,) = gv.claims("tie-transpose").claims
        >>> decided.claim.statement
        'The last step multiplies by the transpose of the input embedding.'
        >>> str(decided.verdict), decided.contradicted
        ('true', False)
    """
    asked = (ids,) if isinstance(ids, str) else tuple(ids)
    directory = None if checkpoint is None else typed_path(os.fspath(checkpoint))
    return claims_run(directory, asked, text, tuple(interpreters), tuple(ignore_keys))
