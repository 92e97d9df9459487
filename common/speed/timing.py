"""What is timed, and what else is read meanwhile: phases, turns, memory, energy."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from common.train.device import now_ms

RAPL = Path("/sys/class/powercap")
METER_PERIOD_MS = {"cuda": 100}  # between updates of a counter: NVML's, RAPL's is a millisecond


class Laps:
    """Where a step's time goes, in milliseconds by the name of a phase. The device is waited for at
    the end of each, so that phases that usually overlap add up to more than the step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ms, self.last_ms = device, defaultdict(float), now_ms(device)

    def __call__(self, phase: str) -> None:
        end_ms = now_ms(self.device)
        self.ms[phase] += end_ms - self.last_ms
        self.last_ms = end_ms


def alternate(items: Sequence[Any], number: int) -> Sequence[Any]:
    """The items, in every second round from last to first, so that a drift meets all of them."""
    return items[::-1] if number % 2 else items


def without_kept_kernels(compiled: bool) -> AbstractContextManager[Any]:
    """Inside, torch.compile finds none of the kernels that it keeps on the disk and in memory."""
    if not compiled:
        return nullcontext()
    from torch._inductor.utils import fresh_cache  # torch has no public way within a process

    return fresh_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Begin to look for a new peak, where the device or the kernel keeps one."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_memory_bytes(device: torch.device) -> int | None:
    """Highest use since the reset: an accelerator's tensors, or the whole process on a CPU; None
    where the kernel does not say (elsewhere than on Linux)."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    with suppress(OSError):
        if peak := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(peak[1])
    return None


def tensor_bytes(device: torch.device) -> int:
    """What an accelerator's tensors take now; 0 on a CPU, where nobody counts it."""
    return 0 if device.type == "cpu" else torch.accelerator.memory_allocated(device)


def open_meter(device: torch.device) -> Callable[[], float | None]:
    """A function of the joules that a device has used since now, None where no counter can be read.
    A CPU's are its packages' with all that runs on them (RAPL, which most systems let only root
    read); an NVIDIA card's, through the optional package nvidia-ml-py, the whole card's.
    Source: Linux Documentation/power/powercap; NVML, nvmlDeviceGetTotalEnergyConsumption."""
    packages = sorted(RAPL.glob("intel-rapl:[0-9]")) if device.type == "cpu" else []  # AMD's too

    def read(name: str = "energy_uj") -> list[int]:
        return [int((package / name).read_text()) for package in packages]

    try:
        tops = read("max_energy_range_uj")  # where each counter begins again from 0
        if device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            index = torch.cuda._get_nvml_device_index(device)  # NVML counts hidden cards too
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            energy = pynvml.nvmlDeviceGetTotalEnergyConsumption
            tops, read = [math.inf], lambda: [1000 * energy(card)]
        first = read()
    except Exception:  # no package, no driver, no permission
        tops = []

    def joules() -> float | None:
        with suppress(OSError, ValueError):
            return sum((b - a) % top for a, b, top in zip(first, read(), tops, strict=True)) / 1e6
        return None

    return joules if tops else lambda: None
