"""Timing that a device cannot cheat: synchronise, repeat, and report the median with its spread."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work queued so far; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def now_ms(device: torch.device) -> float:
    """Milliseconds on a monotonic clock, read after the device has caught up."""
    synchronize(device)
    return time.perf_counter() * 1e3


def summarize_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """Median and interquartile range of timings. Units: milliseconds."""
    low, median, high = np.percentile(samples_ms, [25, 50, 75])
    return {"median": float(median), "iqr": float(high - low), "n": len(samples_ms)}


def percentiles_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """The p50, p90 and p99 of latencies. Units: milliseconds."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "n": len(samples_ms)}
