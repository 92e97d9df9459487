"""What samples of time come to: medians, their noise, and ratios. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from common.base.config import REFUSED


def summarize_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """Median and interquartile range of timings. Units: milliseconds."""
    low, median, high = np.percentile(samples_ms, [25, 50, 75])
    return {"median": float(median), "iqr": float(high - low), "n": len(samples_ms)}


def percentiles_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """Median, 90th and 99th percentile of latencies. Units: milliseconds."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "n": len(samples_ms)}


def judge_noise(samples_ms: Sequence[float], accept: bool) -> tuple[float, str | None]:
    """The spread of timings, IQR over median, and why they are refused, or None."""
    summary = summarize_ms(samples_ms)
    noise = summary["iqr"] / summary["median"]
    if noise <= REFUSED or accept:
        return noise, None
    return noise, (
        f"too noisy: IQR {noise:.0%} of the median {summary['median']:.3g} ms (limit "
        f"{REFUSED:.0%}); give the machine nothing else to do, or --accept-noise"
    )


def ratio_interval(
    baseline_ms: Sequence[float], own_ms: Sequence[float], launches: int = 1
) -> tuple[float, tuple[float, float] | None]:
    """How many times as fast, from interleaved blocks: one time of each side for every block.

    Returns: the geometric mean of the blocks' ratios and its 95 % interval, None for a single
    block: Student's over the logarithms. A block's two times stay a pair, so that a drift that both
    sides met widens nothing. Where the blocks come, launch by launch, from so many fresh processes
    of both sides, the interval is over the launches' means, for processes of one program differ by
    more than their blocks do. A bootstrap of so few blocks would hold the truth in 51 to 89 % of
    cases (two to ten blocks, simulated).
    Source: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", 2013.
    """
    logs = np.log(baseline_ms) - np.log(own_ms)
    ratio = float(np.exp(logs.mean()))
    logs = logs.reshape(launches, -1).mean(1) if launches > 1 else logs
    if len(logs) < 2:
        return ratio, None
    half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    mean = logs.mean()
    return ratio, (float(np.exp(mean - half)), float(np.exp(mean + half)))
