"""The law of the lens."""

from __future__ import annotations

from gpt_verify.laws.law import Law, Part
from gpt_verify.laws.lens.check import check_lens
from gpt_verify.lens.states import state_sites
from gpt_verify.reference.config import Config


def of_the_stream(config: Config) -> list[str | None]:
    """Each state of the residual stream has a finding of its own."""
    return list(state_sites(config))


def if_read_through_ln_f(config: Config) -> str | None:
    """The lens puts ln_f between a state and the head; without it a state is no stream of sums."""
    if config.keys.norm_embed:
        return f"the stream of {config.architecture} begins behind a norm of the embedding"
    if config.norm_last:
        return None
    return f"the lens reads states through ln_f, which {config.architecture} does not have"


LAW = Law(
    "Lens",
    50,
    (
        Part(
            "lens",
            check_lens,
            "top-1, ranks, entropies and divergences of the logit lens at every layer and "
            "sub-block ([lens.md](lens.md))",
            sites=of_the_stream,
            free=if_read_through_ln_f,
            in_one_call=True,
        ),
    ),
)
