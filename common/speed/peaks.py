"""How fast a device could be: its own peaks, measured, and what they allow a network, layer by
layer. What lies between layers (normalisation, activation, optimiser) counts nothing, so the bound
is one from below. Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual
Performance Model", 2009."""

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from common.cost import Costs, count_costs
from common.train.device import now_ms, tf32

DTYPES = {"fp32": torch.float32, "tf32": torch.float32}
DTYPES |= {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
MATRIX_SIDE = {"cpu": 2048}  # elsewhere 8192
CONVOLUTION = 64, 256, 14  # images, channels in and out, side of the output
COPY_BYTES = 2**28  # beyond any cache
SECONDS = 1.0  # of repetitions, of which the fastest counts: a peak


@dataclass(frozen=True)
class Peaks:
    """What a device was measured to do. Units: FLOP/s (two a MAC); bytes/s, read and written."""

    flops_per_s: float
    bytes_per_s: float


@functools.cache
def measure_peaks(device: str, precision: str, threads: int) -> Peaks:
    """The arithmetic of the fastest dense work in a precision, and the fastest copy of memory;
    `threads` are those of the process, for the caller to have set."""
    home = torch.device(device)
    source = random_values((COPY_BYTES // 4,), torch.float32, home)
    target = torch.empty_like(source)
    works = dense_works(MATRIX_SIDE.get(home.type, 8192), DTYPES[precision], home)
    with tf32(precision == "tf32"):
        flops_per_s = max(flops / _fastest_s(home, work) for flops, work in works)
    return Peaks(flops_per_s, 2 * COPY_BYTES / _fastest_s(home, lambda: target.copy_(source)))


def random_values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same values at each call, as spread as a network's: on constant ones fewer bits flip, and
    a GPU that its power limits runs a tenth faster than it ever does on real data."""
    how = {"generator": torch.Generator().manual_seed(0), "dtype": dtype}
    integers = dtype == torch.int8
    values = torch.randint(-128, 128, shape, **how) if integers else torch.randn(shape, **how)
    return values.to(device)


def dense_works(side: int, dtype: torch.dtype, device: torch.device) -> list[tuple]:
    """What may reach a device's peak, with its FLOPs: a product of square matrices, and a 3x3
    convolution. On an AMD CPU, MKL's product in fp32 reached 40 % of oneDNN's convolution."""
    a, b = random_values((2, side, side), dtype, device)
    if dtype == torch.int8:  # which convolutions have only in quantised tensors
        return [(2 * side**3, lambda: torch._int_mm(a, b))]
    images, channels, out = CONVOLUTION
    shapes = (images, channels, out + 2, out + 2), (channels, channels, 3, 3)
    tensors = (random_values(shape, dtype, device) for shape in shapes)
    x, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors)
    flops = 2 * images * out**2 * 9 * channels**2
    return [(2 * side**3, lambda: torch.mm(a, b)), (flops, lambda: conv2d(x, kernel))]


def _fastest_s(device: torch.device, work: Callable[[], Tensor]) -> float:
    work()
    times_ms: list[float] = []
    while not times_ms or sum(times_ms) < 1e3 * SECONDS:
        start_ms = now_ms(device)
        work()
        times_ms.append(now_ms(device) - start_ms)
    return min(times_ms) / 1e3


def count_layers(model: nn.Module, images: int, image_size: int) -> Costs | None:
    """What a network costs by layer; None where it multiplies matrices outside of layers."""
    with suppress(ValueError):
        return count_costs(model, (images, 3, image_size, image_size), "conv_linear")
    return None


def train_bound_ms(costs: Costs, peaks: Peaks, precision: str) -> float:
    """The least time of a training step: each layer takes at least the time of its arithmetic at
    the peak, and at least that of moving its input, output and weights once; a step does so as
    often as costs.train_step_macs says on the mean. costs: of the whole batch, in conv_linear."""
    item, layers = DTYPES[precision].itemsize, (layer for layer in costs.layers if layer.macs)
    times_s = ((2 * x.macs / peaks.flops_per_s, item * x.moved / peaks.bytes_per_s) for x in layers)
    return 1e3 * costs.train_step_macs / costs.macs * sum(map(max, times_s))
