"""What is timed, in fresh processes where need be, and what else is read meanwhile: phases, turns,
memory, energy."""

import math
import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from common.base.cli import first_line, print_more
from common.train.device import now_ms, prepare_process

RAPL = Path("/sys/class/powercap")


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


class Process:
    """A process that makes an object and calls its methods when asked to.
    Raises: RuntimeError with what went wrong in it, then and at every call."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, inner = spawn.Pipe()
        args = (inner, threads, make, arguments)
        self.process = spawn.Process(target=serve, args=args, daemon=True)
        # Of pools that are made when a library loads, there and not here.
        with patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
            self.process.start()
        inner.close()
        self.freed_memory_kept = self.receive()

    def call(self, method: str, *arguments: Any) -> Any:
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Begin a call, which goes on beside this process until its answer is received."""
        with suppress(ConnectionError):  # the answer will say so
            self.pipe.send((method, arguments))

    def receive(self) -> Any:
        try:
            value, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            error = f"the engine's process ended with status {self.process.exitcode}"
        if error:
            raise RuntimeError(error)
        return value

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        self.process.kill()  # where it has not ended
        self.process.join()


def serve(pipe: Connection, threads: int, make: Callable[..., Any], arguments: tuple) -> None:
    """Body of a process: make the object, then do what comes through the pipe until it closes."""
    try:
        kept = prepare_process(threads)
        served = make(*arguments)
        pipe.send((kept, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((getattr(served, method)(*arguments), None))
    except EOFError:
        return
    except Exception as error:  # a damaged file costs its engine's rows, and no other's
        print_more(error)
        pipe.send((None, first_line(error)))
