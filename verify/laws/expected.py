"""Which findings a run yields, known before it begins."""

from __future__ import annotations

from gpt_verify.laws.table import LAWS
from gpt_verify.reference.config import Config
from gpt_verify.sites import sites


def expected_checks(config: Config) -> list[tuple[str, str | None]]:
    """Every ``(finding id, site)`` that a run yields for each port, in the order of the report.

    A port that cannot show what a check needs still yields it, as not examined.
    """
    every = sites(config).values()
    checks: list[tuple[str, str | None]] = []
    checks += [("weights.values", site.name) for site in every if site.weights]
    checks += [("weights.accounted", None), ("weights.count", None)]
    for law in ("architecture", "activations.local", "activations.cascaded"):
        checks += [(law, site.name) for site in every]
    checks += [("logits", "logits"), ("determinism", None)]
    checks += [(law.id, site) for law in LAWS for site in law.sites(config)]
    return checks
