"""Convolutions as matrix products, where that is faster: training in bf16 on a CPU.

oneDNN turns a convolution's weights into another layout at every call, which costs more than the
convolution itself where few pixels meet many weights, and it computes weight gradients at a tenth
to three quarters of the speed of a matrix product (benchmarks/RECORDS.md). Gathering every
neighbourhood into a row (im2col) costs little beside a product with many output channels, and
nothing where a neighbourhood is one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WIDE = 128  # output channels from which gathering neighbourhoods pays


class MatmulConv2d(nn.Conv2d):
    """An nn.Conv2d computed by matrix products under bf16 autocast on a CPU, and which is the
    plain one everywhere else."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, O, H', W')."""
        if (
            inputs.device.type == "cpu" and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):  # fmt: skip
            return _Convolve.apply(inputs.bfloat16(), self.weight, self.stride, self.padding)
        return super().forward(inputs)


def use_matmul(model: nn.Module) -> None:
    """Let every wide or 1x1 convolution compute so, in place."""
    for layer in model.modules():
        if (
            type(layer) is nn.Conv2d and (layer.out_channels >= WIDE or _is_pointwise(layer))
            and layer.groups == 1 and layer.bias is None and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        ):  # fmt: skip
            layer.__class__ = MatmulConv2d  # the same parameters, under the same names


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.padding == (0, 0)


class _Convolve(torch.autograd.Function):
    """The weight gradient is always a product; the two others are where they have fewer pixels
    than channels, or one pixel a neighbourhood."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        weight = weight.bfloat16()
        out, _, *kernel = weight.shape
        batch, _, *sides = inputs.shape
        height, width = _output_sides(sides, kernel, stride, padding)
        ctx.stride, ctx.padding, ctx.shape = stride, padding, inputs.shape
        ctx.by_product = kernel == [1, 1] or batch * height * width < out
        if not ctx.by_product:
            ctx.save_for_backward(inputs, weight)
            return torch.conv2d(inputs, weight, stride=stride, padding=padding)
        rows = gather_neighbourhoods(inputs, kernel, stride, padding)
        ctx.save_for_backward(rows, weight)
        return (rows @ _as_matrix(weight).mT).view(batch, height, width, out).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        saved, weight = ctx.saved_tensors
        out, channels, *kernel = weight.shape
        grad_rows = grad.movedim(1, -1).reshape(-1, out)  # B H' W', O
        grad_inputs = None
        if ctx.by_product:
            rows = saved
            if ctx.needs_input_grad[0]:
                grad_inputs = scatter_neighbourhoods(
                    grad_rows @ _as_matrix(weight), ctx.shape, kernel, ctx.stride, ctx.padding
                )
        else:
            rows = gather_neighbourhoods(saved, kernel, ctx.stride, ctx.padding)
            if ctx.needs_input_grad[0]:
                grad_inputs = torch.ops.aten.convolution_backward(
                    grad, saved, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
                    (True, False, False),
                )[0]  # fmt: skip
        grad_weight = (grad_rows.mT @ rows).view(out, *kernel, channels).movedim(-1, 1)
        return grad_inputs, grad_weight.float(), None, None


def _as_matrix(weight: Tensor) -> Tensor:
    """Shapes: (O, C, K, K) -> (O, K K C)."""
    return weight.movedim(1, -1).flatten(1)


def gather_neighbourhoods(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """What a convolution multiplies to get each of its output pixels (im2col).

    Shapes: (B, C, H, W) -> (B H' W', K K C).
    """
    (tall, wide), (down, right), (above, beside) = kernel, stride, padding
    padded = pad(inputs, (beside, beside, above, above)) if above or beside else inputs
    patches = padded.movedim(1, -1).unfold(1, tall, down).unfold(2, wide, right)
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, tall * wide * inputs.shape[1])


def scatter_neighbourhoods(
    rows: Tensor, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:  # fmt: skip
    """The adjoint of gather_neighbourhoods (col2im): every value is added to the pixel it is from.

    Shapes: (B H' W', K K C) -> (B, C, H, W), which `shape` is.
    """
    batch, channels, height, width = shape
    (tall, wide), (down, right), (above, beside) = kernel, stride, padding
    if (tall, wide, down, right, above, beside) == (1, 1, 1, 1, 0, 0):
        return rows.view(batch, height, width, channels).movedim(-1, 1)
    tall_out, wide_out = _output_sides((height, width), kernel, stride, padding)
    values = rows.view(batch, tall_out, wide_out, tall, wide, channels)
    sums = rows.new_zeros(batch, height + 2 * above, width + 2 * beside, channels)
    for i in range(tall):
        for j in range(wide):
            sums[:, i : i + tall_out * down : down, j : j + wide_out * right : right] += values[
                :, :, :, i, j
            ]
    return sums[:, above : above + height, beside : beside + width].movedim(-1, 1)


def _output_sides(
    sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    return [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(sides, padding, kernel, stride, strict=True)
    ]  # fmt: skip
