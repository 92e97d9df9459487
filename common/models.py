"""The networks, by name. A new one is one entry in MODELS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported where it is used: the names here also feed --help
    from torch import nn


def _resnet(name: str, classes: int) -> nn.Module:
    import torchvision.models

    return getattr(torchvision.models, name)(weights=None, num_classes=classes)


MODELS = {
    "resnet18": lambda classes: _resnet("resnet18", classes),
    "resnet34": lambda classes: _resnet("resnet34", classes),
    "resnet50": lambda classes: _resnet("resnet50", classes),
}


def build_model(name: str, classes: int, seed: int = 0) -> nn.Module:
    """Build a network from scratch, its weights drawn from `seed` alone.

    Shapes: the network maps (B, 3, H, W) to (B, classes) logits.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](classes)
