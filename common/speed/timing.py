"""Timing that a device cannot cheat: synchronise, repeat, and report the median with its spread."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.base.config import REFUSED

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h's


def prepare_process(threads: int) -> bool:
    """What a process does before anything is timed in it, on whatever side of a comparison it is:
    so many threads, and freed memory kept for the next step or query. A library that keeps its
    memory anyway would else be compared with one that faults it in anew.

    Returns: whether freed memory is kept, for the row to say so.
    """
    torch.set_num_threads(threads)
    return keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that a step frees for the next one, instead of giving it back.

    Otherwise every step of a network of large batches or layers faults thousands of pages in
    again: 15 % of the time of --preset record's steps. Elsewhere nothing happens.
    Returns: whether glibc does so.
    Source: mallopt(3).
    """
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        trims = glibc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        return glibc.mallopt(M_MMAP_THRESHOLD, 1 << 30) == trims == 1
    return False


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work queued so far; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def now_ms(device: torch.device) -> float:
    """Milliseconds on a monotonic clock, read after the device has caught up."""
    synchronize(device)
    return time.perf_counter() * 1e3


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
