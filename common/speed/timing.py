"""Timings as median and spread, and what else a measurement reads from a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.base.config import REFUSED
from common.train.device import now_ms


class Laps:
    """Where a step's time goes, in milliseconds by the name of a phase.

    The device is waited for at the end of every phase, so that the phases of a step that usually
    overlap add up to more than the step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ms: dict[str, float] = {}
        self.last_ms = now_ms(device)

    def __call__(self, phase: str) -> None:
        """End of a phase, and beginning of the next; one that comes again adds up."""
        end_ms = now_ms(self.device)
        self.ms[phase] = self.ms.get(phase, 0.0) + end_ms - self.last_ms
        self.last_ms = end_ms


def summarize_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """Median and interquartile range of timings. Units: milliseconds."""
    low, median, high = np.percentile(samples_ms, [25, 50, 75])
    return {"median": float(median), "iqr": float(high - low), "n": len(samples_ms)}


def percentiles_ms(samples_ms: Sequence[float]) -> dict[str, float | int]:
    """The p50, p90 and p99 of latencies. Units: milliseconds."""
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


def without_kept_kernels(compiled: bool) -> AbstractContextManager[Any]:
    """Inside, torch.compile finds none of the kernels that it keeps on the disk and in memory: what
    it takes is the price of a first time. Nothing where nothing is compiled."""
    if not compiled:
        return nullcontext()
    from torch._inductor.utils import fresh_cache  # torch has no public way to do it in a process

    return fresh_cache()


def alternate(items: Sequence[Any], number: int) -> Sequence[Any]:
    """The items, in every second round from last to first, so that a drift meets all of them."""
    return items[::-1] if number % 2 else items


def reset_peak_memory(device: torch.device) -> None:
    """Begin to look for a new peak, where the device or the kernel keeps one."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def held_bytes(device: torch.device) -> int:
    """What an accelerator's tensors hold now; of a CPU nobody counts it, 0."""
    return 0 if device.type == "cpu" else torch.accelerator.memory_allocated(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Highest use since the reset: an accelerator's tensors, or the whole process on a CPU; None
    where the kernel does not say (elsewhere than on Linux)."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
