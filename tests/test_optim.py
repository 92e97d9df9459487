"""Learning rates by hand; Muon against singular values, torch's own Muon and torch's SGD."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy

from common.models import build_model
from common.train import optim
from common.train.optim import Muon, find_hidden, orthogonalize


def test_settings_reach_the_optimizer_and_sgd_is_fused_where_that_is_faster():
    model = build_model("vgg5", 10)
    for opt, fused in {"sgd": False, "nesterov": False, "adam": True, "adamw": True}.items():
        settings = optim.build_optimizer(model, opt, 0.1, 0.5).defaults
        assert (settings["fused"], settings["weight_decay"]) == (fused, 0.5)
    assert optim.build_optimizer(model, "adamw", 0.1, None).defaults["weight_decay"] == 0.01
    with pytest.raises(ValueError, match="unknown optimiser 'no-such'"):
        optim.build_optimizer(model, "no-such", 0.1, None)


def test_a_triangular_schedule_peaks_at_its_learning_rate():
    lrs = [optim.schedule_lr("triangular", 1.0, step, 10) for step in range(10)]
    assert lrs == pytest.approx([1 / 2, 1, *(n / 8 for n in range(8, 0, -1))])
    assert optim.schedule_lr("constant", 0.5, 2, 3) == 0.5
    with pytest.raises(ValueError, match="unknown schedule 'no-such'"):
        optim.schedule_lr("no-such", 1.0, 0, 10)
    for steps in range(1, 301):
        lrs = [optim.schedule_lr("triangular", 0.3, step, steps) for step in range(steps)]
        top = lrs.index(max(lrs))
        assert 0 < min(lrs) <= lrs[top] <= 0.3 == pytest.approx(lrs[top], rel=1e-12)
        assert abs(top + 1 - 0.2 * steps) <= 1  # the step nearest to the corner, or its neighbour
        assert lrs == sorted(lrs[:top]) + sorted(lrs[top:], reverse=True)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 16)])
def test_iterations_are_those_of_torchs_muon(shape):
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(shape))
    matrix.grad = torch.randn(shape)
    before = matrix.detach().clone()
    settings = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "ns_steps": 3}
    torch.optim.Muon([matrix], lr=1.0, **settings).step()
    step = (before - matrix.detach()) / max(1, shape[0] / shape[1]) ** 0.5  # a factor of torch's
    ours = orthogonalize(matrix.grad)
    assert ours.dtype == torch.float32
    # Both iterate in bf16, in another order of operations.
    assert (step - ours).norm() < 0.05 * step.norm()


def test_weights_of_one_shape_are_orthogonalised_together_as_each_alone():
    torch.manual_seed(0)
    shapes = [(16, 8, 3, 3), (16, 8, 1, 1), (16, 8, 3, 3), (8, 2, 1, 1), (16, 8, 1, 1)]
    weights = [torch.randn(shape) for shape in shapes]
    weights[2] = weights[2].contiguous(memory_format=torch.channels_last)
    ours, each = (optim.orthogonalize_each(weights, together=yes) for yes in (True, False))
    torch.testing.assert_close(ours, each, rtol=0.02, atol=0.02)


def set_grads(model):
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape)


def test_a_learning_rate_in_a_tensor_is_that_rate():
    """As a CUDA graph reads it."""
    models = [build_model("vgg5", 10, seed=1) for _ in range(2)]
    for model, lr in zip(models, (0.1, torch.tensor(0.1)), strict=True):
        optimizer = optim.build_optimizer(model, "muon", 9.0, 5e-4)
        set_grads(model)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_convolution_keeps_its_norm_and_moves_by_the_rate():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 8, 3, 3))
    weight.grad = torch.randn_like(weight)
    scaled = weight.detach() * 4 / weight.detach().norm()
    Muon([{"params": [weight], "orthogonal": True}], lr=0.1, momentum=0.9).step()
    moved = (weight.detach() - scaled).flatten(1)
    assert 0.6 * 0.1 < torch.linalg.svdvals(moved).median() < 1.3 * 0.1


def test_all_but_the_hidden_convolutions_take_sgds_step():
    model, twin = (build_model("vgg5", 10, seed=1) for _ in range(2))
    ours = optim.build_optimizer(model, "muon", 0.1, 5e-4)
    theirs = optim.build_optimizer(twin, "nesterov", 0.1, 5e-4)
    for group in theirs.param_groups:
        group["momentum"] = optim.MUON_MOMENTUM
    for _ in range(3):
        for network, optimizer in ((model, ours), (twin, theirs)):
            set_grads(network)
            optimizer.step()
    pairs = zip(model.named_parameters(), twin.parameters(), strict=True)
    other = [name for (name, a), b in pairs if not torch.allclose(a, b, atol=1e-6)]
    assert other == [name for name, p in model.named_parameters() if p.ndim == 4][1:]


ARCHITECTURES = ["vgg5", "resnet18", "regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0"]
ARCHITECTURES += ["mnasnet0_5", "densenet121", "shufflenet_v2_x0_5", "googlenet"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_of_no_length_changes_nothing(name):
    """It moved the logits by 38 to 75 % where weights without a normalisation were rescaled."""
    model = build_model(name, 10, image_size=64)
    optimizer = optim.build_optimizer(model, "muon", 1e-12, None)
    for layer in model.train().modules():  # without what is random: two calls are compared
        if "Drop" in type(layer).__name__ or "StochasticDepth" in type(layer).__name__:
            layer.eval()
    images = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before = model(images)
    cross_entropy(before, torch.arange(32) % 10).backward()
    optimizer.step()
    with torch.no_grad():
        moved = (model(images) - before).norm() / before.norm()
    assert moved < 1e-3
    assert len(optimizer.param_groups[0]["params"]) > 2


@pytest.mark.parametrize("name", ["vgg5", "resnet14", "resnet18"])
def test_networks_that_normalise_every_convolution_are_as_they_were(name):
    """Those of the presets: their results stand."""
    model = build_model(name, 10)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizer = optim.build_optimizer(model, "muon", 0.1, None)
    convolutions = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hidden = optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(hidden, convolutions[1:], strict=True))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


class Standardised(nn.Conv2d):
    """Its weights are normalised, and not its outputs. Source: arXiv 1903.10520."""

    def forward(self, inputs):
        rows = self.weight.flatten(1)
        rows = batch_norm(rows[None], None, None, training=True, eps=1e-12)
        return conv2d(inputs, rows.view_as(self.weight), padding=1)


class Excited(nn.Sequential):
    """A squeeze and excitation without biases."""

    def forward(self, inputs):
        return inputs * super().forward(inputs)


class Joined(nn.Sequential):
    """Two convolutions, joined as in DenseNet."""

    def forward(self, inputs):
        return torch.cat([layer(inputs) for layer in self], 1)


class Added(Joined):
    """Before any normalisation: the scale of one is against that of the other."""

    def forward(self, inputs):
        return self[0](inputs) + self[1](inputs)


def conv(side=3, bias=False):
    return nn.Conv2d(8, 8, side, padding=side // 2, bias=bias)


ZERO_GAMMA = nn.BatchNorm2d(8)
nn.init.zeros_(ZERO_GAMMA.weight)


@pytest.mark.parametrize(
    ("layers", "free"),
    [
        ([conv(), nn.BatchNorm2d(8)], [True]),
        ([conv(bias=True), nn.BatchNorm2d(8)], [True]),
        ([conv(bias=True), nn.ReLU(), nn.BatchNorm2d(8)], [False]),
        ([conv(), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8)], [True]),
        ([conv(), ZERO_GAMMA], [True]),
        ([conv(), nn.SiLU(), nn.BatchNorm2d(8)], [False]),
        ([conv(), nn.ReLU(), conv(), nn.BatchNorm2d(8)], [True, True]),
        ([conv(), nn.GroupNorm(2, 8)], [True]),
        ([conv(bias=True), nn.GroupNorm(2, 8)], [False]),
        ([conv(), nn.InstanceNorm2d(8)], [True]),
        ([Joined(conv(), conv()), nn.BatchNorm2d(16)], [True, True]),
        ([Joined(conv(), conv()), nn.GroupNorm(1, 16)], [False, False]),
        ([Added(conv(), conv()), nn.BatchNorm2d(8)], [False, False]),
        ([nn.BatchNorm2d(8), Excited(nn.AdaptiveAvgPool2d(1), conv(1), nn.Sigmoid())], [False]),
        ([Standardised(8, 8, 3, bias=False)], [True]),
        ([conv(), nn.ReLU()], [False]),
    ],
    ids=str,
)
def test_which_weights_have_no_scale_is_known_of_small_networks(layers, free):
    tail = [nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(10)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), *copy.deepcopy(layers), *tail)
    model(torch.zeros(2, 3, 16, 16))
    _, *names = [name for name, p in model.named_parameters() if p.ndim == 4]
    assert find_hidden(model, 16) == [name for name, yes in zip(names, free, strict=True) if yes]


def test_which_weights_have_no_scale_is_seen_by_scaling_them():
    model = build_model("mobilenet_v3_small", 10).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.eps = 1e-15
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    _, *hidden = [name for name, p in model.named_parameters() if p.ndim == 4]
    free = []
    with torch.no_grad():
        before = model(images)
        for weight in hidden:
            p = model.get_parameter(weight)
            p.mul_(2)
            if (model(images) - before).norm() < 1e-8 * before.norm():
                free.append(weight)
            p.div_(2)
    assert find_hidden(model, 64) == free
    assert 0 < len(free) < len(hidden)
