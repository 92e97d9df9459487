"""Statistics of the report: how far an accuracy can be trusted."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the proportion correct / total.

    Raises: ValueError unless 0 <= correct <= total and total >= 1.
    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if total < 1:
        raise ValueError(f"an interval needs at least one image, got {total}")
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
