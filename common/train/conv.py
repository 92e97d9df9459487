"""Convolutions as matrix products, where that is faster: training in bf16 on a CPU. oneDNN turns
weights into another layout at every call, which costs more than the convolution itself where few
pixels meet many weights, and computes weight gradients at a tenth to three quarters of a product's
speed (benchmarks/RECORDS.md). Gathering every neighbourhood into a row (im2col) costs little beside
a product with many output channels, and nothing where a neighbourhood is one pixel."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WIDE = 128  # output channels from which gathering neighbourhoods pays


def use_matmul(model: nn.Module) -> None:
    """Let every wide or 1x1 convolution compute so, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.bias is None and not isinstance(layer.padding, str):
            plain = (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")
            pixelwise = (layer.kernel_size, layer.padding) == ((1, 1), (0, 0))
            if plain and (layer.out_channels >= WIDE or pixelwise):
                layer.__class__ = MatmulConv2d  # the same parameters, under the same names


class MatmulConv2d(nn.Conv2d):
    """By matrix products under bf16 autocast on a CPU, the plain one everywhere else."""

    def forward(self, inputs: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        if inputs.device.type == "cpu" and torch.is_grad_enabled() and autocast == torch.bfloat16:
            return _Convolve.apply(inputs.bfloat16(), self.weight, self)
        return super().forward(inputs)

    def output_sides(self, sides: Sequence[int]) -> list[int]:
        """Height and width of what it makes of an image of these sides."""
        sides = zip(sides, self.kernel_size, self.stride, self.padding, strict=True)
        return [(n + 2 * p - k) // s + 1 for n, k, s, p in sides]

    def gather(self, inputs: Tensor) -> Tensor:
        """What each output pixel is a product with. Shapes: (B, C, H, W) -> (B H' W', K K C)."""
        (tall, wide), (down, right), (above, beside) = self.kernel_size, self.stride, self.padding
        padded = pad(inputs, (beside, beside, above, above)) if above or beside else inputs
        patches = padded.movedim(1, -1).unfold(1, tall, down).unfold(2, wide, right)
        return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, tall * wide * inputs.shape[1])

    def scatter(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of gather: every value is added to the pixel it is from; to `shape`."""
        batch, channels, height, width = shape
        (tall, wide), (down, right), (above, beside) = self.kernel_size, self.stride, self.padding
        if (tall, wide, down, right, above, beside) == (1, 1, 1, 1, 0, 0):
            return rows.view(batch, height, width, channels).movedim(-1, 1)
        tall_out, wide_out = self.output_sides((height, width))
        values = rows.view(batch, tall_out, wide_out, tall, wide, channels)
        sums = rows.new_zeros(batch, height + 2 * above, width + 2 * beside, channels)
        for i in range(tall):
            for j in range(wide):
                part = sums[:, i : i + tall_out * down : down, j : j + wide_out * right : right]
                part += values[:, :, :, i, j]
        return sums[:, above : above + height, beside : beside + width].movedim(-1, 1)


class _Convolve(torch.autograd.Function):
    """The weight gradient is always a product; the two others are where they have fewer pixels
    than channels, or one pixel a neighbourhood."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, layer: MatmulConv2d) -> Tensor:
        weight, ctx.layer, ctx.shape = weight.bfloat16(), layer, inputs.shape
        sides = layer.output_sides(inputs.shape[2:])
        pixels = len(inputs) * math.prod(sides)
        ctx.by_product = layer.kernel_size == (1, 1) or pixels < len(weight)
        if not ctx.by_product:
            ctx.save_for_backward(inputs, weight)
            return torch.conv2d(inputs, weight, stride=layer.stride, padding=layer.padding)
        rows = layer.gather(inputs)
        ctx.save_for_backward(rows, weight)
        matrix = weight.movedim(1, -1).flatten(1)  # O, K K C
        return (rows @ matrix.mT).view(len(inputs), *sides, -1).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        saved, weight = ctx.saved_tensors
        layer, (out, channels, *kernel) = ctx.layer, weight.shape
        grad_rows, grad_inputs = grad.movedim(1, -1).reshape(-1, out), None  # B H' W', O
        rows = saved if ctx.by_product else layer.gather(saved)
        grad_weight = (grad_rows.mT @ rows).view(out, *kernel, channels).movedim(-1, 1)
        if ctx.needs_input_grad[0] and ctx.by_product:
            matrix = weight.movedim(1, -1).flatten(1)
            grad_inputs = layer.scatter(grad_rows @ matrix, ctx.shape)
        elif ctx.needs_input_grad[0]:
            plain = (layer.stride, layer.padding, (1, 1), False, (0, 0), 1, (True, False, False))
            grad_inputs = torch.ops.aten.convolution_backward(grad, saved, weight, None, *plain)[0]
        return grad_inputs, grad_weight.float(), None
