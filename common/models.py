"""The networks, by name. A new one is one entry in MODELS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported where it is used: the names here also feed --help
    from torch import nn


def _resnet(name: str, classes: int) -> nn.Module:
    import torchvision.models

    return getattr(torchvision.models, name)(weights=None, num_classes=classes)


def _vgg5(classes: int) -> nn.Module:
    """A small VGG for images of about 28 pixels: 5 layers of 99,000 weights in all.

    It halves its input at once, and ends in the maximum over all positions, so that it takes any
    size from 8 pixels up; BatchNorm follows every convolution, so that no scale of one matters.
    """
    from torch import nn

    def conv(inputs: int, outputs: int, pool: bool = False) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
        layers += [nn.MaxPool2d(2)] if pool else []
        return [*layers, nn.BatchNorm2d(outputs), nn.SiLU()]

    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        *conv(16, 32, pool=True), *conv(32, 64, pool=True), *conv(64, 128),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


MODELS = {
    "resnet18": lambda classes: _resnet("resnet18", classes),
    "resnet34": lambda classes: _resnet("resnet34", classes),
    "resnet50": lambda classes: _resnet("resnet50", classes),
    "vgg5": _vgg5,
}


def build_model(name: str, classes: int, seed: int = 0) -> nn.Module:
    """Build a network from scratch, its weights drawn from `seed` alone.

    Shapes: the network maps (B, 3, H, W) to (B, classes) logits.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](classes)
