"""The device that a process computes on: which one, in which precision, prepared and timed how."""

import ctypes
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from joblib import cpu_count

from common.base.cli import UsageError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h's
LOOK_S = 1.0  # between looks at what others compute
CERTAIN = 0.8  # of a core that is free before a thread is taken back: two loads must not alternate
COMPUTING = ("user", "system", "irq", "softirq", "steal")  # nice: who gives way, costs a tenth
# fp32 means fp32: cuDNN's convolutions would round to TF32, as matrix products by default do not.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = True  # but under --deterministic: batches are of few shapes


def prepare_process(threads: int) -> bool:
    """What a process does before anything is timed in it: so many threads, and glibc keeps the
    memory that a step or query frees for the next one. Returns: whether it does, for the row."""
    # Else every step of large batches faults thousands of pages in again: 15 % of the time of
    # --preset record's steps, which a library that keeps its memory anyway does not pay.
    torch.set_num_threads(threads)
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        return mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1) == mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1
    return False


class Threads:
    """torch's threads in this process: as many as they are, or once they adapt no more than cores
    that are free.
    An OpenMP thread that waits for one without a core spins (pytorch/pytorch#57715): beside one
    other process that computes, steps of two threads on two cores took 5 to 50 times as long, and
    one thread a twentieth longer than alone (benchmarks/RECORDS.md). Their number changes the last
    bits of a result: only a fixed one, by --threads or OMP_NUM_THREADS, promises the same."""

    def __init__(self) -> None:
        self.most, self.used = 1, set[int]()

    def __str__(self) -> str:
        count = f"1 to {self.most}" if self.most > 1 else torch.get_num_threads()
        return f"{count} threads"

    def adapt(self) -> None:
        """From now on have as many as are free, and at most as many as now."""
        self.most = min(torch.get_num_threads(), cpu_count())
        self.look_s, self.others_s = time.monotonic(), self._others_s()

    def look(self) -> None:
        """Give up threads, or take them back, by what others computed since the last look."""
        self.used.add(torch.get_num_threads())
        if self.most == 1 or (passed_s := time.monotonic() - self.look_s) < LOOK_S:
            return
        others_s, threads = self._others_s(), torch.get_num_threads()
        free = cpu_count() - (others_s - self.others_s) / passed_s
        self.look_s, self.others_s = self.look_s + passed_s, others_s
        if free < threads or free >= threads + CERTAIN:
            torch.set_num_threads(min(max(1, round(free)), self.most))

    def take_used(self) -> list[int]:
        """The least and the most threads since this was last asked for."""
        used, self.used = self.used or {torch.get_num_threads()}, set[int]()
        return [min(used), max(used)]

    @staticmethod
    def _others_s() -> float:
        """Seconds that the cores have computed for others who do not give way."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            cores = [cores[i] for i in os.sched_getaffinity(0) if i < len(cores)]
        computed = sum(getattr(core, name, 0.0) for core in cores for name in COMPUTING)
        gives_way = hasattr(os, "nice") and os.nice(0) > 0  # then its own time is not among it
        return computed if gives_way else computed - time.process_time()


threads = Threads()


def resolve_device(name: str) -> torch.device:
    """The device asked for, without falling back; auto takes the accelerator if there is one."""
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return here or torch.device("cpu")
    if name not in ("cpu", here and here.type):
        why = f"torch {torch.__version__} finds {f'{here.type} and cpu' if here else 'cpu only'}"
        way_out = f"install the torch build and driver for {name}, or ask for another device"
        raise UsageError(f"--device {name}: not available, {why} here; {way_out}")
    return torch.device(name)


def resolve_precision(amp: bool, amp_dtype: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: what autocast will really use. A CPU without fast bf16 trains in fp32,
    and the caller says so. Raises: UsageError for a type asked for by name that is not there."""
    if not amp:
        return "fp32"
    if device.type == "cpu":
        if amp_dtype == "fp16":
            raise UsageError("--amp-dtype fp16: needs an accelerator; use bf16 or auto on a CPU")
        return "bf16" if amp_dtype == "bf16" or cpu_has_fast_bf16() else "fp32"
    if amp_dtype != "auto":
        return amp_dtype
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if cuda or device.type == "xpu" else "fp16"


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11, which asks x86 CPUs alone
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision in ("fp32", "tf32"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, CUDA may round what fp32 products and convolutions are of to TF32, or may not."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out; torch does so on a CPU and on MPS in words alone."""
    words = "can't allocate memory" in str(error) or "MPS backend out of memory" in str(error)
    return words or isinstance(error, MemoryError | torch.OutOfMemoryError)


def compile_obstacle(kind: str = "cpu") -> str | None:
    """What torch.compile lacks on this machine to build for a kind of device, and how to get it, or
    None. Source: triton/runtime/build.py, which builds a launcher in C for every kernel."""
    triton = kind in ("cuda", "xpu")
    if triton and not find_spec("triton"):
        return f"torch.compile needs triton on {kind}, which is not there: pip install triton"
    if kind == "cuda" and torch.cuda.get_device_capability() < (7, 0):
        return "torch.compile needs a card of compute capability 7.0 or more: leave it out"
    language, variable, package = ("C", "CC", "gcc") if triton else ("C++", "CXX", "g++")
    usual = ["gcc", "clang"] if triton else ["clang++" if sys.platform == "darwin" else "g++"]
    tools = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(map(shutil.which, tools)):
        what = f"a {language} compiler and {tools[0]} is not there"
        return f"torch.compile needs {what}: apt-get install {package}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's headers: apt-get install python3-dev"
    return None


def now_ms(device: torch.device) -> float:
    """Milliseconds on a monotonic clock, read after the device has done all work queued so far."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() * 1e3
