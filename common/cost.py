"""What a network costs: MACs, parameters and activations, by layer, in three named conventions.

The three differ in what they call a multiply-accumulate (MAC), so a figure without its convention
means little. FLOPs are 2 a MAC in each.

- thop: as the package thop counts. Convolutions and linear layers, without their biases; 2 per
  input element of a normalisation, twice that if it is affine; input plus output elements of an
  adaptive average pool; output elements of an average pool. Softmax, PReLU and upsampling have the
  rules in THOP_RULES; every other layer (ReLU, max-pool, additions) counts 0.
- conv_linear: convolutions and linear layers only, as torchvision's published figures.
- torch: half of what torch.utils.flop_counter sees while the network runs.

Grouped convolutions count the channels of their group alone. A training step is a forward and a
backward pass. Conventions thop and conv_linear count a layer's backward pass as its forward pass
once for the gradient of its input, unless the input needs none, as in the first layer, and once for
the gradient of its weights, if it has any that are trained. The torch convention counts the
operators of the backward pass itself: equal to conv_linear, except that it counts the weight
gradient of a grouped convolution as though it were not grouped. The loss and the optimiser count 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CONVENTIONS = ("thop", "conv_linear", "torch")


def _kinds(name: str) -> tuple[type[nn.Module], ...]:
    """A layer's types in one, two and three dimensions."""
    return tuple(getattr(nn, f"{name}{n}d") for n in (1, 2, 3))


WEIGHTED = (*_kinds("Conv"), nn.Linear)
NORMS = (*_kinds("BatchNorm"), *_kinds("InstanceNorm"), nn.SyncBatchNorm, nn.LayerNorm)
UPSAMPLE_MACS = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}  # others: 0, as in thop

# Layer types -> MACs of one call, from the layer and the shapes of its input x and output y.
# (Kernel elements + 1) per output element of an adaptive pool add up to x plus y elements.
THOP_RULES = {
    kind: rule
    for kinds, rule in (
        (NORMS, lambda layer, x, y: x.numel() * (2 if layer.weight is None else 4)),
        (_kinds("AdaptiveAvgPool"), lambda layer, x, y: x.numel() + y.numel()),
        (_kinds("AvgPool"), lambda layer, x, y: y.numel()),
        ([nn.PReLU], lambda layer, x, y: x.numel()),
        ([nn.Softmax], lambda layer, x, y: x.numel() // x[layer.dim] * (3 * x[layer.dim] - 1)),
        ([nn.Upsample], lambda layer, x, y: y.numel() * UPSAMPLE_MACS.get(layer.mode, 0)),
    )
    for kind in kinds
}


@dataclass
class LayerCost:
    """Forward cost of one layer, over all the times it is called; output_shape is the last call's.

    activations: output elements if it is a convolution or linear layer, else 0 (Radosavovic et al.,
    "Designing Network Design Spaces", 2020), whatever the convention. moved: elements of its
    inputs, outputs and parameters.
    """

    name: str
    kind: str
    params: int
    output_shape: tuple[int, ...] = ()
    macs: int = 0
    activations: int = 0
    moved: int = 0


@dataclass(frozen=True)
class Costs:
    """Costs of a network at an input shape. `params` has all its parameters, also unused ones;
    weight_bytes is of them in fp32, without buffers such as running statistics."""

    convention: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    macs: int
    train_step_macs: int
    params: int

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def train_step_flops(self) -> int:
        return 2 * self.train_step_macs

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return 4 * self.params


def count_costs(model: nn.Module, input_shape: Sequence[int], convention: str) -> Costs:
    """Count the costs of one forward pass and one training step, without computing either.

    A copy of the model runs on the meta device in evaluation mode; the model is left as it is.

    Shapes: input_shape (B, C, H, W), or what else the model takes; every count is for all of B.
    Raises: ValueError on an unknown convention, and in thop and conv_linear when the network
        multiplies matrices outside its convolutions and linear layers, which they cannot see.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose from {', '.join(CONVENTIONS)}")
    trace = _Trace(copy.deepcopy(model).to("meta").eval(), tuple(input_shape), convention)
    macs, step = trace.forward_flops // 2, trace.step_flops // 2
    if convention != "torch":
        if 2 * trace.weighted_macs != trace.forward_flops:
            raise ValueError(
                f"convolution and linear layers hold {2 * trace.weighted_macs} of "
                f"{trace.forward_flops} FLOPs; count it in convention torch, because of "
                f"{trace.elsewhere}"
            )
        macs, step = sum(layer.macs for layer in trace.layers.values()), trace.layers_step_macs
    params = sum(p.numel() for p in model.parameters())
    layers = tuple(trace.layers.values())
    return Costs(convention, tuple(input_shape), layers, macs, step, params)


class _Trace:
    """A forward and a backward pass on the meta device, counted by layer and by operator."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], convention: str) -> None:
        self.convention, self.counter = convention, FlopCounterMode(display=False)
        self.layers: dict[str, LayerCost] = {}
        self.flops_before: dict[nn.Module, int] = {}
        self.weighted_macs = self.layers_step_macs = 0
        for name, layer in model.named_modules():
            if isinstance(layer, (*WEIGHTED, *THOP_RULES)):
                layer.register_forward_pre_hook(self.enter)
                layer.register_forward_hook(partial(self.leave, name))
        with torch.enable_grad(), self.counter:
            output = model(torch.empty(input_shape, device="meta"))
            self.forward_flops = self.counter.get_total_flops()
            self.elsewhere = _find_multiplying(model, self.counter)
            if output.requires_grad:  # a network that is all frozen has no backward pass
                output.sum().backward()
        self.step_flops = self.counter.get_total_flops()

    def enter(self, layer: nn.Module, inputs: tuple) -> None:
        self.flops_before[layer] = self.counter.get_total_flops()

    def leave(self, name: str, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        x, y, weight = inputs[0].shape, output.shape, getattr(layer, "weight", None)
        activations = y.numel() if isinstance(layer, WEIGHTED) else 0
        # weight[0] is what one output element is multiplied with: only its own group's channels.
        macs = weighted = activations * weight[0].numel() if activations else 0
        if self.convention == "torch":
            macs = (self.counter.get_total_flops() - self.flops_before[layer]) // 2
        elif self.convention == "thop" and type(layer) in THOP_RULES:  # no subclasses, as in thop
            macs = THOP_RULES[type(layer)](layer, x, y)
        gradients = inputs[0].requires_grad + (weight is not None and weight.requires_grad)
        self.weighted_macs += weighted
        self.layers_step_macs += macs * (1 + gradients)
        params = sum(p.numel() for p in layer.parameters())
        cost = self.layers.setdefault(name, LayerCost(name, type(layer).__name__, params))
        cost.output_shape = tuple(y)
        cost.macs += macs
        cost.activations += activations
        cost.moved += x.numel() + y.numel() + params


def _find_multiplying(model: nn.Module, counter: FlopCounterMode) -> str:
    """The first module that multiplies outside convolutions and linear layers."""
    counts = {path: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    for name, layer in model.named_modules():
        path = ".".join(filter(None, (type(model).__name__, name)))
        inside = sum(counts.get(f"{path}.{child}", 0) for child, _ in layer.named_children())
        if not isinstance(layer, WEIGHTED) and counts.get(path, 0) > inside:
            return f"{name or 'the network'} ({type(layer).__name__})"
    return ""
