"""The logit lens: what each state of the residual stream would predict if it were the last."""

from verify.lens.statistics import STATISTICS, UNDEFINED, Lens, Statistic

__all__ = ["STATISTICS", "UNDEFINED", "Lens", "Statistic"]
