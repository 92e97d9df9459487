"""Costs against hand calculation, the package thop, torchvision's figures and PyTorch's counter."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import LayerNorm2d

from common.cost import CONVENTIONS, Costs, count_costs

ignore_thops_warnings = pytest.mark.filterwarnings(
    "ignore:distutils Version classes are deprecated:DeprecationWarning",
    "ignore:This API is being deprecated:UserWarning:thop",
)
MOBILE = ("mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0")
TINY, SMALL, LARGE = (1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 224, 224)


def build(name, classes=10, device="meta"):
    with torch.device(device):
        return torchvision.models.get_model(name, num_classes=classes)


def tiny_net():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)),  # 8x8 -> 4x4
        *(nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1, groups=4, bias=False)),
        *(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


# By hand, of tiny_net on 1x3x8x8: parameters, activations, and MACs of one forward pass.
CONV, NORM, GROUPED = 8 * 4 * 4 * 3 * 3 * 3, 8 * 4 * 4 * 4, 4 * 4 * 4 * 2
AVERAGE, ADAPTIVE, LINEAR = 4 * 2 * 2, (2 * 2 + 1) * 4, 4 * 5
LAYERS = {"0": (8 * 27 + 8, 128, CONV), "1": (8 + 8, 0, 0), "3": (4 * 2, 64, GROUPED)}
LAYERS |= {"4": (0, 0, 0), "5": (0, 0, 0), "7": (4 * 5 + 5, 5, LINEAR)}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_tiny_net_by_hand(convention):
    costs, by_hand = count_costs(tiny_net(), TINY, convention), LAYERS
    # The first layer's input needs no gradient.
    step = 2 * CONV + 3 * (GROUPED + LINEAR)
    if convention == "thop":
        by_hand = LAYERS | {"1": (16, 0, NORM), "4": (0, 0, AVERAGE), "5": (0, 0, ADAPTIVE)}
        step += 3 * NORM + 2 * (AVERAGE + ADAPTIVE)  # pools have no weights
    if convention == "torch":  # its weight gradient of the 4 groups is that of one group of all
        step += 3 * GROUPED
    assert {la.name: (la.params, la.activations, la.macs) for la in costs.layers} == by_hand
    params, activations, macs = map(sum, zip(*by_hand.values(), strict=True))
    totals = params, 4 * params, activations, macs, 2 * macs, step, 2 * step
    assert costs == Costs(convention, TINY, costs.layers, *totals)
    with torch.no_grad():
        assert count_costs(tiny_net(), TINY, convention) == costs
    five = count_costs(tiny_net(), (5, *TINY[1:]), convention)
    expected = params, 5 * activations, 5 * macs, 5 * step
    assert (five.params, five.activations, five.macs, five.train_step_macs) == expected


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.BatchNorm2d(6, affine=False), (1, 6, 5, 5), 2 * 150),
        (nn.LayerNorm(7), (3, 7), 4 * 21),
        (nn.PReLU(), (2, 9), 18),
        (nn.Softmax(dim=1), (3, 10), 3 * (10 + 9 + 10)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 3), 11 * 72),
        (nn.AdaptiveAvgPool2d(2), (1, 3, 5, 5), 75 + 12),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 10), 2 * 6 * 8 * 2 * 3),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 2 * 8),
        (nn.MaxPool2d(2), (1, 3, 4, 4), 0),
        (LayerNorm2d(3), (1, 3, 4, 4), 0),  # a subclass, to which thop gives no rule
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@ignore_thops_warnings
def test_thop_rule_of_each_layer(layer, shape, macs):
    assert count_costs(layer, shape, "thop").macs == macs
    thop = pytest.importorskip("thop")
    # thop loses a layer that is the whole model, so it gets one around it.
    counted, _ = thop.profile(nn.Sequential(layer), (torch.zeros(shape),), verbose=False)
    assert counted == macs


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", *MOBILE])
@ignore_thops_warnings
def test_equal_to_the_package_thop(name):
    thop = pytest.importorskip("thop")
    expected, _ = thop.profile(build(name, device="cpu"), (torch.zeros(SMALL),), verbose=False)
    costs = count_costs(build(name), SMALL, "thop")
    assert costs.macs == sum(layer.macs for layer in costs.layers) == expected


# Activations in millions: timm's benchmark tables, at 224x224 with 1000 classes.
@pytest.mark.parametrize(
    ("name", "activations", "study"), [("resnet18", 2.48, 1.82353), ("resnet50", 11.11, 4.13172)]
)
def test_published_figures(name, activations, study):
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    for convention in ("conv_linear", "torch"):
        costs = count_costs(build(name, 1000), LARGE, convention)
        assert round(costs.macs / 1e9, 3) == published["_ops"]
        assert costs.params == published["num_params"]
        assert round(costs.activations / 1e6, 2) == activations
    assert count_costs(build(name), LARGE, "thop").macs / 1e9 == pytest.approx(study, abs=5e-6)


def test_meta_device_counts_what_a_real_training_step_does():
    model = build("resnet18", device="cpu")
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(2, 3, 32, 32))
        forward = counter.get_total_flops()
        cross_entropy(logits, torch.tensor([0, 1])).backward()
    for convention in ("torch", "conv_linear"):
        costs = count_costs(model, (2, 3, 32, 32), convention)
        assert (costs.flops, costs.train_step_flops) == (forward, counter.get_total_flops())


def test_grouped_convolutions_are_counted_by_group():
    costs, counted = (
        count_costs(build("mobilenet_v3_small"), SMALL, name) for name in ("conv_linear", "torch")
    )
    assert costs.layers == counted.layers
    depthwise = next(layer for layer in costs.layers if layer.name == "features.1.block.0.0")
    assert depthwise.macs == 16 * 16 * 16 * 3 * 3  # 16 channels at 16x16, each its own group
    # All but the first layer take three passes; torch's counter takes groups for one.
    expected = 3 * costs.macs - costs.layers[0].macs
    assert counted.train_step_macs > costs.train_step_macs == expected


def test_frozen_weights_need_no_gradient_and_a_layer_called_twice_counts_twice():
    frozen, twice = build("resnet18").requires_grad_(False), nn.Linear(6, 6)
    for convention in CONVENTIONS:
        costs = count_costs(frozen, SMALL, convention)
        assert costs.train_step_macs == costs.macs
        costs = count_costs(nn.Sequential(twice, nn.ReLU(), twice), (1, 6), convention)
        assert [(layer.macs, layer.params) for layer in costs.layers] == [(72, 42)]
        assert (costs.macs, costs.activations, costs.params) == (72, 12, 42)
    frozen.fc.weight.requires_grad = True
    for convention in ("conv_linear", "torch"):
        costs = count_costs(frozen, SMALL, convention)
        assert costs.train_step_macs == costs.macs + 512 * 10


class Gram(nn.Module):
    def forward(self, x):
        return x @ x.transpose(-1, -2)  # which no layer holds


@pytest.mark.parametrize(
    ("model", "macs"), [(Gram(), 3 * 8**3), (nn.ConvTranspose2d(3, 2, 3), 8 * 8 * 3 * 2 * 3 * 3)]
)
def test_work_outside_the_counted_layers_is_refused_not_missed(model, macs):
    assert count_costs(model, TINY, "torch").macs == macs
    for convention in ("thop", "conv_linear"):
        with pytest.raises(ValueError, match=f"hold 0 .* {2 * macs} FLOPs; count it in .* torch"):
            count_costs(model, TINY, convention)


def test_the_model_is_left_as_it_was_and_a_convention_must_be_known():
    model = tiny_net()
    before = copy.deepcopy(model.state_dict())
    count_costs(model, TINY, "thop")
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="unknown convention 'fvcore'; choose from thop"):
        count_costs(model, TINY, "fvcore")
