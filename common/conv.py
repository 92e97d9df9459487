"""Weight gradients of wide convolutions as one matrix product, for training in bf16 on a CPU.

oneDNN computes them at a quarter to three quarters of the speed of a matrix product there, the
slower the smaller the images (benchmarks/RECORDS.md). Gathering every neighbourhood into a row
(im2col) costs little beside a product with many output channels, and much beside one with few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WIDE = 128  # output channels


class MatmulConv2d(nn.Conv2d):
    """An nn.Conv2d whose weight gradient is a matrix product under bf16 autocast on a CPU, and
    which is the plain one everywhere else."""

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
    """Give every wide convolution of more than one tap this weight gradient, in place."""
    for layer in model.modules():
        if (
            type(layer) is nn.Conv2d and layer.out_channels >= WIDE and layer.kernel_size > (1, 1)
            and layer.groups == 1 and layer.bias is None and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        ):  # fmt: skip
            layer.__class__ = MatmulConv2d  # the same parameters, under the same names


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        weight = weight.bfloat16()
        ctx.save_for_backward(inputs, weight)
        return torch.conv2d(inputs, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        inputs, weight = ctx.saved_tensors
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.ops.aten.convolution_backward(
                grad, inputs, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
                (True, False, False),
            )[0]  # fmt: skip
        out, channels, *kernel = weight.shape
        rows = grad.movedim(1, -1).reshape(-1, out)  # B H' W', O
        product = rows.mT @ gather_neighbourhoods(inputs, kernel, ctx.stride, ctx.padding)
        grad_weight = product.view(out, *kernel, channels).movedim(-1, 1)
        return grad_inputs, grad_weight.float(), None, None


def gather_neighbourhoods(
    inputs: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """What a convolution multiplies to get each of its output pixels (im2col).

    Shapes: (B, C, H, W) -> (B H' W', K K C).
    """
    (tall, wide), (down, right), (above, beside) = kernel, stride, padding
    padded = pad(inputs, (beside, beside, above, above)).movedim(1, -1)
    patches = padded.unfold(1, tall, down).unfold(2, wide, right)  # B, H', W', C, K, K
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, tall * wide * inputs.shape[1])
