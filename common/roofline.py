"""How fast a device could be: its own peaks, measured, and what they allow a network.

The roofline of Williams, Waterman and Patterson ("Roofline: An Insightful Visual Performance
Model", 2009), layer by layer: a layer takes at least the time of its arithmetic at the peak of a
matrix product, and at least the time of moving its input, output and weights once at the bandwidth
of a copy. What lies between layers (normalisation, activation, optimiser) counts nothing, so the
bound is one from below.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from common.cost import Costs
from common.timing import now_ms

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
MATRIX_SIDE = {"cpu": 2048}  # elsewhere:
LARGE_SIDE = 8192
COPY_BYTES = 2**28  # beyond any cache
REPEATS = 10  # of which the fastest counts: a peak


@dataclass(frozen=True)
class Peaks:
    """What a device was measured to do. Units: FLOP/s (two a MAC); bytes/s, read and written."""

    flops_per_s: float
    bytes_per_s: float


@functools.cache
def measure_peaks(device: str, precision: str, threads: int) -> Peaks:
    """The fastest square matrix product in a precision, and the fastest copy of memory.

    `threads` are those of the process, for the caller to have set.
    """
    home, dtype = torch.device(device), DTYPES[precision]
    side = MATRIX_SIDE.get(home.type, LARGE_SIDE)
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    matrices = [torch.ones(side, side, dtype=dtype, device=home) for _ in range(2)]
    source = torch.ones(COPY_BYTES // 4, device=home)
    target = torch.empty_like(source)
    return Peaks(
        flops_per_s=2 * side**3 / _fastest_s(home, lambda: multiply(*matrices)),
        bytes_per_s=2 * COPY_BYTES / _fastest_s(home, lambda: target.copy_(source)),
    )


def _fastest_s(device: torch.device, work) -> float:
    work()
    times_ms = []
    for _ in range(REPEATS):
        start_ms = now_ms(device)
        work()
        times_ms.append(now_ms(device) - start_ms)
    return min(times_ms) / 1e3


def bound_ms(costs: Costs, peaks: Peaks, precision: str, training: bool) -> float:
    """The least time of a forward pass, or of a training step, as the roofline has it.

    costs: of the whole batch, in convention conv_linear. A training step does the work of a layer
    as often as costs.train_step_macs says on the mean, and moves as much each time.
    """
    passes = costs.train_step_macs / costs.macs if training else 1
    item = DTYPES[precision].itemsize
    return (
        1e3
        * passes
        * sum(
            max(2 * layer.macs / peaks.flops_per_s, item * layer.moved / peaks.bytes_per_s)
            for layer in costs.layers
            if layer.macs
        )
    )
