"""Gradients by matrix products against autograd's own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from common.models import build_model
from common.train.conv import MatmulConv2d, use_matmul

# Image, and output channels, kernel, stride and padding; and whether the output is a product.
CASES = [(8, (128, 3, 1, 1), False), (15, (128, 3, 2, 1), False), (4, (128, 3, 1, 1), True)]
CASES += [(9, (256, 3, 2, 1), True), (1, (128, 3, 2, 1), True), (9, (40, 1, 1, 0), True)]
CASES += [(9, (40, 1, 2, 0), True), (1, (128, 1, 1, 0), True)]
CASES += [(size, (128, (3, 2), (2, 1), (0, 1)), size == 5) for size in (5, 15)]


@pytest.mark.parametrize("needs_input", [True, False])
@pytest.mark.parametrize(("size", "window", "by_product"), CASES)
def test_to_the_precision_of_bf16_it_is_fp64s(size, window, by_product, needs_input):
    torch.manual_seed(0)
    layer = nn.Conv2d(24, *window, bias=False)
    layer.to(memory_format=torch.channels_last)
    use_matmul(layer)
    assert type(layer) is MatmulConv2d
    # Numbers that bf16 holds exactly, so that only the products' sums are rounded.
    x = torch.randn(4, 24, size, size).bfloat16().float().requires_grad_(needs_input)
    layer.weight.data = layer.weight.data.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.grad_fn.by_product == by_product
    g = torch.randn_like(y)
    y.backward(g)
    x_64, w_64 = (t.detach().double().requires_grad_() for t in (x, layer.weight))
    y_64 = conv2d(x_64, w_64, stride=layer.stride, padding=layer.padding)
    y_64.backward(g.double())
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    pairs = [(y, y_64), (layer.weight.grad, w_64.grad)]
    pairs += [(x.grad, x_64.grad)] if needs_input else []
    for ours, expected in pairs:
        assert ours.shape == expected.shape
        assert (ours - expected).norm() <= 5e-3 * expected.norm()


def test_only_wide_and_1x1_plain_convolutions_change_and_only_while_training_in_bf16():
    plain, changed = build_model("resnet18", 10), build_model("resnet18", 10)
    use_matmul(changed)
    kinds = {name: type(layer) for name, layer in changed.named_modules()}
    assert kinds["layer4.1.conv2"] is kinds["layer2.0.downsample.0"] is MatmulConv2d
    assert kinds["conv1"] is kinds["layer1.0.conv1"] is nn.Conv2d
    assert plain.state_dict().keys() == changed.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(x), changed(x))  # fp32, with gradients
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain.eval()(x), changed.eval()(x))
    grouped = nn.Conv2d(128, 128, 3, groups=2, bias=False)
    use_matmul(grouped)
    assert type(grouped) is nn.Conv2d
