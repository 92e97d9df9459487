"""Energy counters of a machine that lets them be read; what cannot be read is None, not 0."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")

Meter = Callable[[], float | None]  # joules since the meter was made


def open_meter(device: torch.device) -> Meter | None:
    """A meter of the energy that a device uses, None where it has no counter that may be read.

    A CPU's counts its packages with all that runs on them (RAPL, which most systems let only root
    read); an NVIDIA card's, through the optional package nvidia-ml-py, the whole card.
    Source: Linux Documentation/power/powercap; NVML, nvmlDeviceGetTotalEnergyConsumption.
    """
    if device.type == "cuda":
        return _open_nvml(device)
    return _open_rapl(RAPL) if device.type == "cpu" else None


def _open_rapl(root: Path) -> Meter | None:
    packages = sorted(root.glob("intel-rapl:[0-9]"))  # AMD's too
    counters = [_Counter(package) for package in packages]
    if not counters or any(counter.read() is None for counter in counters):
        return None

    def read() -> float | None:
        used = [counter.read() for counter in counters]
        return None if None in used else sum(used) / 1e6

    return read


class _Counter:
    """Microjoules of one package since the first reading, through wrap-arounds."""

    def __init__(self, folder: Path) -> None:
        self.file, self.range = folder / "energy_uj", folder / "max_energy_range_uj"
        self.last: int | None = None
        self.used = 0

    def read(self) -> int | None:
        try:
            value = int(self.file.read_text())
            step = value - (value if self.last is None else self.last)
            if step < 0:
                step += int(self.range.read_text())
        except (OSError, ValueError):
            return None
        self.last, self.used = value, self.used + step
        return self.used


def _open_nvml(device: torch.device) -> Meter | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        index = torch.cuda._get_nvml_device_index(device)  # NVML counts cards that are hidden too
        read = functools.partial(
            pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetHandleByIndex(index)
        )
        start = read()  # millijoules
        return lambda: (read() - start) / 1e3
    return None
