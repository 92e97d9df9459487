"""A trained network that takes pixels as they are, and the same with all folded that can be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.base.cli import UsageError
from common.models import build_model
from common.train.checkpoint import load_checkpoint, load_weights
from common.train.loop import MirrorMean, as_tested


class Deployable(nn.Module):
    """A trained network with the normalisation of its images in front.

    Shapes: (B, C, S, S) float32 in [0, 1] -> (B, classes) logits; C is 1 or 3.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(((pixels - self.mean) / self.std).expand(-1, 3, -1, -1))


class Folded(nn.Module):
    """A network whose first convolution takes centred pixels. Shapes: as Deployable."""

    def __init__(self, model: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)

    def forward(self, pixels: Tensor) -> Tensor:
        # Not folded: a bias could not stand in for it where the convolution pads with zeros.
        return self.model(pixels - self.mean)


def load_deployable(checkpoint: Path) -> tuple[Deployable, dict[str, Any]]:
    """The network of a training checkpoint, ready to predict, and the checkpoint's other content.

    Raises: UsageError when the file is missing, damaged, or not a training checkpoint.
    """
    content = load_checkpoint(checkpoint)
    if missing := {"model", "config", "classes", "mean", "std"} - content.keys():
        raise UsageError(f"{checkpoint} is no checkpoint of train.py: it lacks {min(missing)}")
    config = content["config"]
    size = config["image_size"]
    model = build_model(config["model"], len(content["classes"]), image_size=size)
    load_weights(model, checkpoint)
    tested = as_tested(model, config)
    deployable = Deployable(tested, content["mean"], content["std"]).eval()
    return deployable.to(memory_format=torch.channels_last), content


def fold(network: Deployable) -> nn.Module:
    """The same function with fewer operations: each BatchNorm in the convolution before it, the
    pixels' scale and the repetition of a grey channel in the first convolution.

    What torch.fx cannot trace, and a network that does not begin with a convolution, comes back
    with less folded or as it was; each form computes the same but for rounding.
    """
    from torch.fx.experimental.optimization import fuse

    if isinstance(network.model, MirrorMean):
        inner = Deployable(network.model.model, [0.0], [1.0])
        inner.mean, inner.std = network.mean, network.std
        return MirrorMean(fold(inner.eval())).eval()
    try:
        model = fuse(copy.deepcopy(network.model).eval())
    except Exception:  # a forward pass that depends on values: torch.fx raises what it likes
        return network
    nodes = iter(model.graph.nodes)
    image = next(node for node in nodes if node.op == "placeholder")
    first = next(iter(image.users))
    layer = model.get_submodule(first.target) if first.op == "call_module" else None
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or len(image.users) > 1:
        folded = Deployable(model, [0.0], [1.0])
        folded.mean, folded.std = network.mean, network.std
        return folded.eval()
    model.set_submodule(first.target, _rescale(layer, network.std))
    return Folded(model, network.mean).eval().to(memory_format=torch.channels_last)


def _rescale(layer: nn.Conv2d, std: Tensor) -> nn.Conv2d:
    """A convolution that divides its input by std, of one channel for all where std has one."""
    weight = layer.weight.detach().double() / std.double()
    if std.numel() == 1:
        weight = weight.sum(1, keepdim=True)
    found = nn.Conv2d(
        weight.shape[1], layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, bias=layer.bias is not None,
    )  # fmt: skip
    found.weight = nn.Parameter(weight.float(), requires_grad=False)
    if layer.bias is not None:
        found.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return found
