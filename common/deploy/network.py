"""A trained network that takes pixels as they are, and the same with all folded that can be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from common.base.cli import UsageError
from common.models import build_model
from common.train.checkpoint import load_checkpoint, load_weights
from common.train.loop import MirrorMean, as_tested

Values = Sequence[float] | Tensor  # one a channel


class Deployable(nn.Module):
    """A trained network with the normalisation of its images in front.

    std None: the first convolution of the network, of C channels, divides by it already.
    Shapes: (B, C, S, S) float32 in [0, 1] -> (B, classes) logits; C is 1 or 3.
    """

    def __init__(self, model: nn.Module, mean: Values, std: Values | None = None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.as_tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.as_tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # The mean is never folded: a bias could not stand in for it where the convolution pads.
        centred = pixels - self.mean
        return self.model(
            centred if self.std is None else (centred / self.std).expand(-1, 3, -1, -1)
        )


def load_deployable(checkpoint: Path) -> tuple[Deployable, dict[str, Any]]:
    """The network of a training checkpoint, ready to predict, and the checkpoint's other content.

    Raises: UsageError when the file is missing, damaged, or not a training checkpoint.
    """
    content = load_checkpoint(checkpoint)
    if missing := {"model", "config", "classes", "mean", "std"} - content.keys():
        raise UsageError(f"{checkpoint} is no checkpoint of train.py: it lacks {min(missing)}")
    config, classes = content["config"], len(content["classes"])
    model = build_model(config["model"], classes, image_size=config["image_size"])
    load_weights(model, checkpoint)
    deployable = Deployable(as_tested(model, config), content["mean"], content["std"]).eval()
    return deployable.to(memory_format=torch.channels_last), content


def fold(network: Deployable) -> nn.Module:
    """The same function with fewer operations: each BatchNorm in the convolution before it, the
    pixels' scale and the repetition of a grey channel in the first convolution.

    What torch.fx cannot trace, and a network that does not begin with a convolution, comes back
    with less folded or as it was; each form computes the same but for rounding.
    """
    mean, std = network.mean, network.std
    if isinstance(network.model, MirrorMean):
        return MirrorMean(fold(Deployable(network.model.model, mean, std).eval())).eval()
    try:
        model = fuse(copy.deepcopy(network.model).eval())
    except Exception:  # a forward pass that depends on values: torch.fx raises what it likes
        return network
    image = next(node for node in model.graph.nodes if node.op == "placeholder")
    first = next(iter(image.users))
    layer = model.get_submodule(first.target) if first.op == "call_module" else None
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or len(image.users) > 1:
        return Deployable(model, mean, std).eval()
    weight = layer.weight.detach().double() / std.double()
    if std.numel() == 1:  # grey: the same in all three channels
        weight = weight.sum(1, keepdim=True)
    layer.weight, layer.in_channels = nn.Parameter(weight.float(), False), weight.shape[1]
    return Deployable(model, mean).eval().to(memory_format=torch.channels_last)
